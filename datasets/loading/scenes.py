"""What is shown at one position of the training stream: an image, a mosaic of four, either of them mixed with another.

A scene is drawn from the sizes of the images before one is read: every rank knows the padded size of a step, and any worker
draws the same.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from ..images.augmentation import Augmentation, Placed
from ..images.transforms import Region, View, draw_view
from .dataset import Targets
from .samplers import TrainingStream

# They set these random numbers apart from those of the samplers and of `draw_view`, 1 to 4.
_PARTNERS, _SCENE, _OTHERS = 5, 6, 7
_BLOCK = 4096  # positions of the stream: far more than a batch, and an epoch of LVIS has some 25 of them
Read = Callable[[int, View], tuple[Tensor, Targets]]  # as `DetectionDataset.read`
MEAN_COLOR = (124, 116, 104)  # ImageNet's, which is 0 after normalization, as padding is


class Tile(NamedTuple):
    """An image in a scene."""

    index: int  # in the dataset
    view: View
    corner: tuple[int, int] = (0, 0)  # top, left


class Scene(NamedTuple):
    """What to do with a few images."""

    size: tuple[int, int]  # height, width
    tiles: tuple[Tile, ...]  # one that fills the scene, or the four of a mosaic
    partner: Tile | None = None  # is mixed with all of this,
    weight: float = 1.0  # which keeps this weight

    @property
    def index(self) -> int:
        """The image that the scene stands for."""
        return self.tiles[0].index


def single(index: int, view: View) -> Scene:
    """A scene of one image."""
    return Scene(view.size, (Tile(index, view),))


def draw_scenes(
    stream: TrainingStream,
    step: int,
    *,
    size_of: Callable[[int], tuple[int, int]],
    augmentation: Augmentation,
    seed: int,
    short_sides: Sequence[int],
    long_side: int,
    flip: float,
) -> list[Scene]:
    """The scenes of a step, drawn at random: a function of these arguments and of nothing else.

    Args:
        size_of: (height, width) of an image.
        short_sides, long_side, flip: as of `draw_view`.
    """
    pairs = stream.step(step)
    mixes = augmentation.mosaic or augmentation.mixup
    partners = _partners(stream, [position for _, position in pairs], seed) if mixes else None
    scenes = []
    for number, (index, position) in enumerate(pairs):
        options = {"seed": seed, "position": position, "short_sides": short_sides, "long_side": long_side, "flip": flip}
        images = [(i, size_of(i)) for i in ([index, *partners[number]] if partners else [index])]
        scenes.append(_scene(images, augmentation, options))
    return scenes


def others_nearby(stream: TrainingStream, position: int, seed: int) -> Iterator[int]:
    """Images that may be shown in place of that of a position: endlessly many, drawn as `_partners` are."""
    random = np.random.default_rng((_OTHERS, seed, position))
    while True:
        yield int(stream.indices([_block(position) + random.integers(_BLOCK)])[0])


def _partners(stream: TrainingStream, positions: Sequence[int], seed: int) -> list[list[int]]:
    """Images that may be shown together with those of the positions; four for each.

    They come from the same few thousand positions of the stream, so that the sampler decides about partners too.
    """
    drawn = [
        _block(position) + np.random.default_rng((_PARTNERS, seed, position)).integers(_BLOCK, size=4)
        for position in positions
    ]
    return stream.indices(np.concatenate(drawn)).reshape(-1, 4).tolist()


def _block(position: int) -> int:
    """The first position of its block."""
    return position - position % _BLOCK


def _scene(images: Sequence[tuple[int, tuple[int, int]]], augmentation: Augmentation, options: dict[str, Any]) -> Scene:
    """A random scene of the first image, and of the others as may be; `options` are those of `draw_view`."""
    random = np.random.default_rng((_SCENE, options["seed"], options["position"]))
    mosaic, mixup, jitter = augmentation.mosaic, augmentation.mixup, augmentation.color_jitter

    def tile(index: int, placed: Placed) -> Tile:
        flipped = bool(random.random() < options["flip"])
        colors = jitter.draw(random) if jitter else None
        return Tile(index, View(placed.size, flipped, placed.part, colors), placed.corner)

    if mosaic and random.random() < mosaic.probability:
        indices, sizes = zip(*images[:4], strict=True)
        scene = Scene(mosaic.size, tuple(map(tile, indices, mosaic.draw(sizes, random))))
    else:
        index, size = images[0]
        scene = single(index, _view(size, augmentation, random, options))
    if mixup and random.random() < mixup.probability:
        index, size = images[4]
        placed, weight = mixup.draw(size, scene.size, random)
        scene = scene._replace(partner=tile(index, placed), weight=weight)
    return scene


def _view(size: tuple[int, int], augmentation: Augmentation, random: Generator, options: dict[str, Any]) -> View:
    """What is seen of an image that stands for itself."""
    crop = augmentation.crop.draw(size, random) if augmentation.crop else None
    view = draw_view(crop[2:] if crop else size, **options)
    if augmentation.large_scale_jitter:
        crop, seen = augmentation.large_scale_jitter.draw(crop or Region(0, 0, *size), random)
        view = view._replace(size=seen)
    jitter = augmentation.color_jitter
    return view._replace(crop=crop, colors=jitter.draw(random) if jitter else None)


def read_scene(read: Read, scene: Scene) -> tuple[Tensor, Targets]:
    """The pixels of a scene, (3, h, w) uint8, and the targets of all its images, NumPy arrays; raises as `read` does.

    Args:
        read: `DetectionDataset.read`, or what stands for it.
    """
    if len(scene.tiles) == 1:
        image, targets = read(scene.tiles[0].index, scene.tiles[0].view)
    else:
        image, targets = pasted(read, scene.tiles, scene.size)
    if scene.partner is None:
        return image, targets
    other, others = pasted(read, [scene.partner], scene.size)
    mixed = torch.lerp(other.float(), image.float(), scene.weight).round_().to(torch.uint8)
    return mixed, _joined([targets, others])


def pasted(read: Read, tiles: Sequence[Tile], size: tuple[int, int]) -> tuple[Tensor, Targets]:
    """The tiles on the mean color, and their targets; see `read_scene`."""
    canvas = mean_color(size)
    found = []
    for tile in tiles:
        (top, left), (height, width) = tile.corner, tile.view.size
        pixels, targets = read(tile.index, tile.view)
        canvas[:, top : top + height, left : left + width] = pixels
        shift = np.array([left, top, left, top], np.float32)
        boxes, ignore_boxes = targets.boxes + shift, targets.ignore_boxes + shift
        found.append(Targets(boxes, targets.labels, ignore_boxes))
    return canvas, _joined(found)


def mean_color(size: tuple[int, int]) -> Tensor:
    """A picture, (3, h, w) uint8, that shows as little as padding does."""
    return torch.tensor(MEAN_COLOR, dtype=torch.uint8).repeat(*size, 1).permute(2, 0, 1)


def _joined(targets: Sequence[Targets]) -> Targets:
    return Targets(*map(np.concatenate, zip(*targets, strict=True)))
