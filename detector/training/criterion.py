"""From head outputs to losses: assignment of anchors to objects, then classification and box loss."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from datasets.loader import Targets

from ..model.boxes import decode, encode, intersection_over_union
from ..model.retinanet import HeadOutputs
from .matching import assign


class Assignment(NamedTuple):
    """What each anchor of N images is to learn."""

    labels: Tensor  # (N, R) int64: class of the matched object, BACKGROUND or IGNORE
    boxes: Tensor  # (P, 4) the objects of the P positive anchors, in the order of labels[labels >= 0]


class Criterion(nn.Module):
    """The losses of a dense detector. Lives outside DDP; its state (EFL's gradients) belongs into checkpoints.

    Args:
        classification: called with (N, R_l, K) logits and (N, R_l) labels per level; returns a sum over all of them.
            If it `uses_quality`, also with (N, R_l) per level: at positives, the IoU of the decoded box with its object.
        box: called with (P, 4) predictions and targets of the positives; returns a sum. Its `on_deltas` tells whether
            it compares deltas or decoded boxes.
        matcher: called with the anchors of the levels and the (G, 4) boxes of an image; returns (R,) object indices,
            BACKGROUND or IGNORE.
        ignore_padding: anchors centered outside the image, in the padding of the batch, are ignored, not negative.
    """

    def __init__(self, classification: nn.Module, box: nn.Module, matcher: Callable, *, ignore_padding: bool = False):
        super().__init__()
        self.classification = classification
        self.box = box
        self.matcher = matcher
        self.ignore_padding = ignore_padding

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
        labels, boxes = [], []
        for target, image_size in zip(targets, image_sizes, strict=True):
            matches = assign(
                self.matcher, anchors, target.boxes, target.ignore_boxes,
                image_size=image_size, ignore_padding=self.ignore_padding,
            )  # fmt: skip
            positive = matches >= 0
            image_labels = matches.clone()
            image_labels[positive] = target.labels[matches[positive]]
            labels.append(image_labels)
            boxes.append(target.boxes[matches[positive]])
        return Assignment(torch.stack(labels), torch.cat(boxes))

    def forward(
        self, outputs: HeadOutputs, anchors: Sequence[Tensor], assignment: Assignment, normalizer: Tensor
    ) -> dict[str, Tensor]:
        """The weighted losses `classification` and `box`, each summed over this pass and divided by `normalizer`.

        Args:
            outputs: logits (N, R_l, K) and deltas (N, R_l, 4) per level.
            anchors: (R_l, 4) per level.
            assignment: of the same N images.
            normalizer: number of positives in the whole step, over all ranks and passes, at least 1.
        """
        positive = assignment.labels >= 0
        deltas = torch.cat(outputs.deltas, dim=1)[positive].float()
        positive_anchors = torch.cat(list(anchors)).expand(len(positive), -1, -1)[positive]
        boxes = decode(deltas, positive_anchors)
        if self.box.on_deltas:
            box = self.box(deltas, encode(assignment.boxes, positive_anchors))
        else:
            box = self.box(boxes, assignment.boxes)
        targets = [assignment.labels]
        if self.classification.uses_quality:
            quality = torch.zeros_like(assignment.labels, dtype=boxes.dtype)
            quality[positive] = intersection_over_union(boxes.detach(), assignment.boxes)
            targets.append(quality)
        per_level = (target.split([level.shape[0] for level in anchors], dim=1) for target in targets)
        classification = self.classification(outputs.logits, *per_level)
        return {"classification": classification / normalizer, "box": box / normalizer}
