"""Which (anchor, class) pairs become candidates, with quality, limits and extreme outputs, and the legacy box convention."""

import pytest
import torch
from torchvision.ops import box_iou

from longshot.detector.model.boxes import DistanceCoding, encode
from longshot.detector.model.head import HeadOutputs
from longshot.detector.model.legacy import LegacyPostprocess
from longshot.detector.model.postprocess import Detections, Postprocess

SIZE = (100, 200)
EVERYTHING = {"score_threshold": 0.0, "nms_threshold": 1.0, "detections_per_image": 100_000}


def found_in(logits, boxes, quality=None, *, kind=Postprocess, image_size=SIZE, **options) -> Detections:
    """Of one image and one level: logits (R, K), boxes (R, 4) that are decoded exactly, quality (R,)."""
    quality = None if quality is None else [torch.as_tensor(quality)[None]]
    outputs = HeadOutputs([torch.as_tensor(logits)[None]], [torch.zeros(1, len(boxes), 4)], quality)
    return kind(**options)(outputs, [torch.as_tensor(boxes)], [image_size])[0]


def apart(count: int) -> torch.Tensor:
    """Boxes that do not overlap and tell which anchor is theirs: anchor r begins at x = r / 8."""
    left = torch.arange(count) / 8
    return torch.stack((left, torch.zeros(count), left + 1 / 16, torch.ones(count)), dim=1)


def anchors_of(found: Detections) -> torch.Tensor:
    return (found.boxes[:, 0] * 8).long()


@pytest.mark.parametrize(
    "num_anchors", [3, 40, 1500]
)  # fewer than candidates, so that parts of an anchor's classes count
@pytest.mark.parametrize("count", [1, 7, 100, 20_000])  # candidates; the last: all pairs
@pytest.mark.parametrize("with_quality", [False, True], ids=["plain", "quality"])
def test_candidates_are_the_best_of_all_products(num_anchors, count, with_quality):
    torch.manual_seed(0)
    logits, quality = torch.randn(num_anchors, 13) * 3 - 4, torch.randn(num_anchors) * 3
    scores = logits.double().sigmoid()
    if with_quality:
        scores *= quality.double().sigmoid()[:, None]
    found = found_in(
        logits, apart(num_anchors), quality if with_quality else None, candidates_per_level=count, **EVERYTHING
    )
    best = scores.flatten().sort(descending=True).values[:count]
    torch.testing.assert_close(found.scores.double(), best, rtol=1e-6, atol=0)
    torch.testing.assert_close(scores[anchors_of(found), found.labels], best, rtol=1e-6, atol=0)
    assert (anchors_of(found) * 13 + found.labels).unique().numel() == len(best)


def test_quality_decides_which_anchor_is_a_candidate():
    # 0.9 * 0.2 = 0.18 and 0.6 * 0.5 = 0.3
    found = found_in(
        torch.tensor([[0.9], [0.6]]).logit(), apart(2), torch.tensor([0.2, 0.5]).logit(), candidates_per_level=1
    )
    assert anchors_of(found).tolist() == [1]
    torch.testing.assert_close(found.scores, torch.tensor([0.3]))


def test_the_threshold_is_one_of_products():
    scores, quality = torch.tensor([[0.9], [0.6]]), torch.tensor([0.2, 0.5])  # products 0.18 and 0.3
    found = found_in(scores.logit(), apart(2), quality.logit(), score_threshold=0.2)
    assert anchors_of(found).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saturated_outputs_are_ranked_and_finite(dtype):
    logits = torch.tensor([[6e4, -6e4], [80.0, 3.0], [-6e4, -6e4], [2.0, -80.0], [6e4, 1.0]], dtype=dtype)
    quality = torch.tensor([6e4, 3.0, 6e4, 1.0, -6e4], dtype=dtype)
    scores = logits.double().sigmoid() * quality.double().sigmoid()[:, None]
    found = found_in(logits, apart(5), quality, **EVERYTHING)
    assert anchors_of(found).tolist() == [0, 1, 1, 3, 3]  # scores of e-60000 are 0, and not above the threshold
    torch.testing.assert_close(found.scores, scores[[0, 1, 1, 3, 3], [0, 0, 1, 0, 1]].float(), rtol=1e-5, atol=1e-36)
    for count, anchors in ((1, [0]), (2, [0, 1]), (4, [0, 1, 1, 3])):
        assert (
            anchors_of(found_in(logits, apart(5), quality, candidates_per_level=count, **EVERYTHING)).tolist()
            == anchors
        )


def test_equal_outputs_still_fill_the_candidates():
    found = found_in(torch.full((50, 6), -6.9), apart(50), candidates_per_level=70, **EVERYTHING)
    assert len({*zip(anchors_of(found).tolist(), found.labels.tolist(), strict=True)}) == 70


@pytest.mark.parametrize(("candidates", "left"), [(2, 2), (9, 3)])
def test_a_level_may_be_limited_to_as_many_pairs_as_anchors(candidates, left):
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    found = found_in(logits, apart(3), limit_to_anchors=True, candidates_per_level=candidates, **EVERYTHING)
    torch.testing.assert_close(found.scores, logits.flatten().sort(descending=True).values[:left].sigmoid())


