import inspect

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from longshot.detector.matching import atss
from longshot.detector.matching.assign import MATCHERS, assign
from longshot.detector.matching.atss import ATSSMatcher
from longshot.detector.matching.iou import IoUMatcher
from longshot.detector.matching.legacy import LegacyATSSMatcher, LegacyIoUMatcher
from longshot.detector.model import boxes as box_arithmetic
from longshot.detector.model.boxes import encode
from longshot.losses import BACKGROUND, IGNORE

NO_BOXES = torch.zeros(0, 4)


def matcher_of(name: str):
    """With its default options, and what the program sets."""
    sizes = {"anchor_size": 4.0} if "anchor_size" in inspect.signature(MATCHERS[name]).parameters else {}
    return MATCHERS[name](**sizes)


def match(matcher, anchors: list[Tensor], boxes) -> list[int]:
    """The matches of a single image."""
    return matcher(anchors, [torch.as_tensor(boxes)])[0].tolist()


def assign_one(matcher, anchors, boxes, ignore_boxes, *, image_size=(100, 100), ignore_padding=False) -> list[int]:
    """The assignment of a single image."""
    sizes = {"image_sizes": [image_size], "ignore_padding": ignore_padding}
    return assign(matcher, anchors, [boxes], [ignore_boxes], **sizes)[0].tolist()


def test_iou_thresholds_split_positive_ignored_and_background():
    # IoU with the object of width 10: 10/20, 10/21, 10/25, 10/26
    anchors = torch.tensor([[0.0, 0, 20, 1], [0, 0, 21, 1], [0, 0, 25, 1], [0, 0, 26, 1]])
    matcher = IoUMatcher(positive=0.5, negative=0.4, low_quality=False)
    assert match(matcher, [anchors], [[0.0, 0, 10, 1]]) == [0, IGNORE, IGNORE, BACKGROUND]


@pytest.mark.parametrize("at_once", [2**19, 1])
@pytest.mark.parametrize("low_quality", [True, False])
def test_iou_matches_equal_torchvision(low_quality, at_once, pyramid, random_boxes, monkeypatch):
    monkeypatch.setattr(box_arithmetic, "PAIRS_AT_ONCE", at_once)  # all objects at a time, or one by one
    boxes = random_boxes(30).repeat(2, 1)  # every object has its equal
    expected = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=low_quality)(box_iou(boxes, torch.cat(pyramid)))
    matches = match(IoUMatcher(positive=0.5, negative=0.4, low_quality=low_quality), pyramid, boxes)
    assert matches == expected.tolist()
    assert {BACKGROUND, IGNORE} < set(matches)


def test_best_anchor_of_an_object_goes_to_its_own_best_object():
    # The anchor is the best of both objects, far below the threshold for the second; it overlaps the first more.
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    assert match(IoUMatcher(), [anchors], [[0.0, 0, 10, 9], [0, 8, 10, 18]]) == [0, BACKGROUND]


def test_low_quality_matches_every_anchor_that_ties_for_best():
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [40, 0, 50, 10]])
    assert match(IoUMatcher(), [anchors], [[8.0, 0, 12, 10]]) == [0, 0, BACKGROUND]


@pytest.mark.parametrize("legacy_offset", [False, True])
def test_object_that_overlaps_no_anchor_matches_none(legacy_offset):
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10]])
    matcher = (LegacyIoUMatcher if legacy_offset else IoUMatcher)()
    assert match(matcher, [anchors], [[80.0, 80, 90, 90]]) == [BACKGROUND, BACKGROUND]


def test_legacy_labels_are_the_official_ones(official):
    expected = official("assign_maxiou_9anchors_offset1")
    # A level's base anchors are those of its first cell, corners inclusive.
    anchors = [anchors_of_level(expected.arrays, level) for level in range(5)]
    sizes = {"image_sizes": [(256, 320)] * 4, "ignore_padding": False}
    matches = assign(LegacyIoUMatcher(), anchors, expected.boxes, expected.ignore_boxes, **sizes)
    labels = torch.where(expected.arrays["cls_mask"], expected.labels, IGNORE)
    assert torch.equal(expected.labels_of(matches), labels)
    objects = torch.cat([image[row[row >= 0]] for image, row in zip(expected.boxes, matches, strict=True)])
    deltas = encode(objects, torch.cat(anchors).expand(4, -1, -1)[matches >= 0])
    torch.testing.assert_close(deltas, expected.arrays["positive_loc_target"], rtol=0, atol=1e-6)
    # Without: two anchors a thousandth below the best of their object, and three on the object of 1 pixel.
    modern = assign(IoUMatcher(), anchors, expected.boxes, expected.ignore_boxes, **sizes)
    assert (expected.labels_of(modern) != labels).sum(dim=1).tolist() == [0, 2, 0, 3]


