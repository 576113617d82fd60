import math

import pytest
import torch

from longshot.detector.model.boxes import DeltaCoding, DistanceCoding, DistributionCoding, centerness, decode

# Squares of 8 strides: centers (40, 48) at stride 8 and (100, 60) at stride 16.
ANCHORS = torch.tensor([[8.0, 16, 72, 80], [36, -4, 164, 124]])
CODINGS = [DeltaCoding(), DistanceCoding(anchor_size=8.0), DistributionCoding(anchor_size=8.0, bins=17)]


def peaks(distances, bins: int) -> torch.Tensor:
    """(..., 4 * bins) logits of distributions that are certain of integer distances (..., 4)."""
    distances = torch.as_tensor(distances)
    return torch.nn.functional.one_hot(distances, bins).flatten(-2) * 200.0


def test_deltas_are_those_of_box_arithmetic():
    deltas = torch.tensor([[0.1, -0.2, 0.3, 0.0], [0, 0.5, -1, 9]])
    assert torch.equal(DeltaCoding().decode(deltas, ANCHORS), decode(deltas, ANCHORS))


def test_the_head_learns_what_a_coding_needs():
    assert [coding.depth for coding in CODINGS] == [4, 4, 68]
    assert DistributionCoding(anchor_size=8.0, bins=9).depth == 36


# ------------------------------------------------------------------------------------------------------------- distances


def test_distances_are_logarithms_in_strides_to_left_top_right_bottom():
    raw = torch.tensor([[1, 2, 3, 0.5], [1, 2, 3, 0.5]]).log()
    boxes = DistanceCoding(anchor_size=8.0).decode(raw, ANCHORS)
    torch.testing.assert_close(boxes, torch.tensor([[32.0, 32, 64, 52], [84, 28, 148, 68]]))


def test_the_stride_is_that_of_the_anchor_over_its_size_in_strides():
    boxes = DistanceCoding(anchor_size=4.0).decode(torch.zeros(2, 4), ANCHORS)  # strides 16 and 32
    assert boxes.tolist() == [[24, 32, 56, 64], [68, 28, 132, 92]]


def test_a_distance_is_bounded_as_the_growth_of_deltas_is():
    # 62.5 strides of 8 pixels; further up there is no slope.
    raw = torch.full((1, 4), 80.0, requires_grad=True)
    boxes = DistanceCoding(anchor_size=8.0).decode(raw, ANCHORS[:1])
    torch.testing.assert_close(boxes, torch.tensor([[40.0 - 500, 48 - 500, 40 + 500, 48 + 500]]))
    boxes.square().sum().backward()
    assert not raw.grad.any()


# --------------------------------------------------------------------------------------------------------- distributions


def test_certain_distributions_are_distances_side_by_side():
    coding = DistributionCoding(anchor_size=8.0, bins=17)
    boxes = coding.decode(peaks([[0, 3, 16, 7], [1, 0, 2, 5]], 17), ANCHORS)
    torch.testing.assert_close(boxes, torch.tensor([[40.0, 24, 168, 104], [84, 60, 132, 140]]))


def test_the_mean_of_a_distribution_is_its_distance():
    # 1/4 at 2 and 3/4 at 3: 2.75 strides. Equal logits: the middle of 0 … 3.
    logits = torch.tensor([-1e4, -1e4, 0.25, 0.75])
    logits[2:] = logits[2:].log()
    deltas = torch.cat([logits, torch.zeros(4), logits, torch.full((4,), 7.0)])
    box = DistributionCoding(anchor_size=8.0, bins=4).decode(deltas, ANCHORS[0])
    torch.testing.assert_close(box, torch.tensor([40 - 8 * 2.75, 48 - 8 * 1.5, 40 + 8 * 2.75, 48 + 8 * 1.5]))