def test_boxes_are_decoded_by_the_coding():
    coding = DistanceCoding(anchor_size=4.0)  # a stride is a quarter of an anchor's side
    outputs = HeadOutputs([torch.tensor([[[3.0]]])], [torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]).log()])
    found = Postprocess(coding=coding)(outputs, [torch.tensor([[40.0, 40.0, 60.0, 60.0]])], [SIZE])[0]
    torch.testing.assert_close(found.boxes, torch.tensor([[45.0, 40.0, 65.0, 70.0]]))


# ----------------------------------------------------------------------------------------------------------- suppression


def suppress_slowly(boxes, scores, labels, threshold):
    """Indices that greedy class-wise NMS keeps, best first."""
    kept = []
    for i in scores.argsort(descending=True).tolist():
        rivals = [j for j in kept if labels[j] == labels[i]]
        if not rivals or box_iou(boxes[i][None].double(), boxes[rivals].double()).max() <= threshold:
            kept.append(i)
    return kept


def test_of_thousands_of_candidates_those_are_kept_that_class_wise_suppression_keeps():
    torch.manual_seed(0)
    corners = torch.rand(600, 2) * torch.tensor([100.0, 50.0])
    boxes, logits = torch.cat((corners, corners + 15), dim=1), torch.randn(600, 3)
    found = found_in(logits, boxes, candidates_per_level=1800, score_threshold=0.0, detections_per_image=400)
    rows, labels = torch.arange(600).repeat_interleave(3), torch.arange(3).repeat(600)
    scores = logits.sigmoid().flatten()
    kept = suppress_slowly(boxes[rows], scores, labels, 0.5)
    assert scores.sort(descending=True).values[1000] > scores[kept[399]], "the first thousand must not be enough"
    torch.testing.assert_close(found.scores, scores[kept[:400]])
    assert torch.equal(found.labels, labels[kept[:400]])
    torch.testing.assert_close(found.boxes, boxes[rows[kept[:400]]])


def test_a_detection_may_come_after_thousands_of_suppressed_candidates():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 5000 + [[50.0, 0.0, 60.0, 10.0]])
    logits = torch.cat((torch.linspace(3, 2, 5000), torch.tensor([1.0])))[:, None]
    found = found_in(logits, boxes, candidates_per_level=6000)
    assert found.boxes[:, 0].tolist() == [0, 50]


# ------------------------------------------------------------------------------------------------------------ legacy boxes


def test_legacy_boxes_are_clipped_to_the_pixels_of_the_image():
    # Inclusive corners [-8, -9, -3, -2] and [250, 120, 260, 130] become pixels [0, 0, 0, 0] and [199, 99, 199, 99].
    boxes = torch.tensor([[-8.0, -9.0, -2.0, -1.0], [250.0, 120.0, 261.0, 131.0], [150.0, 50.0, 220.0, 150.0]])
    found = found_in(torch.tensor([[3.0], [2.0], [1.0]]), boxes, kind=LegacyPostprocess)
    assert found.boxes.tolist() == [[0, 0, 1, 1], [199, 99, 200, 100], [150, 50, 200, 100]]


@pytest.mark.parametrize(("kind", "left"), [(LegacyPostprocess, [1, 2]), (Postprocess, [400, 1])])
def test_empty_legacy_boxes_take_no_candidates_place(kind, left):
    boxes = torch.tensor([[50.0, 0.0, 50.0, 9.0], [1 / 8, 0.0, 9.0, 9.0], [2 / 8, 20.0, 9.0, 29.0]])
    found = found_in(torch.tensor([[3.0], [2.0], [1.0]]), boxes, kind=kind, candidates_per_level=len(left))
    assert anchors_of(found).tolist() == left


def test_empty_legacy_boxes_do_not_count_as_anchors():
    nothing = torch.full((4, 4), 9.0)
    boxes = torch.cat((nothing[:2], apart(2)))
    logits = torch.tensor([[5.0, 5.0], [5.0, 5.0], [3.0, 2.0], [1.0, 0.0]])
    options = {"kind": LegacyPostprocess, "limit_to_anchors": True, **EVERYTHING}
    torch.testing.assert_close(found_in(logits, boxes, **options).scores, torch.tensor([3.0, 2.0]).sigmoid())
    assert len(found_in(logits, nothing, **options).scores) == 0


def test_rescaled_legacy_boxes_keep_their_first_and_last_pixel():
    # Inclusive [10, 20, 29, 39] times (4, 1/2) is [40, 10, 116, 19.5].
    found = Detections(torch.tensor([[10.0, 20.0, 30.0, 40.0]]), torch.tensor([0.5]), torch.tensor([3]))
    scaled = LegacyPostprocess().rescale(found, (100, 200), (50, 800))
    assert scaled.boxes.tolist() == [[40, 10, 117, 20.5]]


def test_legacy_offset_changes_neither_decoding_nor_suppression():
    torch.manual_seed(0)
    corners = torch.rand(60, 2) * 40 + 20
    anchors, boxes = torch.tensor([[50.0, 40.0, 70.0, 60.0]]).repeat(60, 1), torch.cat((corners, corners + 25), dim=1)
    outputs = HeadOutputs([torch.randn(1, 60, 2)], [encode(boxes, anchors)[None]])
    ours, legacy = (kind()(outputs, [anchors], [SIZE])[0] for kind in (Postprocess, LegacyPostprocess))
    assert 5 < len(ours.scores) < 110
    for a, b in zip(ours, legacy, strict=True):
        assert torch.equal(a, b)
