import copy
import math

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.multiprocessing.reductions import StorageWeakRef

from longshot.detector.model.backbone import resnet
from longshot.losses import EqualizedFocalLoss

FP32 = {"images_per_pass": 4, "precision": "fp32", "clip_norm": None}


def state(run):
    """A copy of all that a step may change, flat."""
    flat = {f"model.{k}": v for k, v in run.network.state_dict().items()}
    flat |= {f"criterion.{k}": v for k, v in run.criterion.state_dict().items()}
    flat |= {f"ema.{k}": v for k, v in (run.ema.state_dict() if run.ema else {}).items()}
    for i, of_parameter in run.optimizer.state_dict()["state"].items():
        flat |= {f"optimizer.{i}.{k}": v for k, v in of_parameter.items()}
    return copy.deepcopy(flat)


def vector(network):
    """All weights in one row."""
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key


class NotFinite(nn.Module):
    """A box loss of any value."""

    on_deltas = True

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, prediction, target, weights):
        return (prediction * 0).sum() + self.value


class GradientIsNaN(nn.Module):
    """A box loss of 0 whose gradient is not finite."""

    on_deltas = True

    def forward(self, prediction, target, weights):
        return (prediction * 0).sum().sqrt()


@pytest.mark.parametrize("norm", ["gn", "frozen_bn"])
@pytest.mark.parametrize("loss", ["focal", "equalized_focal"])
def test_accumulated_passes_equal_the_big_batch(start, steps, tmp_path, norm, loss):
    torch.manual_seed(1)
    torch.save(resnet("thin", norm="bn").state_dict(), tmp_path / "trunk.pt")
    weights = str(tmp_path / "trunk.pt") if norm == "frozen_bn" else None
    numbers, weights_after, efl_after = {}, {}, {}
    for per_pass in (4, 2, 1):
        run, batches = start(
            model={"backbone": {"norm": norm, "weights": weights}},
            # A loss without kinks: where the edges of two boxes meet, GIoU's gradient jumps.
            loss={"classification": {"name": loss}, "box": {"name": "smooth_l1", "weight": 1.0}},
        )
        before = vector(run.network)
        numbers[per_pass] = steps(run, batches[:3], images_per_pass=per_pass)
        weights_after[per_pass], efl_after[per_pass] = vector(run.network), run.criterion.state_dict()
    for per_pass in (2, 1):
        for ours, theirs in zip(numbers[4], numbers[per_pass], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3)
        moved, apart = (weights_after[4] - before).norm(), (weights_after[4] - weights_after[per_pass]).norm()
        assert apart < 1e-3 * moved
        for name, value in efl_after[4].items():
            torch.testing.assert_close(efl_after[per_pass][name], value, rtol=1e-3, atol=0)


def test_each_pass_has_its_own_padded_size(start, steps):
    _, (batch, *_) = start()
    sizes = [(128, 64 + 32 * i) for i in range(len(batch.images))]
    narrow = [image[:, :, :64].contiguous() for image in batch.images]
    targets = [target._replace(boxes=target.boxes.clamp(max=64)) for target in batch.targets]
    batch = batch._replace(images=narrow, targets=targets, padded_sizes=sizes)
    (whole,) = steps(start()[0], [batch], images_per_pass=1)
    alone = []
    for i in range(len(narrow)):
        one = type(batch)(*(column[i : i + 1] for column in batch))
        alone += steps(start()[0], [one])
    assert sum(numbers["positives"] for numbers in alone) == whole["positives"]
    for loss in ("classification", "box"):
        total = sum(numbers[loss] * max(1, numbers["positives"]) for numbers in alone)
        assert whole[loss] == pytest.approx(total / whole["positives"], rel=1e-5)


def test_logits_are_gone_while_the_layers_below_the_head_go_backward(start, steps):
    run, batches = start()
    logits, gone = [], []
    run.network.head.register_forward_hook(
        lambda head, inputs, outputs: logits.extend(StorageWeakRef(level.untyped_storage()) for level in outputs.logits)
    )
    first = next(parameter for parameter in run.network.parameters() if parameter.requires_grad)
    first.register_hook(lambda gradient: gone.append([level.expired() for level in logits]))
    steps(run, batches[:1])
    assert gone == [[True] * 3]