def test_distributions_equal_a_slow_decoding_with_its_gradient():
    generator = torch.Generator().manual_seed(0)
    bins, anchors = 5, ANCHORS.double()
    deltas = torch.randn(3, 2, 4 * bins, dtype=torch.float64, generator=generator, requires_grad=True)
    sides = [(-1, 0), (-1, 1), (1, 0), (1, 1)]  # direction and axis of left, top, right, bottom
    rows = []
    for image in range(3):
        for i, (left, top, right, bottom) in enumerate(anchors.tolist()):
            middle, stride = ((left + right) / 2, (top + bottom) / 2), (right - left) / 8
            for side, (direction, axis) in enumerate(sides):
                exponentials = [deltas[image, i, side * bins + j].exp() for j in range(bins)]
                mean = sum(j * e for j, e in enumerate(exponentials)) / sum(exponentials)
                rows.append(middle[axis] + direction * stride * mean)
    expected = torch.stack(rows).view(3, 2, 4)
    boxes = DistributionCoding(anchor_size=8.0, bins=bins).decode(deltas, anchors)
    torch.testing.assert_close(boxes, expected, rtol=1e-12, atol=0)
    weight = torch.randn(3, 2, 4, dtype=torch.float64, generator=generator)
    ours, theirs = (torch.autograd.grad((value * weight).sum(), deltas)[0] for value in (boxes, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_distances_of_a_box_by_hand():
    boxes = torch.tensor([[32.0, 24, 168, 108], [84, 30, 148, 68]])
    found = DistributionCoding(anchor_size=8.0, bins=20).distances(boxes, ANCHORS)
    torch.testing.assert_close(found, torch.tensor([[1.0, 3, 16, 7.5], [1, 30 / 16, 3, 0.5]]))


@pytest.mark.parametrize(("bins", "farthest"), [(17, 15.9), (9, 7.9), (2, 0.9)])
def test_distances_end_before_the_last_bin_and_where_the_center_is_outside(bins, farthest):
    far = torch.tensor([-1000.0, 50, 1000, 2000])  # (40, 48) lies above it
    found = DistributionCoding(anchor_size=8.0, bins=bins).distances(far, ANCHORS[0])
    assert found.tolist() == pytest.approx([farthest, 0, farthest, farthest])


def test_two_neighboring_bins_give_back_the_box_that_the_distances_are_of():
    coding, generator = DistributionCoding(anchor_size=8.0, bins=6), torch.Generator().manual_seed(0)
    anchors = ANCHORS.double().repeat(50, 1)
    reach = 4.9 * torch.rand(100, 4, dtype=torch.float64, generator=generator) * (anchors[:, 2:3] - anchors[:, :1]) / 8
    middle = (anchors[:, :2] + anchors[:, 2:]) / 2
    boxes = torch.cat([middle - reach[:, :2], middle + reach[:, 2:]], dim=1)
    distances = coding.distances(boxes, anchors)[..., None]
    p = (1 - (distances - torch.arange(6)).abs()).clamp(min=0)  # in proportion to how near a bin is
    torch.testing.assert_close(coding.decode(p.log().clamp(min=-1e4).flatten(1), anchors), boxes)


def test_logits_of_half_type_are_averaged_in_float32():
    coding = CODINGS[2]
    deltas = torch.randn(2, 68, generator=torch.Generator().manual_seed(0))
    for half in (deltas.bfloat16(), deltas.half()):
        boxes = coding.decode(half, ANCHORS)
        assert boxes.dtype == torch.float32
        assert torch.equal(boxes, coding.decode(half.float(), ANCHORS))


def test_one_bin_is_no_distribution():
    with pytest.raises(ValueError, match="bins is 1; a distribution over distances needs at least 2"):
        DistributionCoding(anchor_size=8.0, bins=1)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("value", [-65504.0, 65504.0])  # the largest of float16
def test_extreme_outputs_are_boxes_with_finite_gradients(coding, value):
    deltas = torch.zeros(2, coding.depth)
    deltas[:, 1::3] = value
    deltas.requires_grad_()
    boxes = coding.decode(deltas, ANCHORS)
    assert boxes.isfinite().all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    (boxes / 1e6).square().sum().backward()
    assert deltas.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------------ centerness


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((20.0, 28, 60, 68), 1.0),  # in the middle
        ((30.0, 43, 70, 63), 1 / 3),  # 10 and 30 to left and right, 5 and 15 to top and bottom: the root of 1/3 * 1/3
        ((36.0, 47, 76, 49), 1 / 3),  # 4 and 36, in the middle between top and bottom: the root of 1/9
        ((40.0, 28, 60, 68), 0.0),  # on an edge
        ((41.0, 28, 60, 68), 0.0),  # outside
        ((41.0, 49, 60, 68), 0.0),  # outside on both axes, whose two signs cancel in the formula
        ((20.0, 48, 60, 48), 0.0),  # without an area, 0 / 0
        ((40.0, 48, 40, 48), 0.0),
    ],
)
def test_centerness_by_hand(box, expected):
    assert centerness(torch.tensor(box), ANCHORS[0]).item() == pytest.approx(expected, rel=1e-6)


def test_centerness_equals_a_slow_formula_whatever_the_sides_of_the_anchors():
    generator = torch.Generator().manual_seed(0)
    anchors = torch.tensor([[38.0, 46, 42, 50], [8, 16, 72, 80]]).repeat(20, 1)  # both centered at (40, 48)
    corner = torch.tensor([40.0, 48.0])
    boxes = torch.cat(
        [corner - 50 * torch.rand(40, 2, generator=generator), corner + 50 * torch.rand(40, 2, generator=generator)], 1
    )
    expected = []
    for left, top, right, bottom in boxes.tolist():
        x, y = (40 - left, right - 40), (48 - top, bottom - 48)
        expected.append(math.sqrt(min(x) / max(x) * min(y) / max(y)))
    assert centerness(boxes, anchors).tolist() == pytest.approx(expected, rel=1e-5)
