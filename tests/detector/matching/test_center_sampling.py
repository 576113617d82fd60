import math

import pytest
import torch
from torch import Tensor

from longshot.detector.matching.center_sampling import CenterSamplingMatcher
from longshot.detector.model import boxes as box_arithmetic
from longshot.losses import BACKGROUND

STRIDES = (8, 16, 32, 64, 128)
SIDE = 6.0  # of the anchors, in strides


@pytest.fixture
def points(grid) -> list[Tensor]:
    """Five levels of a 640 x 640 image, one anchor per location."""
    return [grid(640, stride, (SIDE * stride,)) for stride in STRIDES]


def match(points: list[Tensor], boxes, **options) -> list[int]:
    """The matches of a single image."""
    return CenterSamplingMatcher(anchor_size=SIDE, **options)(points, [torch.as_tensor(boxes)])[0].tolist()


def slow_center_sampling(points: list[Tensor], boxes: Tensor, radius: float) -> list[int]:
    """A point and an object at a time, with the paper's ranges as it prints them."""
    ranges = [(-1, 64), (64, 128), (128, 256), (256, 512), (512, math.inf)]
    matches = []
    for stride, (low, high), level in zip(STRIDES, ranges, points, strict=True):
        for anchor in level.tolist():
            x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
            match, smallest = BACKGROUND, math.inf
            for index, (left, top, right, bottom) in enumerate(boxes.tolist()):
                middle_x, middle_y, reach = (left + right) / 2, (top + bottom) / 2, radius * stride
                in_box = max(left, middle_x - reach) < x < min(right, middle_x + reach) and (
                    max(top, middle_y - reach) < y < min(bottom, middle_y + reach)
                )
                in_range = low < max(x - left, y - top, right - x, bottom - y) <= high
                area = (right - left) * (bottom - top)
                if in_box and in_range and area < smallest:
                    match, smallest = index, area
            matches.append(match)
    return matches


def boxes_of_all_sizes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sides = 4 * 150 ** torch.rand(count, 2, generator=generator)  # 4 to 600
    corner = torch.rand(count, 2, generator=generator) * (640 - sides)
    return torch.cat([corner, corner + sides], dim=1)


@pytest.mark.parametrize(("seed", "radius"), [(0, 1.5), (1, 1.5), (2, 0.6), (3, 100.0)])
def test_center_sampling_equals_the_slow_double_loop(seed, radius, points):
    boxes = boxes_of_all_sizes(40, seed)
    expected = slow_center_sampling(points, boxes, radius)
    assert match(points, boxes, radius=radius) == expected
    assert len(set(expected)) > 20


def levels_of(points: list[Tensor], matches: list[int]) -> list[int]:
    return [int((row >= 0).sum()) for row in torch.tensor(matches).split([len(level) for level in points])]


def test_points_within_the_radius_by_hand(points):
    # 12 pixels at stride 8, where points are at 92, 100, 108; 24 at stride 16, where they are at 88, 104, 120.
    # Centered at (100, 100) with sides 60 away. On the fine level those are 68 away from all points but the middle one,
    # too far; on the coarse one 64 from the point (104, 104), too near.
    assert levels_of(points, match(points, [[40.0, 40, 160, 160]])) == [1, 8, 0, 0, 0]
    # Centered at (98, 100) with sides 50 away: only x or y of 120 are far enough for the coarse level.
    assert levels_of(points, match(points, [[48.0, 50, 148, 150]])) == [9, 5, 0, 0, 0]
    assert levels_of(points, match(points, [[48.0, 50, 148, 150]], radius=0.9)) == [2, 0, 0, 0, 0]
    # Only x of 100 is in the box, on the fine level.
    assert levels_of(points, match(points, [[96.0, 50, 104, 150]])) == [3, 0, 0, 0, 0]


def test_limits_of_levels_belong_to_the_finer_level():
    # One point at (0, 0) for each stride; a box whose farthest side is `reach` away.
    levels = [torch.tensor([[-1.0, -1, 1, 1]]) * SIDE / 2 * stride for stride in STRIDES]
    for reach, level in ((2, 0), (64, 0), (64.5, 1), (128, 1), (129, 2), (256, 2), (512, 3), (513, 4), (5000, 4)):
        matches = match(levels, [[-1.0, -1, 1, reach]], radius=1000.0)
        assert matches == [0 if i == level else BACKGROUND for i in range(5)], reach


def test_a_single_level_takes_objects_of_all_sizes(grid):
    levels = [grid(640, 32, (SIDE * 32,))]
    assert match(levels, [[0.0, 0, 640, 640]]).count(0) == 4
    assert match(levels, [[14.0, 14, 18, 18]]).count(0) == 1


def test_a_contested_point_goes_to_the_smallest_object_then_the_first(points):
    boxes = torch.tensor([[50.0, 50, 150, 150], [60, 60, 140, 140], [60, 60, 140, 140]])
    assert set(match(points, boxes)[: len(points[0])]) == {BACKGROUND, 1}
    assert set(match(points, boxes.flip(0))[: len(points[0])]) == {BACKGROUND, 0}


def test_points_on_the_side_of_an_object_are_outside(points):
    # x of 108 and 116, but not of 100; y of 92, 100 and 108
    assert levels_of(points, match(points, [[100.0, 90, 120, 110]])) == [2 * 3, 0, 0, 0, 0]


def test_images_of_a_batch_are_matched_as_if_alone(points):
    images = [boxes_of_all_sizes(9, 0), torch.zeros(0, 4), boxes_of_all_sizes(30, 1)]
    matches = CenterSamplingMatcher(anchor_size=SIDE)(points, images)
    assert matches.tolist() == [match(points, boxes) for boxes in images]


def test_objects_compared_at_a_time_change_nothing(points, monkeypatch):
    boxes = torch.cat([boxes_of_all_sizes(20, 0)] * 2)
    together = match(points, boxes)
    monkeypatch.setattr(box_arithmetic, "PAIRS_AT_ONCE", 1)
    assert match(points, boxes) == together


def test_a_radius_of_nothing_is_refused():
    with pytest.raises(ValueError, match="needs a radius above 0 strides; got 0"):
        CenterSamplingMatcher(radius=0.0, anchor_size=8.0)
