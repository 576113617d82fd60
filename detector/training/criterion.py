"""From head outputs to losses: assignment of anchors to objects, then classification and box loss."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.loading.dataset import Targets
from ...losses import distribution_focal_loss
from ..matching.assign import assign
from ..model.box_coding import BoxCoding, DeltaCoding, DistributionCoding, centerness
from ..model.boxes import encode, intersection_over_union
from ..model.head import HeadOutputs
from ..system.distributed import all_sum


class Assignment(NamedTuple):
    """What each anchor of N images is to learn."""

    labels: Tensor  # (N, R) int64: class of the matched object, BACKGROUND or IGNORE
    boxes: Tensor  # (P, 4) the objects of the P positive anchors, in the order of labels[labels >= 0]


class Positives(NamedTuple):
    """What the criterion knows of the P positive anchors of a pass."""

    anchors: Tensor  # (P, 4)
    deltas: Tensor  # (P, D) float32
    boxes: Tensor  # (P, 4) decoded from them
    objects: Tensor  # (P, 4) what the boxes should be
    iou: Tensor  # (P,) of boxes and objects, a constant in backward


class Criterion(nn.Module):
    """The losses of a dense detector. Lives outside DDP; its state (EFL's gradients) belongs into checkpoints.

    Args:
        classification: called with (N, R_l, K) logits and (N, R_l) labels per level; returns a sum over all of them.
            If it `uses_quality`, also with (N, R_l) per level: at positives, the IoU of the decoded box with its object.
        box: called with (P, 4) predictions and targets of the positives and their weights, (P,) or None; returns a sum.
            Its `on_deltas` tells whether it compares deltas or decoded boxes.
        matcher: called with the anchors of the levels and the (G_i, 4) boxes of each image; returns (N, R) object
            indices, BACKGROUND or IGNORE, see matching.Matcher.
        coding: decodes the head's box outputs. A DistributionCoding adds the distribution focal loss of its logits.
        quality: what the head's quality output learns at positives, by binary cross entropy: the IoU of the decoded box
            with its object, or the center-ness of the anchor in it.
        box_weighting: weights of the positives in the losses of boxes and distributions, which are then divided by the
            sum of the weights (at least 1) in place of the number of positives: "quality", what the quality output
            should be (ATSS with an IoU branch, FCOS), or "score", the best class score (Generalized Focal Loss).
        quality_weight: factor of the loss of the quality output.
        distribution_weight: factor of the distribution focal loss, which is averaged over the four sides.
        ignore_padding: anchors centered outside the image, in the padding of the batch, are ignored, not negative.

    Raises:
        ValueError: a box loss on deltas with another coding than DeltaCoding, or a weighting by a quality that is none.
    """

    def __init__(
        self,
        classification: nn.Module,
        box: nn.Module,
        matcher: Callable,
        *,
        coding: BoxCoding | None = None,
        quality: Literal["none", "iou", "centerness"] = "none",
        box_weighting: Literal["none", "quality", "score"] = "none",
        quality_weight: float = 1.0,
        distribution_weight: float = 0.25,
        ignore_padding: bool = False,
    ):
        super().__init__()
        self.classification = classification
        self.box = box
        self.matcher = matcher
        self.coding = coding or DeltaCoding()
        self.quality = quality
        self.box_weighting = box_weighting
        self.quality_weight = quality_weight
        self.distribution_weight = distribution_weight
        self.ignore_padding = ignore_padding
        if box.on_deltas and not isinstance(self.coding, DeltaCoding):
            raise ValueError(
                f"{type(box).__name__} compares deltas of anchors, but the head does not predict any; use a loss of boxes"
            )
        if box_weighting == "quality" and quality == "none":
            raise ValueError(
                "box_weighting is quality, but the head predicts no quality; let it predict iou or centerness"
            )

    def begin_step(self) -> None:
        """Call before the first pass of an optimizer step."""
        self.classification.begin_step()

    def after_backward(self, *, gradient_scale: float, step_taken: bool) -> None:
        """Call after the last pass of an optimizer step: EFL updates its state, see there for the arguments."""
        self.classification.after_backward(gradient_scale=gradient_scale, step_taken=step_taken)

    @torch.no_grad()
    def assign(
        self, anchors: Sequence[Tensor], targets: Sequence[Targets], image_sizes: Sequence[tuple[int, int]]
    ) -> Assignment:
        """What the anchors of each image are to learn. Needs no predictions: all images of a step can be matched first.

        Args:
            anchors: (R_l, 4) per level.
            targets: per image, on the device of the anchors.
            image_sizes: (height, width) per image, without padding.
        """
        matches = assign(
            self.matcher, anchors, [target.boxes for target in targets], [target.ignore_boxes for target in targets],
            image_sizes=image_sizes, ignore_padding=self.ignore_padding,
        )  # fmt: skip
        boxes = []
        for row, target in zip(matches, targets, strict=True):  # a row of matches turns into labels in place
            found = row[row >= 0]
            boxes.append(target.boxes[found])
            row[row >= 0] = target.labels[found]
        return Assignment(matches, torch.cat(boxes))

    def forward(
        self, outputs: HeadOutputs, anchors: Sequence[Tensor], assignment: Assignment, normalizer: Tensor
    ) -> dict[str, Tensor]:
        """The weighted losses `classification`, `box`, and as configured `quality` and `distribution`, of this pass.

        They are summed and divided by `normalizer`. With `box_weighting`, those of boxes and distributions are instead
        divided by the sum of the weights in the step. Those of later passes are not known yet: the sum over all processes
        in this pass, divided by its share of the positives, stands for it, so that splitting a step into passes changes
        the result slightly. Every process must call this equally often, as they sum their weights.

        Args:
            outputs: logits (N, R_l, K), deltas (N, R_l, D) and quality (N, R_l) or None, per level.
            anchors: (R_l, 4) per level.
            assignment: of the same N images.
            normalizer: number of positives in the whole step, over all ranks and passes, at least 1.
        """
        positive = assignment.labels >= 0
        found = self._positives(outputs.deltas, anchors, assignment.boxes, positive)
        target = centerness(found.objects, found.anchors) if self.quality == "centerness" else found.iou
        weights, box_normalizer = self._box_weights(outputs.logits, positive, target, normalizer)
        losses = {
            "classification": self._classification(outputs.logits, assignment.labels, found.iou) / normalizer,
            "box": self._box(found, weights) / box_normalizer,
        }
        if self.quality != "none":
            logits = torch.cat(outputs.quality, dim=1)[positive].float()
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
            losses["quality"] = self.quality_weight * loss / normalizer
        if isinstance(self.coding, DistributionCoding):
            losses["distribution"] = self._distribution(found, weights) / box_normalizer
        return losses

    def _positives(
        self, deltas: Sequence[Tensor], anchors: Sequence[Tensor], objects: Tensor, positive: Tensor
    ) -> Positives:
        deltas = torch.cat(list(deltas), dim=1)[positive].float()
        positive_anchors = torch.cat(list(anchors)).expand(len(positive), -1, -1)[positive]
        boxes = self.coding.decode(deltas, positive_anchors)
        iou = intersection_over_union(boxes.detach(), objects)
        return Positives(positive_anchors, deltas, boxes, objects, iou)

    def _classification(self, logits: Sequence[Tensor], labels: Tensor, iou: Tensor) -> Tensor:
        targets = [labels]
        if self.classification.uses_quality:
            quality = torch.zeros_like(labels, dtype=iou.dtype)
            quality[labels >= 0] = iou
            targets.append(quality)
        per_level = (target.split([level.shape[1] for level in logits], dim=1) for target in targets)
        return self.classification(logits, *per_level)

    def _box(self, found: Positives, weights: Tensor | None) -> Tensor:
        if self.box.on_deltas:
            return self.box(found.deltas, encode(found.objects, found.anchors), weights)
        return self.box(found.boxes, found.objects, weights)

    def _distribution(self, found: Positives, weights: Tensor | None) -> Tensor:
        target = self.coding.distances(found.objects, found.anchors)
        losses = distribution_focal_loss(self.coding.by_side(found.deltas), target).mean(dim=-1)
        return self.distribution_weight * (losses if weights is None else losses * weights).sum()

    @torch.no_grad()
    def _box_weights(
        self, logits: Sequence[Tensor], positive: Tensor, quality: Tensor, normalizer: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Weights (P,) of the positives in the losses of their boxes, and what to divide the weighted sum by."""
        if self.box_weighting == "none":
            return None, normalizer
        weights = quality if self.box_weighting == "quality" else _best_scores(logits, positive)
        # In float64: the sum, once rounded, does not depend on how the positives are spread over processes.
        in_pass = torch.stack([weights.sum(dtype=torch.float64), weights.new_tensor(len(weights), dtype=torch.float64)])
        total, count = all_sum(in_pass)
        return weights, (total * normalizer / count.clamp(min=1)).clamp(min=1).to(normalizer.dtype)


def _best_scores(logits: Sequence[Tensor], positive: Tensor) -> Tensor:
    """(P,) float32: the best class score of each positive, in the order of positive (N, R)."""
    sizes = [level.shape[1] for level in logits]
    best = torch.zeros_like(positive, dtype=torch.float32)
    for level, mask, row in zip(logits, positive.split(sizes, dim=1), best.split(sizes, dim=1), strict=True):
        row[mask] = level[mask].float().amax(dim=-1).sigmoid()  # `row` is a view of `best`
    return best[positive]
