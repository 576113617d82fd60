import pytest
import torch

from longshot.detector.model.boxes import encode
from longshot.detector.model.head import HeadOutputs
from longshot.detector.model.postprocess import Detections, Postprocess

SIZE = (100, 200)


def outputs_for(scores: list[list[float]]) -> HeadOutputs:
    """One image, one level: the given scores (R, K), anchors unmoved."""
    logits = torch.tensor(scores, dtype=torch.float64).logit().float()[None]
    return HeadOutputs([logits], [torch.zeros(1, logits.shape[1], 4)])


def detect(scores, boxes, image_size=SIZE, **options) -> Detections:
    return Postprocess(**options)(outputs_for(scores), [torch.tensor(boxes)], [image_size])[0]


APART = [[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]]
# IoU of the first two: 8 * 10 / 120 = 2/3; of the first and the third: 4 * 10 / 160 = 1/4.
OVERLAPPING = [[0.0, 0.0, 10.0, 10.0], [2.0, 0.0, 12.0, 10.0], [6.0, 0.0, 16.0, 10.0]]


def test_detections_come_best_first_with_their_labels():
    found = detect([[0.1, 0.2], [0.9, 0.3], [0.01, 0.6]], APART)
    assert found.labels.tolist() == [0, 1, 1, 1, 0]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6, 0.3, 0.2, 0.1]))
    assert found.boxes[:, 0].tolist() == [20, 40, 20, 0, 0]


def test_a_worse_box_of_the_same_class_is_suppressed():
    found = detect([[0.8], [0.9], [0.7]], OVERLAPPING)  # the middle one overlaps its neighbors by 2/3 and 3/7
    assert found.boxes[:, 0].tolist() == [2, 6]


def test_a_box_of_another_class_is_not_suppressed():
    found = detect([[0.8, 0.01], [0.01, 0.9]], OVERLAPPING[:2])
    assert sorted(found.labels.tolist()) == [0, 1]


@pytest.mark.parametrize(("threshold", "left"), [(0.66, 1), (0.67, 2)])
def test_nms_threshold_is_the_largest_iou_that_may_stay(threshold, left):
    found = detect([[0.8], [0.9]], OVERLAPPING[:2], nms_threshold=threshold)
    assert len(found.scores) == left


def test_boxes_are_clipped_to_the_image_before_nms():
    # Unclipped, the IoU is 20 * 10 / (40 * 10) = 0.5, not above the threshold; inside the image it is 1.
    boxes = [[180.0, 0.0, 210.0, 10.0], [180.0, 0.0, 220.0, 10.0]]
    found = detect([[0.8], [0.9]], boxes, nms_threshold=0.8)
    assert found.boxes.tolist() == [[180, 0, 200, 10]]


def test_each_image_is_clipped_to_its_own_size():
    outputs = outputs_for([[0.9]])
    outputs = HeadOutputs([outputs.logits[0].repeat(2, 1, 1)], [outputs.deltas[0].repeat(2, 1, 1)])
    found = Postprocess()(outputs, [torch.tensor([[-5.0, -5.0, 500.0, 500.0]])], [(100, 200), (300, 50)])
    assert [d.boxes.tolist() for d in found] == [[[0, 0, 200, 100]], [[0, 0, 50, 300]]]


def test_deltas_move_the_anchors():
    anchors, boxes = torch.tensor(APART), torch.tensor([[1.0, 2.0, 5.0, 9.0]] * 3)
    outputs = outputs_for([[0.01], [0.9], [0.01]])._replace(deltas=[encode(boxes, anchors)[None]])
    found = Postprocess()(outputs, [anchors], [SIZE])[0]
    torch.testing.assert_close(found.boxes, boxes[:1])


def test_scores_at_the_threshold_are_left_out():
    found = detect([[0.5], [0.5001], [0.4]], APART, score_threshold=0.5)
    assert found.boxes[:, 0].tolist() == [20]


def test_no_detection_is_an_empty_result():
    found = detect([[0.01], [0.02], [0.03]], APART)
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)
    assert found.labels.dtype == torch.int64


def test_detections_of_an_image_are_limited_over_all_classes():
    found = detect([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], APART, detections_per_image=4)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8, 0.7, 0.3]))