def anchors_of_level(arrays: dict[str, Tensor], level: int) -> Tensor:
    """(R_l, 4) continuous boxes."""
    base, stride = arrays[f"base_anchors_l{level}"], int(arrays["strides"][level])
    height, width = arrays["level_hw"][level].tolist()
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    shift = torch.stack([x, y, x, y], dim=-1)[:, :, None]
    return (shift + base).view(-1, 4) + torch.tensor([0, 0, 1, 1])


def test_legacy_iou_of_the_threshold_is_not_enough():
    anchors = torch.tensor([[0.0, 0, 20, 2]])
    for legacy_offset, expected in ((False, 0), (True, IGNORE)):
        matcher = (LegacyIoUMatcher if legacy_offset else IoUMatcher)(low_quality=False)
        assert match(matcher, [anchors], [[0.0, 0, 10, 2]]) == [expected]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", MATCHERS)
def test_image_without_objects_is_background(name, pyramid, random_boxes):
    matches = matcher_of(name)(pyramid, [NO_BOXES, random_boxes(3), NO_BOXES])
    assert matches.dtype == torch.int64
    assert (matches[[0, 2]] == BACKGROUND).all()
    assert (matches[1] >= 0).any()
    assert torch.equal(matcher_of(name)(pyramid, [NO_BOXES]), matches[:1])


@pytest.mark.parametrize("name", MATCHERS)
def test_order_of_objects_changes_nothing_but_the_index(name, pyramid, random_boxes):
    boxes, order = random_boxes(20), torch.randperm(20, generator=torch.Generator().manual_seed(0))
    matches, reordered = matcher_of(name)(pyramid, [boxes, boxes[order]])
    assert torch.equal(torch.where(reordered >= 0, order[reordered.clamp(min=0)], reordered), matches)


