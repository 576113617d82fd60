import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from detector.training.matching import MATCHERS, ATSSMatcher, IoUMatcher, assign
from losses import BACKGROUND, IGNORE

NO_BOXES = torch.zeros(0, 4)


def grid(size: int, stride: int, sides: tuple[float, ...]) -> Tensor:
    """Square anchors of the given sides at the middles of the cells of a size x size image."""
    centers = torch.arange(stride / 2, size, stride)
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    half = torch.tensor(sides) / 2
    x, y = x.reshape(-1, 1), y.reshape(-1, 1)
    return torch.stack([x - half, y - half, x + half, y + half], dim=-1).view(-1, 4)


def pyramid(size: int = 128) -> list[Tensor]:
    """Three levels, A = 2; the coarsest has 32 anchors."""
    return [grid(size, stride, (4.0 * stride, 6.0 * stride)) for stride in (8, 16, 32)]


def random_boxes(count: int, seed: int = 0, size: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sides = 10 + 70 * torch.rand(count, 2, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (size - sides)
    return torch.cat([corner, corner + sides], dim=1)


def test_iou_thresholds_split_positive_ignored_and_background():
    # IoU with the object of width 10: 10/20, 10/21, 10/25, 10/26
    anchors = torch.tensor([[0.0, 0, 20, 1], [0, 0, 21, 1], [0, 0, 25, 1], [0, 0, 26, 1]])
    matches = IoUMatcher(positive=0.5, negative=0.4, low_quality=False)([anchors], torch.tensor([[0.0, 0, 10, 1]]))
    assert matches.tolist() == [0, IGNORE, IGNORE, BACKGROUND]


@pytest.mark.parametrize("low_quality", [True, False])
def test_iou_matches_equal_torchvision(low_quality):
    anchors, boxes = pyramid(), random_boxes(30)
    expected = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=low_quality)(box_iou(boxes, torch.cat(anchors)))
    matches = IoUMatcher(positive=0.5, negative=0.4, low_quality=low_quality)(anchors, boxes)
    assert torch.equal(matches, expected)
    assert {BACKGROUND, IGNORE} < set(matches.tolist())


def test_chunks_of_anchors_change_nothing():
    # 40,000 anchors are more than the 16,384 compared at a time.
    anchors, boxes = grid(1600, 8, (48.0,)), random_boxes(9, size=1600)
    expected = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(boxes, anchors))
    assert torch.equal(IoUMatcher()([anchors], boxes), expected)


def test_best_anchor_of_an_object_goes_to_its_own_best_object():
    # The anchor is the best of both objects, far below the threshold for the second; it overlaps the first more.
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0, 8, 10, 18]])
    assert IoUMatcher()([anchors], boxes).tolist() == [0, BACKGROUND]


def test_low_quality_matches_every_anchor_that_ties_for_best():
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [40, 0, 50, 10]])
    assert IoUMatcher()([anchors], torch.tensor([[8.0, 0, 12, 10]])).tolist() == [0, 0, BACKGROUND]


def test_object_that_overlaps_no_anchor_matches_none():
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10]])
    assert IoUMatcher()([anchors], torch.tensor([[80.0, 80, 90, 90]])).tolist() == [BACKGROUND, BACKGROUND]


def slow_atss(anchors: list[Tensor], boxes: Tensor, candidates: int) -> list[int]:
    """Algorithm 1 of the paper, one object at a time, in float64."""
    every_anchor = torch.cat(anchors).double()
    matches, match_iou = [BACKGROUND] * len(every_anchor), [0.0] * len(every_anchor)
    for index, box in enumerate(boxes.double()):
        chosen, first = [], 0
        for level in anchors:
            offset = (level[:, :2] + level[:, 2:] - box[:2] - box[2:]).double() / 2
            distances = [math.hypot(*row) for row in offset.tolist()]
            chosen += sorted(range(first, first + len(level)), key=lambda r: distances[r - first])[:candidates]
            first += len(level)
        iou = [box_iou(box[None], every_anchor[r][None]).item() for r in chosen]
        mean = sum(iou) / len(iou)
        threshold = mean + math.sqrt(sum((value - mean) ** 2 for value in iou) / (len(iou) - 1))
        for r, value in zip(chosen, iou, strict=True):
            x, y = ((every_anchor[r][:2] + every_anchor[r][2:]) / 2).tolist()
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if value >= threshold and inside and value > match_iou[r]:
                matches[r], match_iou[r] = index, value
    return matches


@pytest.mark.parametrize("seed", range(3))
def test_atss_equals_the_slow_algorithm(seed):
    # 18 of A = 2: the anchors of a location tie in distance, so an even number keeps the candidates unique.
    boxes = random_boxes(25, seed)
    boxes[1] = boxes[0] + 1.5  # two objects that want the same anchors
    expected = slow_atss(pyramid(), boxes, 18)
    assert ATSSMatcher(candidates=18)(pyramid(), boxes).tolist() == expected
    assert {0, 1} < set(expected)