def test_candidates_are_limited_per_level_and_before_nms():
    # The two best of the level overlap: one falls to NMS, and the third was never a candidate.
    first, second = outputs_for([[0.9], [0.8], [0.7]]), outputs_for([[0.6]])
    outputs = HeadOutputs(first.logits + second.logits, first.deltas + second.deltas)
    anchors = [torch.tensor([*OVERLAPPING[:2], APART[2]]), torch.tensor([[60.0, 0.0, 70.0, 10.0]])]
    found = Postprocess(candidates_per_level=2)(outputs, anchors, [SIZE])[0]
    assert found.boxes[:, 0].tolist() == [0, 60]


def test_equal_scores_keep_the_order_of_the_levels():
    scores = torch.full((1, 5, 1), 3.0)
    anchors = [torch.tensor([[20.0 * i, 20.0 * j, 20.0 * i + 9, 20.0 * j + 9] for i in range(5)]) for j in range(3)]
    outputs = HeadOutputs([scores] * 3, [torch.zeros(1, 5, 4)] * 3)
    found = Postprocess()(outputs, anchors, [SIZE])[0]
    assert found.boxes[:, 1].tolist() == [0] * 5 + [20] * 5 + [40] * 5


def test_candidates_are_the_best_pairs_of_all():
    torch.manual_seed(0)
    logits = torch.randn(1, 300, 7)
    boxes = torch.rand(300, 4) * 40
    boxes[:, 2:] += boxes[:, :2] + 1
    outputs = HeadOutputs([logits], [torch.zeros(1, 300, 4)])
    options = {"score_threshold": 0.0, "nms_threshold": 1.0, "detections_per_image": 10_000}
    found = Postprocess(candidates_per_level=50, **options)(outputs, [boxes], [SIZE])[0]
    best = logits[0].flatten().double().sigmoid().sort(descending=True)
    torch.testing.assert_close(found.scores.double(), best.values[:50], rtol=1e-6, atol=0)
    assert torch.equal(found.labels, best.indices[:50] % 7)
    torch.testing.assert_close(found.boxes, boxes[best.indices[:50] // 7])


def test_small_boxes_of_high_classes_are_suppressed_as_exactly_as_those_of_class_0():
    # IoU 0.515. Shifted by 1,202 image sides in float32 the boxes would snap to a grid of 1/8 pixel, IoU 0.4545.
    boxes = [[1000.0, 1000.0, 1001.0, 1001.0], [1000.32, 1000.0, 1001.32, 1001.0]]
    scores = [[0.01] * 1202 + [0.9], [0.01] * 1202 + [0.8]]
    assert len(detect(scores, boxes, image_size=(1333, 1333)).scores) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_give_float32_detections(dtype):
    outputs = outputs_for([[0.9, 0.2], [0.3, 0.8], [0.1, 0.6]])
    half = HeadOutputs([outputs.logits[0].to(dtype)], [outputs.deltas[0].to(dtype)])
    found = Postprocess()(half, [torch.tensor(APART)], [SIZE])[0]
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8, 0.6, 0.3, 0.2, 0.1]), rtol=0.02, atol=0)


def test_all_lvis_classes_at_threshold_0_give_300_detections():
    torch.manual_seed(0)
    sizes = [(40 * 40, 8), (20 * 20, 16), (10 * 10, 32)]
    outputs = HeadOutputs(
        [torch.randn(1, r * 9, 1203) - 4.6 for r, _ in sizes], [torch.randn(1, r * 9, 4) * 0.1 for r, _ in sizes]
    )
    corners = [torch.rand(r * 9, 2) * 300 for r, _ in sizes]
    anchors = [torch.cat((c, c + s * 4), dim=1) for c, (_, s) in zip(corners, sizes, strict=True)]
    found = Postprocess(score_threshold=0.0, detections_per_image=300)(outputs, anchors, [(320, 320)])[0]
    assert len(found.scores) == 300
    assert (found.scores.diff() <= 0).all()
    assert found.labels.max() < 1203
    assert found.labels.unique().numel() > 100


def test_rescale_uses_each_axis_of_the_actual_sizes():
    found = Detections(torch.tensor([[10.0, 20.0, 30.0, 40.0]]), torch.tensor([0.5]), torch.tensor([3]))
    scaled = Postprocess().rescale(found, (100, 200), (50, 800))
    assert scaled.boxes.tolist() == [[40, 10, 120, 20]]
    assert scaled.labels is found.labels
