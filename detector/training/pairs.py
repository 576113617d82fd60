"""Objects against anchors, without a matrix of all objects by all anchors."""

from collections.abc import Iterator

from torch import Tensor

# Comparing a pair takes some 40 bytes.
PAIRS_AT_ONCE = 2**19


def objects_in_parts(boxes: Tensor, num_anchors: int) -> Iterator[tuple[int, Tensor]]:
    """Yields parts of (G, 4) boxes, with the index of their first, that are few enough to be compared with all anchors."""
    size = max(1, PAIRS_AT_ONCE // num_anchors)
    for first in range(0, len(boxes), size):
        yield first, boxes[first : first + size]
