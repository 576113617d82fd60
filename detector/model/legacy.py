"""Detections of models of the time when a box from x1 to x2 was x2 - x1 + 1 wide (`model.legacy_offset`).

Boxes are ours: a pixel-inclusive box [x1, y1, x2, y2] is [x1, y1, x2 + 1, y2 + 1].
"""

import torch
from torch import Tensor

from .postprocess import Detections, Postprocess, scale_of


class LegacyPostprocess(Postprocess):
    """As United-Perception selects: boxes are clipped to the pixels of the image, and empty ones are no candidates."""

    def rescale(self, detections: Detections, from_size: tuple[int, int], to_size: tuple[int, int]) -> Detections:
        """Detections in the pixels of another size; the first and the last pixel of a box are scaled, not its edges."""
        scale = scale_of(detections.boxes, from_size, to_size)
        last = detections.boxes.new_tensor([0, 0, 1, 1])  # from the last pixel to the edge
        return detections._replace(boxes=(detections.boxes - last) * scale + last)

    def _factors(
        self, deltas: Tensor, quality: Tensor, anchors: Tensor, image_size: tuple[int, int]
    ) -> tuple[Tensor, int]:
        factors, _ = super()._factors(deltas, quality, anchors, image_size)
        boxes = self._boxes(deltas, anchors, image_size)
        usable = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        # Without any usable anchor all scores are 0, which is above no threshold.
        return factors * usable, max(1, int(usable.sum()))

    def _boxes(self, deltas: Tensor, anchors: Tensor, image_size: tuple[int, int]) -> Tensor:
        return clip_to_pixels(self.coding.decode(deltas.float(), anchors), image_size)


def clip_to_pixels(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) with their first and last pixel moved into the image: one beyond it keeps a pixel at the border."""
    height, width = image_size
    left, top, right, bottom = boxes.unbind(-1)
    first, last = (left.clamp(0, width - 1), top.clamp(0, height - 1)), (right.clamp(1, width), bottom.clamp(1, height))
    return torch.stack((*first, *last), dim=-1)
