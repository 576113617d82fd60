"""Two processes that stop together: on request, for a number that is not finite, and when one of them dies."""

import json
import signal

import pytest
import torch

from longshot.detector.checkpoint.file import load_checkpoint
from longshot.detector.checkpoint.folder import saved_steps
from longshot.tools.checks.soak import compare

# Each process does one job after the other, given by the configuration of a run and what happens to which rank in which
# step: a signal, or a value let in at a place. The last job ends with the death of rank 1, and rank 0 asked to stop.
PROCESS = """
import hashlib, json, math, os, signal, sys
from pathlib import Path
import torch
from longshot.detector.config.schema import parse_config
from longshot.detector.system.distributed import process_group
from longshot.detector.run.loop import train
from longshot.detector.run import loop
from longshot.detector.training.step import NonFiniteStep

torch.set_num_threads(1)
folder = Path(sys.argv[1])
optimize, ends = loop.optimize, {}

def spoil(tensor):
    spoiled = tensor.clone()
    spoiled[-1] = math.nan
    return spoiled

def flat(run):
    state = {k: v for k, v in run.state_dict().items() if k not in ("scaler", "random", "optimizer", "step")}
    moments = [v for p in run.optimizer.state_dict()["state"].values() for v in p.values()]
    parts = [v for part in state.values() if isinstance(part, dict) for v in part.values()]
    return [v.numpy().tobytes() for v in parts + moments]  # NaN is not equal to itself

def digest(run):  # without BatchNorm's statistics, which each process gathers on its own
    averages = run.ema.parameters() if run.ema else ()
    moments = [v for p in run.optimizer.state_dict()["state"].values() for v in p.values()]
    state = [*run.network.parameters(), *averages, *run.criterion.buffers(), *moments]
    return hashlib.sha256(b"".join(v.detach().numpy().tobytes() for v in state)).hexdigest()

STATE = {
    "weight": lambda run: run.network.head.logits.weight,
    "EFL": lambda run: run.criterion.classification.positive_gradient,
    "momentum": lambda run: run.optimizer.state[run.network.head.logits.weight]["momentum_buffer"],
    "average": lambda run: run.ema.module.head.deltas.weight,
}

def let_in(run, place):
    network = run.network
    if place == "pixels":
        preprocess = network.preprocess
        network.preprocess = lambda *inputs: spoil(preprocess(*inputs))
        return lambda: delattr(network, "preprocess")
    if place in ("classification", "box"):
        criterion, forward = run.criterion, run.criterion.forward
        criterion.forward = lambda *inputs: {k: v + math.nan * (k == place) for k, v in forward(*inputs).items()}
        return lambda: delattr(criterion, "forward")
    if place == "trunk":
        return network.backbone.layer2.register_forward_hook(lambda module, inputs, output: spoil(output)).remove
    if place in ("logits", "deltas"):
        def change(module, inputs, output):
            levels = getattr(output, place)
            return output._replace(**{place: [spoil(levels[0]), *levels[1:]]})
        return network.head.register_forward_hook(change).remove
    if place in STATE:  # as bits that flip in memory would have it
        sick = STATE[place](run).detach()
        good = sick.clone()
        sick[-1] = math.nan
        return lambda: sick.copy_(good)
    if place == "learning rate":
        group = run.optimizer.param_groups[0]
        rate, group["lr"] = group["lr"], math.inf
        return lambda: group.update(lr=rate)
    if place == "gradient":
        return network.head.logits.weight.register_hook(spoil).remove
    assert place == "gradient after the all-reduce"  # as memory that fails on one machine would have it
    unscale = run.scaler.unscale_
    def spoiled(optimizer):
        network.head.logits.weight.grad[-1] = math.nan
        unscale(optimizer)
    run.scaler.unscale_ = spoiled
    return lambda: delattr(run.scaler, "unscale_")

with process_group("cpu") as process:
    for number, (values, happens) in enumerate(json.loads((folder / "jobs.json").read_text())):
        told = []

        def eventful(run, *args, **options):
            mine = [what for step, rank, what in happens if step == run.step + 1 and rank == process.rank]
            undo = [let_in(run, what) for what in mine if not what.startswith("SIG")]
            for what in mine:
                if what.startswith("SIG"):
                    os.kill(os.getpid(), getattr(signal, what))
            before = flat(run)
            try:
                return optimize(run, *args, **options)
            except NonFiniteStep:
                told.append([run.step + 1, before == flat(run)])
                raise
            finally:
                ends[number] = run
                for remove in undo:
                    remove()

        loop.optimize = eventful
        complete = train(parse_config(values), process)
        told += [complete, digest(ends[number])]
        (folder / f"job_{number}_of_{process.rank}.json").write_text(json.dumps(told))
"""

