"""NaN and infinity, let in wherever they can start: every process refuses the step, and nothing that lasts has changed."""

import copy
import math

import pytest
import torch

from longshot.detector.checkpoint.file import load_checkpoint
from longshot.detector.run import loop
from longshot.detector.run.folder import MOST_WRITTEN
from longshot.detector.run.loop import train
from longshot.detector.training.step import MOST_IN_A_ROW, NonFiniteStep

# All that a step can move: BatchNorm's statistics, EFL's sums, momentum, the average; and all kinds of losses.
EVERYTHING = {
    "model": {
        "backbone": {"norm": "bn"},
        "head": {"box": "distribution", "bins": 5, "quality": "iou"},
        "anchors": {"base_size": 8.0, "ratios": [1.0], "scales": [1.0]},
    },
    "train": {"ema_decay": 0.9},
}
LOSSES = ("classification", "box", "quality", "distribution")


def spoil(tensor, value):
    """The tensor with a row that is not finite, in the graph."""
    spoiled = tensor.clone()
    spoiled[-1] = value
    return spoiled


def of_output(module, patch, value, change):
    """Change what a module returns."""
    forward = module.forward
    patch.setattr(module, "forward", lambda *inputs: change(forward(*inputs), value))


def spoil_level(outputs, name, value):
    levels = list(getattr(outputs, name))
    levels[0] = spoil(levels[0], value)  # of the last image
    return outputs._replace(**{name: levels})


def let_in(run, place, value, patch):
    """Let a value in at a place."""
    network = run.network
    if place == "pixels":
        preprocess = network.preprocess
        patch.setattr(network, "preprocess", lambda *inputs: spoil(preprocess(*inputs), value))
    elif place == "trunk":
        of_output(network.backbone.layer2, patch, value, spoil)
    elif place in ("logits", "deltas", "quality logits"):
        name = place.split()[0]
        of_output(network.head, patch, value, lambda outputs, v: spoil_level(outputs, name, v))
    elif place in LOSSES:
        of_output(run.criterion, patch, value, lambda losses, v: {**losses, place: losses[place] + v})
    else:
        parameter = {
            "gradient of the head": network.head.logits.weight,
            "gradient of the trunk": network.backbone.conv1.weight,
        }[place]
        parameter.register_hook(lambda gradient: spoil(gradient, value))


# Where it can be before the step begins, by bits that flip in memory.
STATE = {
    "weight": lambda run: run.network.head.logits.weight,
    "weight that no loss without an object sees": lambda run: run.network.head.quality.weight,
    "statistic": lambda run: run.network.backbone.layer2[0].bn1.running_var,
    "positive gradient": lambda run: run.criterion.classification.positive_gradient,
    "negative gradient": lambda run: run.criterion.classification.negative_gradient,
    "momentum": lambda run: run.optimizer.state[run.network.head.logits.weight]["momentum_buffer"],
    "average": lambda run: run.ema.module.head.deltas.weight,
}
PLACES = [
    "pixels",
    "trunk",
    "logits",
    "deltas",
    "quality logits",
    *LOSSES,
    "gradient of the head",
    "gradient of the trunk",
]


def state(run):
    """A copy of all that a step may change."""
    return copy.deepcopy({k: v for k, v in run.state_dict().items() if k not in ("scaler", "random")})


def assert_same(ours, theirs, where=""):
    if isinstance(ours, dict | list | tuple):
        pairs = (
            zip(ours.items(), theirs.items(), strict=True) if isinstance(ours, dict) else zip(ours, theirs, strict=True)
        )
        for a, b in pairs:
            assert_same(a, b, f"{where} {a[0] if isinstance(ours, dict) else ''}")
    elif isinstance(ours, torch.Tensor):
        assert ours.numpy().tobytes() == theirs.numpy().tobytes(), where  # NaN is not equal to itself
    else:
        assert ours == theirs, where


@pytest.fixture(scope="module")
def begun(start, steps):
    """A run with everything after a step, as a state, and the batches after it."""
    run, batches = start(**EVERYTHING)
    steps(run, batches[:1])
    return copy.deepcopy(run.state_dict()), batches[1:]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_not_finite_is_refused_wherever_it_starts_and_leaves_nothing(
    start, steps, begun, monkeypatch, place, value
):
    run, _ = start(**EVERYTHING)
    run.load_state_dict(copy.deepcopy(begun[0]))
    before = state(run)
    with monkeypatch.context() as patch:
        let_in(run, place, value, patch)
        run.network.train()
        with pytest.raises(NonFiniteStep, match=r"^step 0: loss .* not finite. Process 0 had the images"):
            steps(run, begun[1][:1])
    assert_same(before, state(run))
    if "gradient" in place:
        return  # the hook stays
    clean, _ = start(**EVERYTHING)
    clean.load_state_dict(copy.deepcopy(begun[0]))
    assert steps(run, begun[1][1:2]) == steps(clean, begun[1][1:2]), "the next step is as if it had not been"
    assert_same(state(run), state(clean))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", STATE)
