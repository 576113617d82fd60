"""What goes into which image of the emoji dataset, decided before anything is drawn, so that counts hold exactly."""

from typing import NamedTuple

import numpy as np

# Images per category of LVIS v1 train (1,203 categories) at the quantiles 0, 5, 10, ... 100 %.
LVIS_IMAGE_COUNTS = (1, 1, 3, 4, 6, 9, 12, 16, 22, 29, 37, 49, 66, 95, 130, 221, 354, 717, 1395, 1872, 1977)

_FILL = 0.75  # of the places that images offer on average, how many the planned counts take
_REPEAT = 0.15  # probability that a category which is in an image is there once more
_HIDE = 0.5  # federated: probability that an image has an object that is not annotated
_LISTED_ABSENT = 10  # federated: absent categories that an image lists as such, about as many as in LVIS


class PlannedImage(NamedTuple):
    labels: np.ndarray  # (G,) int64 in [0, K): the annotated objects
    hidden: np.ndarray  # (U,) int64 in [0, K): objects that are drawn and not annotated
    absent: np.ndarray  # (B,) int64 in [0, K), ascending: categories that the annotations say are not in the image


def plan_train(counts: np.ndarray, images: int, *, max_objects: int, rng: np.random.Generator) -> list[PlannedImage]:
    """Every object annotated. Few absent categories are listed: lists of all would be longer than all the rest."""
    nothing = np.zeros(0, np.int64)
    contents = assign_images(counts, images, max_objects, rng)
    return [PlannedImage(labels, nothing, _absent(labels, len(counts), rng, _LISTED_ABSENT)) for labels in contents]


def plan_val(
    counts: np.ndarray, images: int, *, max_objects: int, federated: bool, rng: np.random.Generator
) -> list[PlannedImage]:
    """Every object annotated and every absent category listed; or, federated, only part of both.

    A hidden object is of a category that the image has annotated objects of (not annotated exhaustively, then) or of
    one that the annotations neither have nor list as absent.
    """
    plan = []
    for labels in assign_images(counts, images, max_objects, rng):
        hidden = _hidden(labels, len(counts), rng) if federated else np.zeros(0, np.int64)
        present = np.concatenate([labels, hidden])
        absent = _absent(present, len(counts), rng, _LISTED_ABSENT if federated else len(counts))
        plan.append(PlannedImage(labels, hidden, absent))
    return plan


def _hidden(labels: np.ndarray, categories: int, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= _HIDE:
        return np.zeros(0, np.int64)
    return rng.choice(labels if len(labels) and rng.random() < 0.5 else categories, 1)


def _absent(present: np.ndarray, categories: int, rng: np.random.Generator, limit: int) -> np.ndarray:
    absent = np.setdiff1d(np.arange(categories), present)
    return np.sort(rng.choice(absent, min(limit, len(absent)), replace=False))


def tail_counts(categories: int, scale: float) -> np.ndarray:
    """Images per category (K,) int64, ascending: LVIS's quantiles, interpolated in the logarithm, times `scale`.

    No count is below 1.
    """
    quantiles = np.linspace(0, 1, categories)
    logs = np.interp(quantiles, np.linspace(0, 1, len(LVIS_IMAGE_COUNTS)), np.log(LVIS_IMAGE_COUNTS))
    return np.maximum(1, np.rint(scale * np.exp(logs))).astype(np.int64)


def fitting_scale(categories: int, images: int, max_objects: int) -> float:
    """The largest scale at which the counts take the usual share of the places and none is above half the images."""
    scale = images / 2 / LVIS_IMAGE_COUNTS[-1]
    while tail_counts(categories, scale).sum() > _places(images, max_objects) and scale > 1e-6:
        scale *= 0.99
    return scale


def even_counts(categories: int, images: int, max_objects: int) -> np.ndarray:
    """Images per category (K,) int64, all equal, that take the usual share of the places; at least 1."""
    return np.full(categories, min(images, max(1, _places(images, max_objects) // categories)))


def _places(images: int, max_objects: int) -> int:
    # Images are planned for 1 to max_objects categories, each number equally often.
    return int(_FILL * images * (1 + max_objects) / 2)


def assign_images(counts: np.ndarray, images: int, max_objects: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The labels of each image's objects: label k is in exactly counts[k] images, now and then more than once.

    Args:
        counts: (K,) int64, images per category.

    Returns:
        One int64 array per image, of 0 to max_objects labels in random order.

    Raises:
        ValueError: the counts might not fit into so many images of at most max_objects objects.
    """
    order = np.argsort(-counts, kind="stable")
    taken = np.cumsum(counts[order]) - counts[order]
    # While `taken` places are occupied, at most taken // max_objects images are full: what must hold in the loop.
    if (counts[order] > images - taken // max_objects).any():
        raise ValueError(
            f"the counts of {len(counts)} categories ask for {counts.sum()} places (one category: {counts.max()}), "
            f"more than {images} images of at most {max_objects} objects surely have; "
            "draw more images, fewer categories or a smaller count_scale"
        )
    room = rng.integers(1, max_objects + 1, images)
    contents: list[list[int]] = [[] for _ in range(images)]
    for label in order:
        if (room > 0).sum() < counts[label]:
            room = np.array([max_objects - len(content) for content in contents])
        for index in rng.choice(images, counts[label], replace=False, p=room / room.sum()):
            contents[index].append(int(label))
            room[index] -= 1
    return [_with_repeats(content, max_objects, rng) for content in contents]


def _with_repeats(labels: list[int], max_objects: int, rng: np.random.Generator) -> np.ndarray:
    copies = rng.geometric(1 - _REPEAT, len(labels)) - 1
    repeated = np.repeat(np.array(labels, np.int64), copies)[: max_objects - len(labels)]
    return rng.permutation(np.concatenate([np.array(labels, np.int64), repeated]))