PLACES = [
    "pixels", "trunk", "logits", "deltas", "classification", "box", "gradient", "gradient after the all-reduce",
    "weight", "EFL", "momentum", "average", "learning rate",
]  # fmt: skip
EVERYTHING = {"model": {"backbone": {"norm": "bn"}}, "train": {"ema_decay": 0.9, "on_nonfinite": "skip"}}


@pytest.fixture(scope="module")
def done(make_config, run_processes, tmp_path_factory):
    """The folder of what two processes have done, and how they ended."""
    folder = tmp_path_factory.mktemp("two processes")
    asked = make_config(folder / "asked"), [(3, 1, "SIGUSR1")]
    sick = make_config(folder / "sick", {**EVERYTHING, "schedule": {"length": 2 * len(PLACES) + 1}})
    one_sick = [(2 * i + 2, 1 - i % 2, place) for i, place in enumerate(PLACES)]
    half = make_config(folder / "half", {"train": {"precision": "fp16"}}), [(5, 1, "gradient after the all-reduce")]
    dies = make_config(folder / "dies"), [(4, 0, "SIGTERM"), (4, 1, "SIGKILL")]
    jobs = [(make_config(folder / "whole"), []), asked, (*asked[:1], []), (sick, one_sick), half, dies]
    (folder / "jobs.json").write_text(json.dumps([(c.model_dump(mode="json"), happens) for c, happens in jobs]))
    return folder, *run_processes(2, "-c", PROCESS, folder)


def told(done, job):
    """By each rank: the steps that were refused, and whether the state stayed as it was; whether the run was complete."""
    both = [json.loads((done[0] / f"job_{job}_of_{rank}.json").read_text()) for rank in (0, 1)]
    assert both[0][-1] == both[1][-1], "weights and state at the end differ between the ranks"
    return [of_rank[:-1] for of_rank in both]


def test_both_stop_at_the_same_step_though_only_one_was_asked(done):
    assert told(done, 0) == [[True], [True]], done[2]
    assert told(done, 1) == [[False], [False]]


def test_the_same_call_goes_on_and_ends_as_the_run_that_was_left_alone(done):
    assert told(done, 2) == [[True], [True]]
    assert not [part for part in compare(done[0] / "asked", done[0] / "whole") if part.different]
    assert "asked to stop, saved step 3" in (done[0] / "asked" / "log.txt").read_text()
    assert not (done[0] / "asked" / "preempted.json").exists()


def test_what_is_not_finite_on_one_rank_is_refused_by_both_and_leaves_nothing(done):
    expected = [[2 * i + 2, True] for i in range(len(PLACES))]
    assert told(done, 3) == [[*expected, True], [*expected, True]]
    last = load_checkpoint(saved_steps(done[0] / "sick" / "checkpoints")[-1])
    assert last["skipped"] == [len(PLACES), 0]
    state = [*last["model"].values(), *last["ema"].values(), *last["criterion"].values()]
    assert all(torch.isfinite(value).all() for value in state)


def test_under_fp16_both_leave_out_a_step_that_overflows_on_one_of_them_after_the_all_reduce(done):
    assert told(done, 4) == [[True], [True]]
    records = [json.loads(line) for line in (done[0] / "half" / "metrics.jsonl").read_text().splitlines()]
    left_out = [record["step"] for record in records if record.get("gradient_norm", 0.0) is None]
    assert {4, 5, 6} & set(left_out) == {5}, "by itself, only the first steps overflow"


def test_each_rank_keeps_its_own_share_of_a_sick_batch(done):
    files = sorted((done[0] / "sick" / "nonfinite").iterdir())
    assert [path.name for path in files[:2]] == ["step_00000001_process_0.pt", "step_00000001_process_1.pt"]
    first, second = (load_checkpoint(path) for path in files[:2])
    assert len(first["batch"]["image_ids"]) == len(second["batch"]["image_ids"]) == 2
    assert first["batch"]["image_ids"] != second["batch"]["image_ids"]
    assert first["state"]["step"] == 1
    assert "state" not in second


def test_after_a_failed_collective_nothing_is_written(done):
    folder, codes, output = done
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, -signal.SIGTERM), output[0]
    assert [path.name for path in saved_steps(folder / "dies" / "checkpoints")] == ["step_00000002.pt"]
    assert not (folder / "dies" / "preempted.json").exists()
    assert not list((folder / "dies").glob("lease*"))
