"""tools/bench.py: that it compares what can be compared, and that its numbers fit together. Nothing here is timed."""

import re

import pytest
import torch

from longshot.losses import BACKGROUND, IGNORE
from longshot.losses.kernel import CHUNK
from longshot.tools.benchmarks import loss_contenders, loss_cost, matching, memory, step_memory
from longshot.tools.benchmarks.loss_contenders import CONTENDERS, Case, differences, one_pass
from longshot.tools.benchmarks.loss_cost import Cost

SMALL = Case(rows=300, classes=7, dtype=torch.float32, device="cpu", threads=1)
MB = 2**20

needs_proc = pytest.mark.skipif(not memory.is_measurable(), reason="resident memory is measured on Linux")


@pytest.fixture(scope="module")
def losses(start, tmp_path_factory):
    """What `bench.py losses` prints of 2000 x 50 logits, as lines."""
    done = start(
        "bench", "losses", "--rows", 2000, "--classes", 50, "--repeats", 1, cwd=tmp_path_factory.mktemp("losses")
    )
    assert done.code == 0, done.err
    return done.out.splitlines()


def numbers(lines):
    """The table's contenders with their six columns."""
    table = {}
    for line in lines[2 : 2 + len(CONTENDERS)]:
        name, *columns = re.split(r"\s{2,}", line)
        table[name] = [float(column) for column in columns]
    return table


@needs_proc
def test_losses_table_has_every_contender(losses):
    assert losses[0].startswith("2000 x 50 float32 logits;")
    assert list(numbers(losses)) == list(CONTENDERS)


@needs_proc
def test_ratios_are_those_of_the_printed_seconds_and_megabytes(losses):
    table, copy = numbers(losses), 2000 * 50 * 4 / MB
    for seconds, to_bce, to_direct, extra, copies, gradients in table.values():
        assert to_bce == pytest.approx(seconds / table["torch cross entropy"][0], rel=2e-3, abs=1e-3)
        assert to_direct == pytest.approx(seconds / table["direct equalized focal"][0], rel=2e-3, abs=1e-3)
        assert copies * copy == pytest.approx(extra, abs=0.01)
        assert gradients == copies  # float32
    assert table["torch cross entropy"][1] == table["direct equalized focal"][2] == 1


@needs_proc
def test_losses_end_with_agreement_and_targets(losses):
    agreement, targets = losses[-5:-3], losses[-3:]
    assert agreement[0].startswith("ours_equalized_focal differs from direct_equalized_focal in float64")
    assert agreement[1].startswith("ours_focal differs from torchvision_focal in float64")
    for line, what in zip(targets, ("time / BCE", "time / direct formula", "peak memory / fp32 copy"), strict=True):
        assert line.startswith(f"target: {what}")
        assert line.endswith(("met", "NOT met"))


def test_targets_by_hand():
    case = Case(rows=1000, classes=250, dtype=torch.float32, device="cpu", threads=1)  # a copy is 1,000,000 bytes
    others = {"torch cross entropy": Cost(2.0, 3_000_000), "direct equalized focal": Cost(9.0, 11_000_000)}
    kept = loss_cost.targets(case, {"ours: equalized focal": Cost(1.5, 1_150_000), **others}).splitlines()
    assert kept == [
        "target: time / BCE at most 1: 0.750, met",
        "target: time / direct formula at most 0.167: 0.167, met",
        "target: peak memory / fp32 copy of the logits at most 1.15: 1.150, met",
    ]
    missed = loss_cost.targets(case, {"ours: equalized focal": Cost(2.1, 1_150_001), **others}).splitlines()
    assert [line.rpartition(" ")[0][-3:] for line in missed] == ["NOT"] * 3


def test_half_logits_may_cost_the_gradient_and_a_chunk():
    case = Case(rows=1000, classes=250, dtype=torch.bfloat16, device="cpu", threads=1)
    others = {"torch cross entropy": Cost(2.0, 1), "direct equalized focal": Cost(9.0, 1)}

    def target(extra):
        return loss_cost.targets(case, {"ours: equalized focal": Cost(1.0, extra), **others}).splitlines()[-1]

    assert target(500_000 + 4 * CHUNK).endswith("at most 1: 1.000, met")
    assert target(500_000 + 8 * CHUNK).endswith("at most 1: 2.000, NOT met")


