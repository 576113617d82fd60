"""Equalized Focal Loss's state over whole training steps of one process: what it collects, and what must not change it."""

import io
import math

import pytest
import torch
from torch.amp import GradScaler
from torch.multiprocessing.reductions import StorageWeakRef

from longshot.detector.checkpoint.file import load_checkpoint
from longshot.detector.checkpoint.folder import step_path
from longshot.detector.run.loop import train

K = 4
PRIOR = 0.3  # high enough for negatives to outweigh positives: g lies below 1, and differs from class to class
SMOOTH = {"box": {"name": "smooth_l1", "weight": 1.0}}  # where the edges of two boxes meet, GIoU's gradient jumps
SHAPES = {
    1: {"ratios": [1.0], "scales": [1.0]},
    2: {"ratios": [1.0], "scales": [1.0, 1.26]},
    3: {"ratios": [0.5, 1.0, 2.0], "scales": [1.0]},
}


def sums(run):
    loss = run.criterion.classification
    return torch.stack([loss.positive_gradient, loss.negative_gradient])


def in_float64(run):
    """The run with its network in float64: float32 rounds sums in another order differently, and steps multiply that."""
    run.network.double().register_forward_pre_hook(lambda network, images: (images[0].double(),))
    return run


# ---------------------------------------------------------------------------------------------------- what is collected