def test_state_that_is_not_finite_is_refused_and_spreads_no_further(start, steps, begun, place, value):
    run, _ = start(**EVERYTHING)
    run.load_state_dict(copy.deepcopy(begun[0]))
    sick = STATE[place](run).detach()
    good = sick.clone()
    sick[-1] = value
    before = state(run)
    with pytest.raises(NonFiniteStep, match=r"norm of the state (nan|inf), .* not finite"):
        steps(run, begun[1][:1])
    assert_same(before, state(run))
    sick.copy_(good)
    assert_same(begun[0]["model"], run.network.state_dict())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_learning_rate_that_is_not_finite_is_refused(start, steps, begun, value):
    run, _ = start(**EVERYTHING)
    run.load_state_dict(copy.deepcopy(begun[0]))
    run.optimizer.param_groups[1]["lr"] = value
    before = state(run)
    del before["optimizer"]["param_groups"]
    with pytest.raises(NonFiniteStep, match=r"norm of the state (nan|inf)"):
        steps(run, begun[1][:1])
    after = state(run)
    del after["optimizer"]["param_groups"]
    assert_same(before, after)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_scale_that_is_not_finite_is_refused(start, steps, value):
    run, batches = start(train={"precision": "fp16", "ema_decay": 0.9})
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": value})
    before = state(run)
    with pytest.raises(NonFiniteStep, match=r"norm of the state (nan|inf)"):
        steps(run, batches[:1], precision="fp16")
    assert_same(before, state(run))


def test_a_sick_state_is_not_saved_and_good_checkpoints_stay(make_config, cpu, tmp_path, monkeypatch):
    optimize = loop.optimize

    def spoiled(run, *args, **options):
        numbers = optimize(run, *args, **options)
        if run.step + 1 == 4:
            run.ema.module.head.deltas.weight.data[0] = math.nan
        return numbers

    monkeypatch.setattr(loop, "optimize", spoiled)
    with pytest.raises(NonFiniteStep, match=r"^step 4: .*norm of the state nan"):
        train(make_config(tmp_path, {"train": {"ema_decay": 0.9}}), cpu)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002.pt"]
    assert "step_00000004.pt: not written, since weights or state are not finite" in (tmp_path / "log.txt").read_text()


@pytest.fixture
def sick_in(monkeypatch):
    """(steps): the loss of these steps is not finite."""

    def make(*sick):
        optimize = loop.optimize

        def spoiled(run, *args, **options):
            with monkeypatch.context() as patch:
                if run.step in sick:
                    let_in(run, "logits", math.nan, patch)
                return optimize(run, *args, **options)

        monkeypatch.setattr(loop, "optimize", spoiled)

    return make


SKIP = {"train": {"on_nonfinite": "skip", "ema_decay": 0.9}}


def test_a_sick_step_is_left_out_and_counted(make_config, cpu, tmp_path, sick_in):
    sick_in(2, 3)
    assert train(make_config(tmp_path, SKIP), cpu)
    last = load_checkpoint(tmp_path / "checkpoints" / "step_00000006.pt")
    assert last["skipped"] == [2, 0]
    assert last["ema"]["n_averaged"] == 4
    assert all(value.isfinite().all() for part in ("model", "ema", "criterion") for value in last[part].values())
    metrics = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert ['"skipped"' in line for line in metrics] == [False, False, True, True, False, False, False]
    assert '"loss": null' in metrics[2]
    assert '"skipped": 2' in metrics[3]
    assert (tmp_path / "log.txt").read_text().count("is not finite and was not taken: {'loss': nan") == 2


@pytest.mark.parametrize("differences", [SKIP, {}])
def test_the_batch_and_the_state_are_kept_and_show_the_same_again(
    make_config, cpu, tmp_path, sick_in, start, steps, differences
):
    sick_in(2)
    config = make_config(tmp_path, differences)
    if differences:
        train(config, cpu)
    else:
        with pytest.raises(NonFiniteStep, match=r"train.on_nonfinite=skip leaves such steps out"):
            train(config, cpu)
    (path,) = (tmp_path / "nonfinite").iterdir()
    assert path.name == "step_00000002_process_0.pt"
    kept = load_checkpoint(path)
    _, batches = start()
    theirs = batches[2]
    assert kept["batch"]["image_ids"] == theirs.image_ids
    assert kept["batch"]["padded_sizes"] == theirs.padded_sizes
    assert all(torch.equal(a, b) for a, b in zip(kept["batch"]["images"], theirs.images, strict=True))
    assert all(torch.equal(a["boxes"], b.boxes) for a, b in zip(kept["batch"]["targets"], theirs.targets, strict=True))
    assert math.isnan(kept["numbers"]["classification"])
    assert kept["step"] == kept["state"]["step"] == 2
    run, _ = start()
    run.load_state_dict(kept["state"])
    steps(run, [theirs])  # nothing but what was let in was wrong


def test_too_many_sick_steps_in_a_row_end_the_run(make_config, cpu, tmp_path, sick_in):
    sick_in(0, *range(2, 30))
    config = make_config(tmp_path, {**SKIP, "schedule": {"length": 30}})
    with pytest.raises(NonFiniteStep, match=f"^step {2 + MOST_IN_A_ROW}: "):
        train(config, cpu)
    assert len(list((tmp_path / "nonfinite").iterdir())) == MOST_WRITTEN
    last = load_checkpoint(sorted((tmp_path / "checkpoints").glob("step_*"))[-1])
    assert last["skipped"] == [1 + MOST_IN_A_ROW, MOST_IN_A_ROW]


def test_a_resumed_run_goes_on_counting(make_config, cpu, tmp_path, sick_in):
    sick_in(1, 2)
    train(make_config(tmp_path, {**SKIP, "schedule": {"length": 3}}), cpu)
    train(make_config(tmp_path, {**SKIP, "schedule": {"length": 4}}), cpu, "auto")
    assert load_checkpoint(tmp_path / "checkpoints" / "step_00000004.pt")["skipped"] == [2, 0]


def test_a_step_with_a_sick_gradient_under_fp16_leaves_the_scaler_usable(start, steps, monkeypatch):
    run, batches = start(train={"precision": "fp16"})
    with monkeypatch.context() as patch:
        let_in(run, "box", math.nan, patch)
        with pytest.raises(NonFiniteStep):
            steps(run, batches[:1], precision="fp16")
    steps(run, batches[1:2], precision="fp16")