def test_memory_that_cannot_be_measured_is_said_to_be_so(call, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "not there")
    done = call("bench", "losses", "--rows", 200, "--classes", 7, "--repeats", 1, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.count("not measured\n") == len(CONTENDERS) + 1  # in the table, and of the target
    step = call("bench", "step", cwd=tmp_path)
    assert step.code == 2
    assert "step: needs /proc/self/clear_refs" in step.err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_contenders_for_the_same_loss_agree(dtype):
    rounding = torch.finfo(dtype).eps / 2
    for difference in differences(SMALL._replace(dtype=dtype)):
        assert difference.loss < 1e-6
        assert difference.gradient < max(1e-4, 1.01 * rounding)


def test_contenders_that_disagree_are_not_timed(call, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_contenders, "torchvision_focal", loss_contenders.torch_cross_entropy)
    with pytest.raises(RuntimeError, match="ours_focal and torch_cross_entropy are not the same function"):
        call("bench", "losses", "--rows", 200, "--classes", 7, cwd=tmp_path)


def test_contenders_whose_gradients_alone_disagree_are_not_the_same(monkeypatch):
    def steeper(inputs, focal=loss_contenders.torchvision_focal):
        loss = focal(inputs)
        return 1.01 * loss - 0.01 * loss.detach()

    monkeypatch.setattr(loss_contenders, "torchvision_focal", steeper)
    with pytest.raises(RuntimeError, match=r"losses differ by .*, gradients by 9.9e-03") as caught:
        differences(SMALL)
    assert "ours_focal and steeper" in str(caught.value)


def test_inputs_are_the_same_every_time_and_have_all_kinds_of_rows():
    first, second = (Case(22_300, 5, torch.float32, "cpu", 1).inputs() for _ in range(2))
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.labels, second.labels)
    assert (first.labels >= 0).sum() == 201  # one in 111
    assert (first.labels == IGNORE).sum() == 201
    assert (first.labels == BACKGROUND).sum() == 22_300 - 402
    assert first.logits.requires_grad


def test_exponents_differ_by_class_and_stay():
    inputs = SMALL.inputs()
    before = inputs.equalized_focal.gradient_ratio
    assert before.max() - before.min() > 0.3
    one_pass(CONTENDERS["ours: equalized focal"], inputs)
    after = inputs.equalized_focal.gradient_ratio
    assert not torch.equal(after, before), "gradients were not collected"
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_leaves_out_ignored_rows(name):
    inputs = SMALL.inputs()
    one_pass(CONTENDERS[name], inputs)
    ignored = inputs.labels == IGNORE
    assert not inputs.logits.grad[ignored].any()
    assert inputs.logits.grad[~ignored].all()


