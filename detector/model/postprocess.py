"""From raw head outputs to detections."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .boxes import clip, decode
from .head import HeadOutputs
from .retinanet import RetinaNet


class Detections(NamedTuple):
    """What was found in one image: D detections, best score first."""

    boxes: Tensor  # (D, 4) xyxy pixels, inside the image
    scores: Tensor  # (D,) float32 in (0, 1]
    labels: Tensor  # (D,) int64 in [0, K)


@dataclass(frozen=True, kw_only=True)
class Postprocess:
    """Selects detections: best candidates of each level, class-wise NMS, best of the image; as torchvision does it.

    Args:
        score_threshold: detections have scores above it; 0 keeps all, as LVIS evaluation wants it.
        candidates_per_level: (anchor, class) pairs that a level may send to NMS.
        nms_threshold: of two boxes of a class with a larger IoU, the one with the lower score is dropped.
        detections_per_image: at most, over all classes.
    """

    score_threshold: float = 0.05
    candidates_per_level: int = 1000
    nms_threshold: float = 0.5
    detections_per_image: int = 100

    @torch.no_grad()
    def __call__(
        self, outputs: HeadOutputs, anchors: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections of each of the N images, on the device of the outputs.

        Args:
            outputs: logits (N, R_l, K) and deltas (N, R_l, 4) per level.
            anchors: (R_l, 4) per level.
            image_sizes: (height, width) of each image, without padding; boxes are clipped to it.
        """
        detections = []
        for i, image_size in enumerate(image_sizes):
            levels = [
                self._candidates(logits[i], deltas[i], level_anchors, image_size)
                for logits, deltas, level_anchors in zip(outputs.logits, outputs.deltas, anchors, strict=True)
            ]
            detections.append(self._suppress(Detections(*map(torch.cat, zip(*levels, strict=True)))))
        return detections

    def _candidates(self, logits: Tensor, deltas: Tensor, anchors: Tensor, image_size: tuple[int, int]) -> Detections:
        """The best (anchor, class) pairs of one level of one image, from (R_l, K) logits and (R_l, 4) deltas."""
        # A pair among the k best has one of the k anchors with the best maxima. Two small selections take the place of
        # one over R_l * K logits (180 million on P3 with LVIS classes), and only the survivors need a sigmoid.
        k, num_classes = self.candidates_per_level, logits.shape[1]
        best_anchors = logits.amax(dim=1).topk(min(k, len(logits))).indices
        pairs = logits[best_anchors].flatten()
        values, index = pairs.topk(min(k, len(pairs)))
        scores = values.float().sigmoid()
        kept = scores > self.score_threshold
        index = index[kept]
        rows = best_anchors[index // num_classes]
        boxes = clip(decode(deltas[rows].float(), anchors[rows]), image_size)
        return Detections(boxes, scores[kept], index % num_classes)

    def _suppress(self, candidates: Detections) -> Detections:
        boxes, scores, labels = candidates
        # batched_nms shifts the boxes of class k by k image sides; at class 1000 float32 has a grain of 0.1 pixels.
        kept = batched_nms(boxes.double(), scores.double(), labels, self.nms_threshold)
        # batched_nms leaves the order of equal scores open; here it is the order of the candidates.
        kept = kept.sort().values
        kept = kept[scores[kept].sort(descending=True, stable=True).indices][: self.detections_per_image]
        return Detections(boxes[kept], scores[kept], labels[kept])


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


def rescale(detections: Detections, from_size: tuple[int, int], to_size: tuple[int, int]) -> Detections:
    """Detections in an image of size `from_size`, (height, width), in the pixels of the same image at `to_size`."""
    y, x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return detections._replace(boxes=detections.boxes * detections.boxes.new_tensor([x, y, x, y]))