def test_numbers_of_a_step_add_up(start, steps):
    run, batches = start()
    (numbers,) = steps(run, batches[:1], images_per_pass=1)
    assert numbers.keys() == {"loss", "classification", "box", "gradient_norm", "positives"}
    assert numbers["loss"] == pytest.approx(numbers["classification"] + numbers["box"])
    anchors = run.network.anchors(batches[0].padded_size)
    sizes = [tuple(image.shape[-2:]) for image in batches[0].images]
    assert numbers["positives"] == len(run.criterion.assign(anchors, batches[0].targets, sizes).boxes) > 0


@pytest.mark.parametrize("per_pass", [1, 4])
def test_gradients_are_collected_once_per_step(start, steps, monkeypatch, per_pass):
    calls = []
    original = EqualizedFocalLoss.after_backward

    def spy(self, **options):
        assert self.pending.sum() > 0
        calls.append(options)
        original(self, **options)

    monkeypatch.setattr(EqualizedFocalLoss, "after_backward", spy)
    run, batches = start()
    steps(run, batches[:3], images_per_pass=per_pass)
    assert calls == [{"gradient_scale": 1.0, "step_taken": True}] * 3
    assert run.criterion.classification.pending.sum() == 0


def test_the_first_step_is_plain_focal_loss(start, steps):
    numbers = [steps(*start(loss={"classification": {"name": name}})) for name in ("focal", "equalized_focal")]
    assert numbers[0][0] == numbers[1][0]
    assert numbers[0][1] != numbers[1][1]


@pytest.mark.parametrize("per_pass", [4, 2])
def test_a_step_without_objects_is_finite_and_pushes_scores_down(start, steps, per_pass):
    run, batches = start()
    empty = [target._replace(boxes=target.boxes[:0], labels=target.labels[:0]) for target in batches[0].targets]
    (numbers,) = steps(run, [batches[0]._replace(targets=empty)], images_per_pass=per_pass)
    assert numbers["positives"] == numbers["box"] == 0
    assert numbers["classification"] > 0
    loss = run.criterion.classification
    assert (loss.positive_gradient == 0).all()
    assert (loss.negative_gradient > 0).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing_and_names_step_and_images(start, steps, value, precision):
    run, batches = start(train={"ema_decay": 0.9, "precision": precision})
    steps(run, batches[:1], precision=precision)
    run.step, run.criterion.box = 17, NotFinite(value)
    before = state(run)
    with pytest.raises(FloatingPointError) as error:
        steps(run, batches[1:2], precision=precision)
    assert str(error.value).startswith("step 17: loss {'classification': ")
    assert f"the images {batches[1].image_ids}" in str(error.value)
    assert_same(before, state(run))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_changes_nothing(start, steps, precision):
    run, batches = start(train={"ema_decay": 0.9})
    steps(run, batches[:1], precision=precision)
    run.criterion.box = GradientIsNaN()
    before = state(run)
    with pytest.raises(FloatingPointError, match="norm of the gradient nan: not finite"):
        steps(run, batches[1:2], precision=precision)
    assert_same(before, state(run))


def test_what_an_aborted_step_collected_is_forgotten(start, steps):
    run, batches = start()
    good = run.criterion.box
    run.criterion.box = GradientIsNaN()
    with pytest.raises(FloatingPointError):
        steps(run, batches[:1])
    run.criterion.box = good
    steps(run, batches[:1])
    fresh, _ = start()
    steps(fresh, batches[:1])
    assert_same(state(fresh), state(run))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_takes_nearly_the_same_step(start, steps, precision):
    exact, batches = start()
    mixed, _ = start(train={"precision": precision})
    mixed.scaler = GradScaler("cpu", init_scale=128.0, enabled=precision == "fp16")  # without overflow
    before = vector(exact.network)
    (ours,), (theirs,) = steps(exact, batches[:1]), steps(mixed, batches[:1], precision=precision, images_per_pass=2)
    assert ours == pytest.approx(theirs, rel=0.03)
    assert ours != theirs
    moved, apart = (vector(exact.network) - before).norm(), (vector(exact.network) - vector(mixed.network)).norm()
    assert apart < 0.35 * moved
    for name in ("positive_gradient", "negative_gradient"):  # without the loss scale of fp16
        ours, theirs = (getattr(run.criterion.classification, name) for run in (exact, mixed))
        torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0)


