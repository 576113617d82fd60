"""Anchors, boxes, and official assignments."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from longshot.losses import BACKGROUND, IGNORE


def square_anchors(size: int, stride: int, sides: tuple[float, ...]) -> Tensor:
    """(H * W * A, 4) square anchors of the given sides at the middles of the cells of a size x size image."""
    centers = torch.arange(stride / 2, size, stride)
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    half = torch.tensor(sides) / 2
    x, y = x.reshape(-1, 1), y.reshape(-1, 1)
    return torch.stack([x - half, y - half, x + half, y + half], dim=-1).view(-1, 4)


@pytest.fixture(scope="session")
def grid() -> Callable[[int, int, tuple[float, ...]], Tensor]:
    """See `square_anchors`."""
    return square_anchors


@pytest.fixture
def pyramid() -> list[Tensor]:
    """Three levels of a 128 x 128 image, A = 2; the coarsest has 32 anchors."""
    return [square_anchors(128, stride, (4.0 * stride, 6.0 * stride)) for stride in (8, 16, 32)]


@pytest.fixture(scope="session")
def random_boxes() -> Callable[..., Tensor]:
    """(count, seed, size of the image) -> (count, 4) boxes with sides of 10 to 80."""

    def draw(count: int, seed: int = 0, size: int = 128) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        sides = 10 + 70 * torch.rand(count, 2, generator=generator)
        corner = torch.rand(count, 2, generator=generator) * (size - sides)
        return torch.cat([corner, corner + sides], dim=1)

    return draw


class Official(NamedTuple):
    """An assignment of United-Perception, in our labels and boxes."""

    boxes: list[Tensor]  # per image, (G_i, 4)
    object_labels: list[Tensor]  # per image, (G_i,)
    ignore_boxes: list[Tensor]  # per image, (M_i, 4)
    labels: Tensor  # (N, R)
    arrays: dict[str, Tensor]

    def labels_of(self, matches: Tensor) -> Tensor:
        """(N, R) from matches (N, R)."""
        rows = zip(matches, self.object_labels, strict=True)
        return torch.stack([torch.cat([labels, torch.tensor([IGNORE, BACKGROUND])])[row] for row, labels in rows])


@pytest.fixture(scope="session")
def official() -> Callable[[str], Official]:
    """The assignment of a file in tests/fixtures, made by United-Perception (52aaeb9, on a CPU).

    Four images of 256 x 320: nine objects; 14 objects, two almost in one place, and an ignore region; an ignore region
    alone; four objects, the first 1 pixel wide. There, corners are inclusive, labels count from 1, 0 is background, and
    a row of zeros is none.
    """

    def read(name: str) -> Official:
        with np.load(Path(__file__).parents[2] / "fixtures" / f"{name}.npz") as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file}
        inclusive = torch.tensor([0.0, 0, 1, 1])
        objects = [arrays[f"gt_{i}"] for i in range(4)]
        objects = [rows[rows.any(dim=1)] for rows in objects]
        ignored = [arrays[f"ignore_{i}"] for i in range(4)]
        return Official(
            [rows[:, :4] + inclusive for rows in objects],
            [rows[:, 4].long() - 1 for rows in objects],
            [rows[rows.any(dim=1)] + inclusive for rows in ignored],
            arrays["cls_target"].long() - 1,
            arrays,
        )

    return read