@pytest.fixture
def contender(tmp_path, monkeypatch):
    """(name, its code of one line) -> nothing: makes it the only contender, in a module that new processes can import."""

    def make(name, code):
        module = f"contender_{len(list(tmp_path.iterdir()))}_{tmp_path.name}"
        (tmp_path / f"{module}.py").write_text(
            "import os, torch\nfrom longshot.tools.benchmarks.loss_contenders import torch_cross_entropy\n"
            f"def contender(inputs):\n    {code}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(loss_cost, "CONTENDERS", {name: __import__(module).contender})

    return make


@needs_proc
def test_extra_memory_is_the_peak_of_the_pass(contender):
    case = SMALL._replace(rows=100_000, classes=100)
    copy = 100_000 * 100 * 4 / MB  # so large that the C library asks the system for it and returns it at once
    plain = loss_cost.extra_memory(case, "torch cross entropy") / MB
    assert plain == pytest.approx(3 * copy, abs=4)  # forward: target, entries, log_sigmoid; backward: the gradient
    # Let go before backward.
    contender("heavy", "ballast = torch.ones(64 * 2**20); return torch_cross_entropy(inputs) + 0 * ballast[0]")
    assert loss_cost.extra_memory(case, "heavy") / MB == pytest.approx(256 + 3 * copy, abs=4)


@needs_proc
@pytest.mark.parametrize(("rows", "classes"), [(16_000, 1203), (200_700, 80)])
@pytest.mark.parametrize("name", ["ours: equalized focal", "ours: focal"])
def test_float32_logits_need_their_gradient_and_little_more(rows, classes, name):
    case = SMALL._replace(rows=rows, classes=classes)
    assert 1 <= loss_cost.extra_memory(case, name) / (4 * rows * classes) <= 1.15


@needs_proc
@pytest.mark.parametrize(("rows", "classes"), [(16_000, 1203), (400_000, 1)])
def test_half_logits_need_their_gradient_and_one_chunk(rows, classes):
    case = SMALL._replace(rows=rows, classes=classes, dtype=torch.bfloat16)
    beyond = loss_cost.extra_memory(case, "ours: equalized focal") - 2 * rows * classes
    assert beyond <= 4 * CHUNK


@needs_proc
@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("raise ValueError('no luck')", ValueError, "no luck"),
        ("os._exit(9)", RuntimeError, "'x' on 300 x 7 logits was"),
    ],
)
def test_failing_process_is_an_error(what, error, message, contender):
    contender("x", what)
    with pytest.raises(error, match=message):
        loss_cost.costs(SMALL, repeats=1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "required: COMMAND"),
        (["speed"], 2, "invalid choice: 'speed'"),
        (["losses", "--rows", "0"], 2, "argument --rows: expected a whole number of at least 1, found '0'"),
        (["losses", "--classes", "many"], 2, "--classes: expected a whole number of at least 1, found 'many'"),
        (["losses", "--dtype", "float8"], 2, "argument --dtype: invalid choice: 'float8'"),
        (["step", "--size", "800"], 2, "argument --size: expected height x width such as 800x1333, found '800'"),
        (["step", "--backbone", "resnt50"], 1, "error: bench step: model.backbone.name: unknown value 'resnt50'"),
    ],
)
def test_bad_arguments_are_told(arguments, code, message, call, tmp_path):
    done = call("bench", *arguments, cwd=tmp_path)
    assert done.code == code
    assert message in done.err


def test_matching_prints_every_contender_twice(call, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "not there")  # eight processes less
    threads = torch.get_num_threads()
    done = call("bench", "matching", "--objects", 3, "--repeats", 1, cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("46564 anchors on 5 levels;")
    rows = [re.split(r"\s{2,}", line) for line in lines[2:10]]
    expected = [(name, objects, "-") for objects in ("3", "30") for name in matching.CONTENDERS]
    assert [(row[0], row[1], row[4]) for row in rows] == expected
    assert lines[-1].startswith("target: at least 5 times as fast as a loop over 3 objects: ")
    assert torch.get_num_threads() == threads


def test_postprocess_prints_a_line_per_case(call, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "not there")
    done = call("bench", "postprocess", "--classes", 9, "--size", "64x96", "--repeats", 1, cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("342 anchors x 9 classes, image 64x96;")
    rows = [line.split() for line in lines[2:6]]
    assert [(row[0], row[1], row[5], row[7]) for row in rows] == [
        ("1000", "no", "-", "yes"), ("6000", "no", "-", "yes"), ("1000", "yes", "-", "yes"), ("6000", "yes", "-", "yes"),
    ]  # fmt: skip
    assert lines[-1].startswith("target: identical detections in at most 0.25 of torchvision's time: yes, at most ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_needs_a_gpu(call, tmp_path):
    done = call("bench", "losses", "--device", "cuda", cwd=tmp_path)
    assert (done.code, done.err.splitlines()[-1]) == (2, "bench.py: error: --device cuda: torch finds no GPU")


@needs_proc
def test_step_prints_a_line_per_phase(start, tmp_path):
    done = start("bench", "step", "--classes", 30, "--size", "64x96", "--backbone", "thin", cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("RetinaNet thin, 1 image 64x96 padded to 64x96: 129 x 30 logits;")
    assert [line[:38].strip() for line in lines[4:13]] == list(step_memory.PHASES)
    assert all(len(line[38:].split()) == 6 for line in lines[4:13])
    assert lines[-1].startswith("target: peak under 8 GB:")