class LargestTensor(TorchDispatchMode):
    """How many entries the largest tensor has that was made."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
        return made


@pytest.mark.parametrize("name", MATCHERS)
def test_no_tensor_holds_all_pairs_of_objects_and_anchors(name, grid, random_boxes, monkeypatch):
    monkeypatch.setattr(box_arithmetic, "PAIRS_AT_ONCE", 2**16)
    anchors = [grid(512, 8, (32.0, 48.0)), grid(512, 32, (128.0, 192.0))]  # R = 8,704
    boxes, ignored = random_boxes(300, size=512), random_boxes(300, seed=1, size=512)
    with LargestTensor() as largest:
        assign(matcher_of(name), anchors, [boxes], [ignored], image_sizes=[(512, 512)], ignore_padding=True)
    assert largest.entries <= 4 * 2**16 < 300 * 8_704 / 9


def test_atss_holds_the_candidates_of_a_few_objects_at_a_time(grid, random_boxes, monkeypatch):
    anchors, boxes = [grid(512, 8, (32.0, 48.0)), grid(512, 32, (128.0, 192.0))], random_boxes(3000, size=512)
    largest = []
    for at_once in (3000, 64):
        monkeypatch.setattr(atss, "OBJECTS_AT_ONCE", at_once)
        with LargestTensor() as of_these:
            ATSSMatcher()(anchors, [boxes])
        largest.append(of_these.entries)
    assert largest[1] < 2**16 < largest[0] / 2


@pytest.mark.parametrize("at_once", [2**19, 1])
def test_unmatched_anchors_half_inside_one_ignore_box_are_ignored(at_once, monkeypatch):
    monkeypatch.setattr(box_arithmetic, "PAIRS_AT_ONCE", at_once)
    # Shares of area in the ignore box x < 10: 1, 1/2, 4/10; the last anchor is shared by two boxes, 3/10 each.
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [6, 0, 16, 10], [40, 0, 50, 10]])
    ignore_boxes = torch.tensor([[-30.0, 0, 10, 90], [30, 0, 43, 10], [47, 0, 60, 10]])
    labels = assign_one(IoUMatcher(), [anchors], NO_BOXES, ignore_boxes)
    assert labels == [IGNORE, IGNORE, BACKGROUND, BACKGROUND]


def test_matched_anchors_are_not_ignored():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 20, 10, 30]])
    everywhere = torch.tensor([[0.0, 0, 50, 50]])
    labels = assign_one(IoUMatcher(), [anchors], anchors[:1], everywhere, image_size=(5, 5), ignore_padding=True)
    assert labels == [0, IGNORE]


def test_legacy_atss_ignores_anchors_centered_in_an_ignore_box():
    # Legacy centers at x = 4.5, 14.5, 24.5 and y = 4.5. The box reaches from 4.495 to 14.5, inclusive; 14.5 is not inside.
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]])
    ignore_boxes = torch.tensor([[4.495, 4.0, 15.5, 6.0]])
    legacy = LegacyATSSMatcher(candidates=1)
    assert assign_one(legacy, [anchors], anchors[:1], ignore_boxes) == [IGNORE, BACKGROUND, BACKGROUND]
    assert assign_one(legacy, [anchors], anchors[:1], ignore_boxes + 10) == [0, BACKGROUND, BACKGROUND]
    assert assign_one(legacy, [anchors], anchors[:1], NO_BOXES) == [0, BACKGROUND, BACKGROUND]
    assert assign_one(ATSSMatcher(candidates=1), [anchors], anchors[:1], ignore_boxes) == [0, BACKGROUND, BACKGROUND]


@pytest.mark.parametrize("corner", [0.0, 3.3, 1000.3])
def test_legacy_atss_ignores_nothing_in_images_without_objects(corner):
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10]])
    everywhere = torch.tensor([[0.0, 0, 50, 50]])
    # An object 1 pixel wide is none; in float32 its side is a little more than 1 at 3.3.
    thin = torch.tensor([[0.0, 0, 1, 9]]) + corner
    legacy = LegacyATSSMatcher()
    for boxes in (NO_BOXES, thin):
        assert assign_one(legacy, [anchors], boxes, everywhere) == [BACKGROUND, BACKGROUND]
        assert assign_one(ATSSMatcher(), [anchors], boxes, everywhere) == [IGNORE, IGNORE]
    assert assign_one(legacy, [anchors], thin + torch.tensor([0, 0, 0.1, 0]), everywhere) == [IGNORE, IGNORE]


@pytest.mark.parametrize(("ignore_padding", "outside"), [(False, BACKGROUND), (True, IGNORE)])
def test_anchors_centered_in_the_padding_are_negative_or_ignored(ignore_padding, outside):
    # Centers (5, 5), (25, 5), (5, 25), (20, 5) in an image 30 high and 20 wide.
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30], [15, 0, 25, 10]])
    labels = assign_one(
        IoUMatcher(), [anchors], NO_BOXES, NO_BOXES, image_size=(30, 20), ignore_padding=ignore_padding
    )  # fmt: skip
    assert labels == [BACKGROUND, outside, BACKGROUND, outside]


def test_each_image_has_its_own_boxes_and_size():
    anchors = [torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]])]
    boxes, ignored, sizes = [anchors[0][[1]], NO_BOXES], [NO_BOXES, anchors[0][:1]], [(10, 30), (10, 20)]
    labels = assign(IoUMatcher(), anchors, boxes, ignored, image_sizes=sizes, ignore_padding=True)
    assert labels.tolist() == [[BACKGROUND, 0, BACKGROUND], [IGNORE, BACKGROUND, IGNORE]]


def test_levels_keep_their_order(pyramid):
    labels = assign_one(IoUMatcher(), pyramid, pyramid[1][17:18], NO_BOXES)
    assert labels[len(pyramid[0]) + 17] == 0


@pytest.mark.parametrize(("positive", "negative"), [(0.4, 0.5), (1.5, 0.4), (0.5, 0.0)])
def test_impossible_thresholds_are_refused(positive, negative):
    with pytest.raises(ValueError, match=f"0 < negative <= positive <= 1; got {negative} and {positive}"):
        IoUMatcher(positive=positive, negative=negative)
