import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from longshot.detector.matching import atss
from longshot.detector.matching.assign import assign
from longshot.detector.matching.atss import ATSSMatcher
from longshot.detector.matching.legacy import LegacyATSSMatcher
from longshot.detector.model.anchors import AnchorGenerator
from longshot.detector.model.boxes import decode, encode, intersection_over_union
from longshot.losses import BACKGROUND, IGNORE

STRIDES = (8, 16, 32, 64, 128)
UNIT = torch.tensor([[0.0, 0, 8, 8]])  # an anchor centered at (4, 4)


def match(anchors: list[Tensor], boxes, *, legacy: bool = False, **options) -> list[int]:
    """The matches of a single image."""
    return (LegacyATSSMatcher if legacy else ATSSMatcher)(**options)(anchors, [torch.as_tensor(boxes)])[0].tolist()


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


@pytest.mark.parametrize(("seed", "candidates"), [(0, 18), (1, 18), (2, 7), (3, 40)])
def test_atss_equals_the_slow_algorithm(seed, candidates, pyramid, random_boxes):
    boxes = random_boxes(25, seed)
    boxes[1] = boxes[0] + 1.5  # two objects that want the same anchors
    boxes[2:6] -= 60  # centers beyond the first row and column
    expected = slow_atss(pyramid, boxes, candidates)
    assert match(pyramid, boxes, candidates=candidates) == expected
    assert {0, 1} < set(expected)


@pytest.mark.parametrize("candidates", [3, 9, 18])
def test_of_equally_near_anchors_the_first_are_candidates(candidates, pyramid, random_boxes):
    # Sides and corners are multiples of 8, so that centers lie between two, four or more equally near locations.
    boxes = (random_boxes(25) / 8).round() * 8
    assert match(pyramid, boxes, candidates=candidates) == slow_atss(pyramid, boxes, candidates)


def test_the_first_anchor_of_a_location_is_a_candidate_whichever_way_its_corners_are_rounded():
    for shift in (-1e-3, 1e-3):
        anchors = [torch.cat([UNIT + shift, UNIT])]
        assert match(anchors, UNIT, candidates=1) == [0, BACKGROUND]


def test_maps_of_one_row_one_column_and_one_location():
    anchors = AnchorGenerator(strides=STRIDES, ratios=(1.0,), base_size=4.0, scales=(1.0,))
    for padded_size in ((8, 160), (160, 8), (8, 8)):
        levels = anchors(padded_size)
        boxes = torch.tensor([[0.0, 0, *reversed(padded_size)], [1, 1, 7, 7]])
        assert match(levels, boxes) == slow_atss(levels, boxes, 9)


def test_atss_takes_all_anchors_of_a_small_level():
    anchors = [torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]]), torch.tensor([[0.0, 0, 16, 16]])]
    # IoUs 1, 0 and 1/4: mean 0.417, deviation 0.520, so the exact anchor alone is above.
    assert match(anchors, UNIT, candidates=9) == [0, BACKGROUND, BACKGROUND]


def test_atss_with_one_candidate_matches_it():
    assert match([UNIT], [[0.0, 0, 8, 9]]) == [0]


def test_atss_needs_the_anchor_center_inside_the_object():
    assert match([UNIT], [[3.98, 0, 12, 8]]) == [0]
    assert match([UNIT], [[3.995, 0, 12, 8]]) == [BACKGROUND]


def test_atss_gives_a_contested_anchor_to_the_highest_iou_then_the_first_object():
    better_second = torch.tensor([[0.0, 0, 8, 6], [0, 0, 8, 7]])
    assert match([UNIT], better_second) == [1]
    assert match([UNIT], better_second.flip(0)) == [0]
    assert match([UNIT], better_second[[1, 1]]) == [0]


def test_atss_distances_are_exact_far_from_the_origin(pyramid, random_boxes):
    # Distances by matrix product would be off by 20 pixels here.
    shift = torch.full((4,), 2.0**16)
    boxes = random_boxes(30).round()
    near = match(pyramid, boxes, candidates=18)
    assert match([level + shift for level in pyramid], boxes + shift, candidates=18) == near


def test_images_of_a_batch_are_matched_as_if_alone(pyramid, random_boxes):
    images = [random_boxes(7), torch.zeros(0, 4), random_boxes(40, seed=1), random_boxes(1, seed=2), torch.zeros(0, 4)]
    matches = ATSSMatcher(candidates=18)(pyramid, images)
    assert matches.tolist() == [match(pyramid, boxes, candidates=18) for boxes in images]