def test_a_gradient_that_overflows_fp16_at_any_scale_ends_the_run(start, steps):
    run, batches = start(train={"precision": "fp16"}, loss={"box": {"weight": 1e8}})
    run.scaler = GradScaler("cpu", init_scale=0.5)
    with pytest.raises(FloatingPointError, match="norm of the gradient"):
        steps(run, batches[:1], precision="fp16")


def test_a_step_that_overflows_in_fp16_is_left_out_and_training_goes_on(start, steps):
    # The gradient of the box loss, times the loss scale of 65536, is too large for fp16 until the scale has come down.
    run, batches = start(train={"precision": "fp16", "ema_decay": 0.9}, loss={"box": {"weight": 1000.0}})
    before, scale = state(run), run.scaler.get_scale()
    (numbers,) = steps(run, batches[:1], precision="fp16")
    assert not math.isfinite(numbers["gradient_norm"])
    assert math.isfinite(numbers["loss"])
    assert_same(before, state(run))
    assert run.scaler.get_scale() == scale / 2
    numbers = steps(run, batches * 5, precision="fp16", clip_norm=1.0)
    taken = sum(math.isfinite(n["gradient_norm"]) for n in numbers)
    assert 0 < taken < len(numbers)
    after = state(run)
    assert after["ema.n_averaged"] == taken
    assert (after["criterion.classification.positive_gradient"] > 0).all()
    assert all(value.isfinite().all() for value in after.values())


def test_clipping_limits_the_whole_gradient(start, steps):
    run, batches = start(optimizer={"momentum": 0.0, "weight_decay": 0.0})
    before = vector(run.network)
    (numbers,) = steps(run, batches[:1], clip_norm=0.01)
    assert numbers["gradient_norm"] > 0.1  # told as it was
    assert (vector(run.network) - before).norm().item() == pytest.approx(0.02 * 0.01, rel=1e-3)


@pytest.mark.parametrize(("decay", "of_second_step"), [(0.1, 0.1), (0.75, 2 / 11)])  # at most (1 + 1) / (10 + 1)
def test_averaged_weights_follow_by_hand(start, steps, decay, of_second_step):
    run, batches = start(train={"ema_decay": decay})
    weights = []
    for batch in batches[:2]:
        steps(run, [batch])
        weights.append(run.network.head.logits.weight.detach().clone())
    assert run.evaluated_network is run.ema.module
    averaged = run.evaluated_network.head.logits.weight
    torch.testing.assert_close(averaged, of_second_step * weights[0] + (1 - of_second_step) * weights[1])
    assert start()[0].ema is None


def test_a_loaded_state_goes_on_as_the_saved_one(start, steps):
    options = {"optimizer": {"name": "adamw"}, "train": {"ema_decay": 0.9, "precision": "fp16"}}
    run, batches = start(**options)
    steps(run, batches[:2], precision="fp16")
    run.step = 2
    saved = copy.deepcopy(run.state_dict())
    other, _ = start(**options, seed=5)
    other.load_state_dict(saved)
    assert other.step == 2
    assert steps(run, batches[2:], precision="fp16") == steps(other, batches[2:], precision="fp16")
    assert_same(state(run), state(other))
    assert run.scaler.state_dict() == other.scaler.state_dict()


def test_settings_of_the_optimizer_are_those_of_the_configuration_that_goes_on(start, steps):
    run, batches = start()
    steps(run, batches[:1])
    other, _ = start(optimizer={"weight_decay": 0.5, "momentum": 0.1})
    other.load_state_dict(run.state_dict())
    assert {(g["weight_decay"], g["momentum"]) for g in other.optimizer.param_groups} == {(0.5, 0.1)}
    buffers = [run.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]]
    assert torch.equal(buffers[0][3]["momentum_buffer"], buffers[1][3]["momentum_buffer"])


def test_averaging_and_loss_scaling_can_begin_and_end_on_the_way(start, steps):
    plain, batches = start()
    steps(plain, batches[:1])
    mixed, _ = start(train={"ema_decay": 0.9, "precision": "fp16"})
    mixed.load_state_dict(plain.state_dict())
    weights = plain.network.state_dict()
    assert_same(weights, mixed.evaluated_network.state_dict())
    steps(mixed, batches[1:2], precision="fp16")
    assert_same(mixed.network.state_dict(), mixed.evaluated_network.state_dict())  # the first average is the weights
    plain.load_state_dict(mixed.state_dict())
    steps(plain, batches[2:3])