def rows(maps):
    """(N, A * K, H, W) -> (N, H * W * A, K), by hand: channel a * K + k of cell (y, x) is row (y * W + x) * A + a."""
    num_anchors = maps.shape[1] // K
    flat = maps.new_full((len(maps), maps[0].numel() // K, K), torch.nan)
    for anchor in range(num_anchors):
        for k in range(K):
            flat[:, anchor::num_anchors, k] = maps[:, anchor * K + k].flatten(1)
    return flat


@pytest.mark.parametrize("levels", [3, 4, 5])
@pytest.mark.parametrize("num_anchors", [1, 2, 3])
def test_sums_are_those_of_the_gradient_that_autograd_leaves_at_the_outputs_of_the_head(
    start, steps, labels_of, analytic, levels, num_anchors
):
    model = {"fpn": {"levels": levels}, "head": {"prior": PRIOR}, "anchors": {"base_size": 3.0, **SHAPES[num_anchors]}}
    run, batches = start(model=model, matching={"ignore_padding": True})
    maps = []

    def keep(conv, inputs, output):
        output.retain_grad()
        maps.append(output)

    in_float64(run).network.head.logits.register_forward_hook(keep)
    seen = expected = torch.zeros(2, K, dtype=torch.float64)
    for batch in batches:
        maps.clear()
        labels = labels_of(run, batch)
        assert labels.min() == -2  # some are ignored
        steps(run, [batch], images_per_pass=2)
        assert all(level.shape[2] != level.shape[3] for level in maps[:3])
        passes = maps[:levels], maps[levels:]
        logits = torch.cat([torch.cat([rows(level.detach()) for level in one], dim=1) for one in passes])
        sizes = torch.cat([torch.cat([rows(level.grad.abs()) for level in one], dim=1) for one in passes])
        positive = labels[..., None] == torch.arange(K)
        seen = seen + torch.stack([(sizes * positive).sum((0, 1)), (sizes * ~positive).sum((0, 1))])
        expected = expected + analytic(logits, labels, expected)
        torch.testing.assert_close(sums(run), seen, rtol=1e-12, atol=0)
        torch.testing.assert_close(sums(run), expected, rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------------ the same g, whatever the way


@pytest.fixture
def exact_start(start):
    """head options -> (Run in float64, 4 batches), one without objects in its second half."""

    def build(**head):
        run, batches = start(model={"head": {"prior": PRIOR, **head}}, loss=SMOOTH)
        targets = batches[1].targets
        empty = [target._replace(boxes=target.boxes[:0], labels=target.labels[:0]) for target in targets[2:]]
        batches[1] = batches[1]._replace(targets=[*targets[:2], *empty])
        return in_float64(run), batches

    return build


@pytest.fixture
def ratios(steps):
    """(Run, batches, options of the steps) -> g after each of S steps, (S, K)."""

    def take(run, batches, **options):
        history = []
        for batch in batches:
            steps(run, [batch], **options)
            history.append(run.criterion.classification.gradient_ratio)
        return torch.stack(history)

    return take


@pytest.fixture
def expected(exact_start, ratios):
    """g after each of 4 steps of one process, one pass each; with values which tell something."""
    history = ratios(*exact_start())
    inside = history[(history > 0) & (history < 1)]
    assert len(inside.unique()) > 10
    return history


@pytest.mark.parametrize(("per_pass", "recompute"), [(2, False), (1, False), (4, True), (1, True)])
def test_passes_and_recomputation_of_the_head_leave_g_as_it_is(exact_start, ratios, expected, per_pass, recompute):
    history = ratios(*exact_start(recompute=recompute), images_per_pass=per_pass)
    torch.testing.assert_close(history, expected, rtol=1e-6, atol=0)


def test_a_run_resumed_half_way_comes_to_the_same_g(exact_start, ratios, expected, start):
    run, batches = exact_start()
    history = [ratios(run, batches[:2])]
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    other, _ = start(model={"head": {"prior": 0.01}}, loss=SMOOTH, seed=5)
    in_float64(other).load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    history.append(ratios(other, batches[2:]))
    assert torch.equal(torch.cat(history), expected)


def test_a_compiled_run_comes_to_the_same_g_and_weights(make_config, cpu, tmp_path, monkeypatch):
    states, compiled, original = [], [], torch.compile

    def quickly(network):
        # It traces forward and backward as the default does, but leaves out the minutes of building code.
        compiled.append(network)
        return original(network, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", quickly)
    for wanted in (False, True):
        differences = {
            "model": {"head": {"prior": PRIOR}}, "loss": SMOOTH, "schedule": {"length": 2}, "train": {"compile": wanted}
        }  # fmt: skip
        train(make_config(tmp_path / str(wanted), differences), cpu)
        assert len(compiled) == wanted
        states.append(load_checkpoint(step_path(tmp_path / str(wanted) / "checkpoints", 2)))
    plain, other = (state["criterion"] for state in states)
    assert (plain["classification.positive_gradient"] < plain["classification.negative_gradient"]).all()
    torch.testing.assert_close(other, plain, rtol=1e-5, atol=0)
    torch.testing.assert_close(states[1]["model"], states[0]["model"], rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------- recomputation of the head


def test_recomputation_of_the_head_leaves_the_weights_as_they_are(start, steps):
    weights = []
    for recompute in (False, True):
        run, batches = start(model={"head": {"recompute": recompute}})
        steps(run, batches[:3], images_per_pass=2)
        weights.append(run.network.state_dict())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputation_keeps_nothing_of_the_towers_and_backward_makes_it_anew(start, recompute):
    run, batches = start(model={"head": {"recompute": recompute}})
    made = []
    for tower in (run.network.head.class_tower, run.network.head.box_tower):
        tower[0].conv.register_forward_hook(
            lambda conv, inputs, output: made.append(StorageWeakRef(output.untyped_storage()))
        )
    outputs = run.network(run.network.preprocess(batches[0].images, batches[0].padded_size))
    assert [maps.expired() for maps in made] == [recompute] * 3 * 2  # levels, towers
    sum(level.sum() for maps in outputs[:2] for level in maps).backward()
    assert len(made) == 3 * 2 * (2 if recompute else 1)


# ------------------------------------------------------------------------------------------------------- half precision


@pytest.fixture
def half_start(start):
    """precision -> (Run whose loss scale doubles after 2 steps, 4 batches, list of the logits it will make)."""

    def build(precision):
        # So small a rate that rounding does not lead the weights astray, which is not the loss's doing.
        options = {"model": {"head": {"prior": PRIOR}}, "loss": SMOOTH, "optimizer": {"lr": 0.001}}
        run, batches = start(**options, train={"precision": precision})
        run.scaler = GradScaler("cpu", init_scale=65536.0, growth_interval=2, enabled=precision == "fp16")
        logits = []
        run.network.head.register_forward_hook(
            lambda head, inputs, outputs: logits.append(torch.cat(outputs.logits, 1).detach())
        )
        return run, batches, logits

    return build


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sums_are_those_of_the_half_logits_while_the_loss_scale_grows_and_overflows(
    half_start, steps, labels_of, analytic, precision
):
    run, batches, logits = half_start(precision)
    expected, scales, taken = torch.zeros(2, K, dtype=torch.float64), [], []
    for batch in [*batches, batches[0]]:
        logits.clear()
        before, labels = sums(run), labels_of(run, batch)
        (numbers,) = steps(run, [batch], precision=precision, images_per_pass=2)
        scales.append(run.scaler.get_scale())
        taken.append(math.isfinite(numbers["gradient_norm"]))
        if taken[-1]:
            expected += analytic(torch.cat(logits), labels, expected)
        assert torch.equal(sums(run), before) != taken[-1]
        assert not run.criterion.classification.pending.any()
        torch.testing.assert_close(sums(run), expected, rtol=1e-6, atol=0)
    assert {level.dtype for level in logits} == {torch.bfloat16 if precision == "bf16" else torch.float16}
    if precision == "fp16":
        assert taken == [True, True, False, True, True]
        assert scales == [2.0**n for n in (16, 17, 16, 16, 17)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_g_in_half_precision_is_that_of_full_precision_on_the_steps_taken(half_start, steps, precision):
    (half, batches, _), (full, _, _) = half_start(precision), half_start("fp32")
    for batch in batches * 2:
        (numbers,) = steps(half, [batch], precision=precision, images_per_pass=2)
        if math.isfinite(numbers["gradient_norm"]):
            steps(full, [batch])
        ours, theirs = (run.criterion.classification.gradient_ratio for run in (half, full))
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=0)
    assert ((theirs > 0) & (theirs < 1)).all()
    assert not torch.equal(ours, theirs)