def test_atss_takes_all_anchors_of_a_small_level():
    anchors = [torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]]), torch.tensor([[0.0, 0, 16, 16]])]
    # IoUs 1, 0 and 1/4: mean 0.417, deviation 0.520, so the exact anchor alone is above.
    assert ATSSMatcher(candidates=9)(anchors, torch.tensor([[0.0, 0, 8, 8]])).tolist() == [0, BACKGROUND, BACKGROUND]


def test_atss_with_one_candidate_matches_it():
    assert ATSSMatcher(candidates=9)([torch.tensor([[0.0, 0, 8, 8]])], torch.tensor([[0.0, 0, 8, 9]])).tolist() == [0]


def test_atss_needs_the_anchor_center_inside_the_object():
    anchors = [torch.tensor([[0.0, 0, 8, 8]])]
    assert ATSSMatcher()(anchors, torch.tensor([[3.98, 0, 12, 8]])).tolist() == [0]
    assert ATSSMatcher()(anchors, torch.tensor([[3.995, 0, 12, 8]])).tolist() == [BACKGROUND]


def test_atss_gives_a_contested_anchor_to_the_highest_iou_then_the_first_object():
    anchors = [torch.tensor([[0.0, 0, 8, 8]])]
    better_second = torch.tensor([[0.0, 0, 8, 6], [0, 0, 8, 7]])
    assert ATSSMatcher()(anchors, better_second).tolist() == [1]
    assert ATSSMatcher()(anchors, better_second.flip(0)).tolist() == [0]
    assert ATSSMatcher()(anchors, better_second[[1, 1]]).tolist() == [0]


def test_atss_distances_are_exact_far_from_the_origin():
    # Distances by matrix product would be off by 20 pixels here.
    shift = torch.full((4,), 2.0**16)
    boxes = random_boxes(30).round()
    near = ATSSMatcher(candidates=18)(pyramid(), boxes)
    assert torch.equal(ATSSMatcher(candidates=18)([level + shift for level in pyramid()], boxes + shift), near)


@pytest.mark.parametrize("name", MATCHERS)
def test_image_without_objects_is_background(name):
    matches = MATCHERS[name]()(pyramid(), NO_BOXES)
    assert matches.dtype == torch.int64
    assert (matches == BACKGROUND).all()


@pytest.mark.parametrize("name", MATCHERS)
def test_order_of_objects_changes_nothing_but_the_index(name):
    boxes, order = random_boxes(20), torch.randperm(20, generator=torch.Generator().manual_seed(0))
    matches, reordered = MATCHERS[name]()(pyramid(), boxes), MATCHERS[name]()(pyramid(), boxes[order])
    assert torch.equal(torch.where(reordered >= 0, order[reordered.clamp(min=0)], reordered), matches)


def test_unmatched_anchors_half_inside_one_ignore_box_are_ignored():
    # Shares of area in the ignore box x < 10: 1, 1/2, 4/10; the last anchor is shared by two boxes, 3/10 each.
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [6, 0, 16, 10], [40, 0, 50, 10]])
    ignore_boxes = torch.tensor([[-30.0, 0, 10, 90], [30, 0, 43, 10], [47, 0, 60, 10]])
    options = {"image_size": (100, 100), "ignore_padding": False}
    matches = assign(IoUMatcher(), [anchors], NO_BOXES, ignore_boxes, **options)
    assert matches.tolist() == [IGNORE, IGNORE, BACKGROUND, BACKGROUND]


def test_matched_anchors_are_never_ignored():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 20, 10, 30]])
    matches = assign(
        IoUMatcher(), [anchors], anchors[:1], torch.tensor([[0.0, 0, 50, 50]]), image_size=(5, 5), ignore_padding=True
    )
    assert matches.tolist() == [0, IGNORE]


@pytest.mark.parametrize(("ignore_padding", "outside"), [(False, BACKGROUND), (True, IGNORE)])
def test_anchors_centered_in_the_padding_are_negative_or_ignored(ignore_padding, outside):
    # Centers (5, 5), (25, 5), (5, 25), (20, 5) in an image 30 high and 20 wide.
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30], [15, 0, 25, 10]])
    matches = assign(
        IoUMatcher(), [anchors], NO_BOXES, NO_BOXES, image_size=(30, 20), ignore_padding=ignore_padding
    )  # fmt: skip
    assert matches.tolist() == [BACKGROUND, outside, BACKGROUND, outside]


def test_levels_keep_their_order():
    anchors = pyramid()
    exact = anchors[1][17:18]
    matches = assign(IoUMatcher(), anchors, exact, NO_BOXES, image_size=(128, 128), ignore_padding=False)
    assert matches[len(anchors[0]) + 17] == 0


@pytest.mark.parametrize(("positive", "negative"), [(0.4, 0.5), (1.5, 0.4), (0.5, 0.0)])
def test_impossible_thresholds_are_refused(positive, negative):
    with pytest.raises(ValueError, match=f"0 < negative <= positive <= 1; got {negative} and {positive}"):
        IoUMatcher(positive=positive, negative=negative)


def test_no_candidates_are_refused():
    with pytest.raises(ValueError, match="at least 1 candidate per level and object; got 0"):
        ATSSMatcher(candidates=0)
