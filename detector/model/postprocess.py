"""From raw head outputs to detections."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .boxes import BoxCoding, DeltaCoding, clip
from .head import HeadOutputs
from .retinanet import RetinaNet

_FIRST_SUPPRESSED = 1000  # candidates of an image; batched_nms is fastest on so few
_ROUNDING = 1e-5  # relative, of scores: far more than float32 loses


class Detections(NamedTuple):
    """What was found in one image: D detections, best score first."""

    boxes: Tensor  # (D, 4) xyxy pixels, inside the image
    scores: Tensor  # (D,) float32 in (0, 1]
    labels: Tensor  # (D,) int64 in [0, K)


@dataclass(frozen=True, kw_only=True)
class Postprocess:
    """Selects detections: best candidates of each level, class-wise NMS, best of the image; as torchvision does it.

    The score of an (anchor, class) pair is sigmoid(logit), times sigmoid(quality) where the head predicts one.

    Args:
        score_threshold: detections have scores above it; 0 keeps all, as LVIS evaluation wants it.
        candidates_per_level: (anchor, class) pairs that a level may send to NMS.
        limit_to_anchors: a level may send no more pairs than it has anchors either, as in EFL's improved baseline.
        nms_threshold: of two boxes of a class with a larger IoU, the one with the lower score is dropped.
        detections_per_image: at most, over all classes.
        coding: what the head's box outputs mean.
    """

    score_threshold: float = 0.05
    candidates_per_level: int = 1000
    limit_to_anchors: bool = False
    nms_threshold: float = 0.5
    detections_per_image: int = 100
    coding: BoxCoding = field(default_factory=DeltaCoding)

    @torch.no_grad()
    def __call__(
        self, outputs: HeadOutputs, anchors: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections of each of the N images, on the device of the outputs.

        Args:
            outputs: of any float types.
            anchors: (R_l, 4) per level.
            image_sizes: (height, width) of each image, without padding; boxes are clipped to it.
        """
        quality = outputs.quality or [logits.new_full(logits.shape[:2], math.inf) for logits in outputs.logits]
        detections = []
        for i, image_size in enumerate(image_sizes):
            levels = [
                self._candidates(*(output[i] for output in level), level_anchors, image_size)
                for *level, level_anchors in zip(outputs.logits, outputs.deltas, quality, anchors, strict=True)
            ]
            detections.append(self._suppress(Detections(*map(torch.cat, zip(*levels, strict=True)))))
        return detections

    def rescale(self, detections: Detections, from_size: tuple[int, int], to_size: tuple[int, int]) -> Detections:
        """Detections in an image of size `from_size`, (height, width), in the pixels of the same image at `to_size`."""
        return detections._replace(boxes=detections.boxes * scale_of(detections.boxes, from_size, to_size))

    def _candidates(
        self, logits: Tensor, deltas: Tensor, quality: Tensor, anchors: Tensor, image_size: tuple[int, int]
    ) -> Detections:
        """The best pairs of one level of one image, from (R_l, K) logits, (R_l, D) deltas and (R_l,) quality."""
        factors, count = self._factors(deltas, quality, anchors, image_size)
        limit = min(self.candidates_per_level, count) if self.limit_to_anchors else self.candidates_per_level
        rows, labels, scores = _best_pairs(logits, factors, limit, self.score_threshold)
        return Detections(self._boxes(deltas[rows], anchors[rows], image_size), scores, labels)

    def _factors(
        self, deltas: Tensor, quality: Tensor, anchors: Tensor, image_size: tuple[int, int]
    ) -> tuple[Tensor, int]:
        """(R_l,) what the scores of each anchor are multiplied by, and how many anchors count."""
        return quality.float().sigmoid(), len(anchors)

    def _boxes(self, deltas: Tensor, anchors: Tensor, image_size: tuple[int, int]) -> Tensor:
        return clip(self.coding.decode(deltas.float(), anchors), image_size)

    def _suppress(self, candidates: Detections) -> Detections:
        """The detections of an image among its candidates; of equal scores, those of the first candidates."""
        order = candidates.scores.sort(descending=True, stable=True).indices
        # What NMS keeps of the first n depends on no later one, and seldom do many of them have to be looked at.
        n = max(_FIRST_SUPPRESSED, self.detections_per_image)
        while True:
            boxes, scores, labels = (column[order[:n]] for column in candidates)
            # batched_nms may shift the boxes of class k by k image sides; at class 1000 float32 has a grain of 0.1 pixels.
            kept = batched_nms(boxes.double(), scores.double(), labels, self.nms_threshold)
            if len(kept) >= self.detections_per_image or n >= len(order):
                break
            n *= 4
        # batched_nms leaves the order of equal scores open.
        kept = kept.sort().values[: self.detections_per_image]
        return Detections(boxes[kept], scores[kept], labels[kept])


def _best_pairs(logits: Tensor, factors: Tensor, count: int, score_threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, classes and float32 scores of the `count` best (row, class) pairs above a threshold, best first.

    With LVIS classes P3 has 40 million pairs. Only the maxima of blocks of them are scored, and then some thousands.

    Args:
        logits: (R, K).
        factors: (R,) float32 in [0, 1]; the score of pair (r, k) is sigmoid(logits[r, k]) * factors[r].
        count: at least 1.
    """
    num_classes = logits.shape[1]
    # A block is a row with all its classes, or with a part of them where there are fewer rows than `count`.
    parts = min(num_classes, -(-count // len(logits)))
    maxima = torch.stack([part.amax(dim=1) for part in logits.tensor_split(parts, dim=1)], dim=1)
    blocks = (maxima.float().sigmoid() * factors[:, None]).flatten()
    blocks = blocks.topk(min(count, len(blocks)))
    rows = (blocks.indices // parts).unique()
    # Each of the best blocks has a pair that is as good as the last one's best: none that is worse is among `count`.
    # As a logit in each row (nan where it is out of reach), this bound spares all others the sigmoid. Rounding must not
    # cost a pair its place.
    least = (blocks.values[-1].clamp(min=score_threshold) * (1 - _ROUNDING) / factors[rows]).logit()
    chosen = logits[rows]
    pairs = (chosen >= least[:, None]).flatten().nonzero().squeeze(1)
    scores = chosen.flatten()[pairs].float().sigmoid() * factors[rows[pairs // num_classes]]
    scores, best = scores.topk(min(count, len(scores)))
    kept = scores > score_threshold
    pairs = pairs[best[kept]]
    return rows[pairs // num_classes], pairs % num_classes, scores[kept]


def scale_of(boxes: Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """(4,) what the sides of boxes are multiplied by between two sizes of an image, each (height, width)."""
    y, x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return boxes.new_tensor([x, y, x, y])


@torch.no_grad()
def detect(
    network: RetinaNet, images: Sequence[Tensor], padded_size: tuple[int, int], postprocess: Postprocess
) -> list[Detections]:
    """The detections in each image, in its own pixels. The network is in eval mode.

    Args:
        images: uint8 RGB (3, h, w), none larger than `padded_size`, (H, W), to which they are padded.
    """
    outputs = network(network.preprocess(images, padded_size))
    return postprocess(outputs, network.anchors(padded_size), [tuple(image.shape[-2:]) for image in images])
