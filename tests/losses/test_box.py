import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from longshot.losses import BOX_LOSSES, GIoULoss, L1Loss, SmoothL1Loss, giou_loss, l1_loss, smooth_l1_loss


def random_boxes(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = 50 * torch.rand(30, 2, dtype=torch.float64, generator=generator)
    return torch.cat([corners, corners + 1 + 40 * torch.rand(30, 2, dtype=torch.float64, generator=generator)], dim=1)


def test_l1_sums_absolute_differences():
    assert l1_loss(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[0.0, 4, 3, 1]])).item() == 6


def test_smooth_l1_is_a_parabola_up_to_beta_and_a_line_beyond():
    # 0.1^2 / (2 * 0.5), 0.5 - 0.25, 2 - 0.25, 0
    loss = smooth_l1_loss(torch.tensor([[0.1, 0.5, -2.0, 0]], dtype=torch.float64), torch.zeros(1, 4), beta=0.5)
    assert loss.item() == pytest.approx(0.01 + 0.25 + 1.75)


def test_giou_numbers_worked_out_by_hand():
    square = torch.tensor([[0.0, 0, 2, 2]])
    assert giou_loss(square, square).item() == pytest.approx(0)
    # Corner overlap: intersection 1, union 7, hull 9.
    assert giou_loss(square, square + 1).item() == pytest.approx(1 - (1 / 7 - 2 / 9))
    # Apart: union 8, hull 2 x 6.
    assert giou_loss(square, torch.tensor([[4.0, 0, 6, 2]])).item() == pytest.approx(1 + 4 / 12)


def test_giou_equals_torchvision_with_gradient():
    prediction, target = random_boxes(0).requires_grad_(), random_boxes(1)
    expected = generalized_box_iou_loss(prediction, target, reduction="sum")
    (expected_gradient,) = torch.autograd.grad(expected, prediction)
    loss = giou_loss(prediction, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, prediction)[0], expected_gradient)


def test_giou_of_boxes_without_area_is_finite_with_its_gradient():
    prediction = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3], [5, 5, 5, 9]], requires_grad=True)
    loss = giou_loss(prediction, torch.tensor([[3.0, 3, 3, 3], [3, 3, 9, 9], [5, 5, 5, 9]]))
    loss.backward()
    assert loss.isfinite()
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("name", BOX_LOSSES)
@pytest.mark.parametrize("weights", [None, torch.zeros(0)])
def test_no_positives_give_zero_with_a_graph(name, weights):
    prediction = torch.zeros(0, 4, requires_grad=True)
    loss = BOX_LOSSES[name]()(prediction, torch.zeros(0, 4), weights)
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad.shape == (0, 4)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_weights_multiply_the_loss_of_each_box_with_its_gradient(name):
    loss, target = BOX_LOSSES[name](weight=2.0), random_boxes(1)
    prediction = random_boxes(0).requires_grad_()
    weights = torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights[3] = 0
    one_by_one = sum(w * loss(prediction[i : i + 1], target[i : i + 1]) for i, w in enumerate(weights.tolist()))
    weighted = loss(prediction, target, weights)
    torch.testing.assert_close(weighted, one_by_one)
    ours, theirs = (torch.autograd.grad(value, prediction)[0] for value in (weighted, one_by_one))
    torch.testing.assert_close(ours, theirs)
    assert not ours[3].any()


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_weights_are_constants_in_backward(name):
    prediction, weights = random_boxes(0).requires_grad_(), torch.rand(30, requires_grad=True)
    BOX_LOSSES[name]()(prediction, random_boxes(1), weights).backward()
    assert prediction.grad.any()
    assert weights.grad is None


def test_weighted_losses_by_hand():
    # Corner overlap: 1 - GIoU is 1 - (1 / 7 - 2 / 9) = 68 / 63; a box that fits has no loss, whatever its weight.
    square, weights = torch.tensor([[0.0, 0, 2, 2]]).expand(2, 4), torch.tensor([0.25, 100])
    moved = square + torch.tensor([[1.0], [0]])
    assert giou_loss(moved, square, weights).item() == pytest.approx(0.25 * 68 / 63)
    assert l1_loss(moved, square, weights).item() == pytest.approx(0.25 * 4)
    assert smooth_l1_loss(moved, square, weights, beta=0.5).item() == pytest.approx(0.25 * 4 * 0.75)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_half_boxes_are_computed_in_float32(name):
    # An area of 300 x 300 overflows float16.
    prediction = torch.tensor([[0, 0, 300, 300]], dtype=torch.float16)
    target = torch.tensor([[0, 0, 300, 280]], dtype=torch.float16)
    loss = BOX_LOSSES[name]()(prediction, target)
    assert loss.dtype == torch.float32
    assert loss == BOX_LOSSES[name]()(prediction.float(), target.float())


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_weight_multiplies_the_loss(name):
    prediction, target = random_boxes(0), random_boxes(1)
    loss = BOX_LOSSES[name]()(prediction, target)
    torch.testing.assert_close(BOX_LOSSES[name](weight=2.5)(prediction, target), 2.5 * loss)


def test_smooth_l1_module_passes_beta_on():
    prediction, target = random_boxes(0), random_boxes(1)
    assert SmoothL1Loss(beta=20.0)(prediction, target) == smooth_l1_loss(prediction, target, beta=20.0)


def test_only_giou_compares_decoded_boxes():
    assert (L1Loss.on_deltas, SmoothL1Loss.on_deltas, GIoULoss.on_deltas) == (True, True, False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GIoULoss(weight=-2.0), "weight is -2.0"),
        (lambda: L1Loss(weight=0.0), "weight is 0.0"),
        (lambda: SmoothL1Loss(beta=-1.0), "beta is -1.0"),
    ],
)
def test_options_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
