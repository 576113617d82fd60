"""What is shown in place of an image that cannot be read."""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from torch import Tensor

from ..errors import DataError, UnreadableImage
from ..images.transforms import Region, View
from .dataset import Targets
from .scenes import Read, Tile, mean_color, pasted

MOST_TRIED = 20  # images in place of one; if none of so many can be read, it is not the images that are damaged


class SceneReader:
    """Reads the images of one scene, as `DetectionDataset.read` does, and remembers what it has shown."""

    def __init__(self, read: Read):
        self._read = read
        self.shown: list[int] = []  # images, in the order of reading
        self.unreadable: list[int] = []  # those that something else was shown for
        self.warnings: list[str] = []

    def __call__(self, index: int, view: View) -> tuple[Tensor, Targets]:
        """The image and its targets, or what is shown instead. Raises DataError if there is neither."""
        try:
            found = self._read(index, view)
        except UnreadableImage as error:
            found = self._instead(view, error)
            self.unreadable.append(index)
        else:
            self.shown.append(index)
        return found

    def _instead(self, view: View, error: UnreadableImage) -> tuple[Tensor, Targets]:
        raise NotImplementedError


class ShowingOthers(SceneReader):
    """Shows another image where one cannot be read.

    The padded sizes of a step are settled before an image is read, on every rank. So the other one is made to fit into the
    frame of the missing one, with the mean color around it.

    Args:
        others: images to try, one after the other.
        size_of: (height, width) of an image.
    """

    def __init__(self, read: Read, others: Iterator[int], size_of: Callable[[int], tuple[int, int]]):
        super().__init__(read)
        self._others, self._size_of = others, size_of

    def _instead(self, view: View, error: UnreadableImage) -> tuple[Tensor, Targets]:
        for index in islice(self._others, MOST_TRIED):
            self.warnings.append(f"{error}: another image is shown in its place")
            size = self._size_of(index)
            # The crop is of all; with one, boxes that become narrower than a pixel are left out.
            seen = View(fitting(size, view.size), view.flip, Region(0, 0, *size), view.colors)
            try:
                found = pasted(self._read, [Tile(index, seen)], view.size)
            except UnreadableImage as next_error:
                error = next_error
            else:
                self.shown.append(index)
                return found
        raise DataError(
            f"{error}; nor can {MOST_TRIED} in a row be read, each of which was to take the place of the last"
        )


class ShowingNothing(SceneReader):
    """Shows the mean color, without targets, where an image cannot be read: for evaluation.

    Another image would be scored in its place, and a score without the image would be that of another dataset. Without
    detections it can only lower the score.
    """

    def _instead(self, view: View, error: UnreadableImage) -> tuple[Tensor, Targets]:
        self.warnings.append(f"{error}: it is scored as an image in which nothing was detected")
        no_boxes = np.zeros((0, 4), np.float32)
        return mean_color(view.size), Targets(no_boxes, np.zeros(0, np.int64), no_boxes)


def fitting(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) of the shape of `size` in a frame; at least 1."""
    scale = min(most / side for most, side in zip(frame, size, strict=True))
    height, width = (min(most, max(1, round(scale * side))) for most, side in zip(frame, size, strict=True))
    return height, width