@pytest.mark.parametrize("at_once", [1, 7])
def test_objects_compared_at_a_time_change_nothing(at_once, pyramid, random_boxes, monkeypatch):
    images = [random_boxes(20), random_boxes(15, seed=1)]
    together = ATSSMatcher(candidates=18)(pyramid, images)
    monkeypatch.setattr(atss, "OBJECTS_AT_ONCE", at_once)
    assert torch.equal(ATSSMatcher(candidates=18)(pyramid, images), together)


@pytest.mark.parametrize(
    "change",
    [
        lambda level: level[:-1],  # half a location
        lambda level: level[:-2],  # a row with a location less
        lambda level: level.view(16, 32, 4)[:, :31].reshape(-1, 4),  # the last location of each row has one anchor
        lambda level: level[torch.randperm(len(level), generator=torch.Generator().manual_seed(0))],
        lambda level: level + torch.arange(len(level))[:, None] // 32,  # each row starts farther right
    ],
)
def test_anchors_that_are_on_no_grid_are_refused(change, pyramid):
    level = change(pyramid[0])
    with pytest.raises(ValueError, match=f"the {len(level)} anchors of a level are not on a grid; expected rows of"):
        match([level, *pyramid[1:]], [[0.0, 0, 50, 50]])


def test_no_candidates_are_refused():
    with pytest.raises(ValueError, match="at least 1 candidate per level and object; got 0"):
        ATSSMatcher(candidates=0)


@pytest.fixture(scope="module")
def legacy(official):
    """`assign_atss_legacy_offset1`: anchors (R_l, 4) per level, matches with `legacy_offset` (N, R), the official result."""
    expected = official("assign_atss_legacy_offset1")
    anchors = AnchorGenerator(strides=STRIDES, base_size=1.0, ratios=(1.0,), scales=(6.0, 8.0))((256, 320))
    matches = assign(
        LegacyATSSMatcher(candidates=18), anchors, expected.boxes, expected.ignore_boxes,
        image_sizes=[(256, 320)] * 4, ignore_padding=False,
    )  # fmt: skip
    return anchors, matches, expected


def test_legacy_labels_are_the_official_ones(legacy):
    _, matches, expected = legacy
    assert torch.equal(expected.labels_of(matches), expected.labels)
    assert (expected.labels >= 0).sum() == 307
    assert (expected.labels == IGNORE).sum(dim=1).tolist() == [0, 406, 0, 0]  # not in the third image


def test_legacy_targets_are_the_official_ones(legacy):
    anchors, matches, (boxes, *_, arrays) = legacy
    objects = torch.cat([image[row[row >= 0]] for image, row in zip(boxes, matches, strict=True)])
    chosen = torch.cat(anchors).expand(4, -1, -1)[matches >= 0]
    torch.testing.assert_close(encode(objects, chosen), arrays["positive_loc_target"], rtol=0, atol=1e-6)
    iou = intersection_over_union(decode(arrays["positive_loc_pred"], chosen), objects)
    torch.testing.assert_close(iou, arrays["iou_target"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("box", [[3.48, 0, 12, 8], [-4, 0, 4.52, 8], [0, 3.48, 8, 12], [0, -4, 8, 4.52]])
def test_legacy_centers_are_half_a_pixel_farther_from_being_inside(box):
    nearer = torch.tensor([box]) + (0.015 if box[0] + box[1] > 0 else -0.015)  # 0.505 pixels instead of 0.52
    assert match([UNIT], [box], legacy=True) == [0]
    assert match([UNIT], nearer, legacy=True) == [BACKGROUND]
    assert match([UNIT], nearer) == [0]


@pytest.mark.parametrize("box", [[3.5, 0, 4.5, 8], [0, 3.5, 8, 4.5]])
def test_legacy_objects_of_one_pixel_match_nothing(box):
    assert match([UNIT], [box], legacy=True) == [BACKGROUND]
    assert match([UNIT], [box]) == [0]
    a_little_larger = torch.tensor([box]) + torch.tensor([-0.05, -0.05, 0.05, 0.05])
    assert match([UNIT], a_little_larger, legacy=True) == [0]
