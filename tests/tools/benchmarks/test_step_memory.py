import itertools
import mmap

import pytest

from longshot.tools.benchmarks import memory, step_memory
from longshot.tools.benchmarks.step_memory import Meter, StepMemory, Usage

MB = 2**20

needs_proc = pytest.mark.skipif(not memory.is_measurable(), reason="resident memory is measured on Linux")


@needs_proc
def test_meter_charges_the_phase_in_work():
    meter = Meter()
    meter.enter("kept")
    kept = _resident_pages(64)
    meter.enter("passing")
    _resident_pages(128).close()
    meter.enter("freed")
    kept.close()
    meter.enter(None)
    changes = {phase: usage.change / MB for phase, usage in meter.usage.items()}
    assert changes == pytest.approx({"kept": 64, "passing": 0, "freed": -64}, abs=2)
    above = {phase: (usage.peak - usage.after) / MB for phase, usage in meter.usage.items()}
    assert above == pytest.approx({"kept": 0, "passing": 128, "freed": 64}, abs=2)


def _resident_pages(megabytes):
    """Memory straight from the system: an allocator may hand out what it kept of freed memory, resident all along."""
    pages = mmap.mmap(-1, megabytes * MB)
    for page in range(0, len(pages), mmap.PAGESIZE):
        pages[page] = 1
    return pages


@pytest.fixture(scope="module")
def thin_step():
    """Nothing but the sizes matters: 64x96 pixels have 96 + 24 + 6 + 2 + 1 cells in the pyramid; two anchors in each."""
    config = step_memory.step_config(backbone="thin", num_anchors=2)
    return step_memory.measure_step(config, num_classes=30, image_size=(60, 90))


@needs_proc
def test_step_knows_what_its_tensors_need(thin_step):
    assert thin_step.padded_size == (64, 96)
    assert thin_step.logits_shape == (2 * 129, 30)
    tensors = thin_step.tensors
    assert tensors["logits"] == tensors["gradient of logits"] == 2 * 129 * 30 * 4
    assert tensors["gradients of weights"] == tensors["momentum"]
    assert 0.95 < tensors["momentum"] / tensors["weights"] < 1  # frozen norm layers have no gradient


@needs_proc
def test_step_is_measured_in_all_its_phases(thin_step):
    assert [set(step) for step in thin_step.steps] == [set(step_memory.PHASES)] * 2
    for step in thin_step.steps:
        assert all(0 < usage.after <= usage.peak + MB for usage in step.values())
        end = step[step_memory.END].after
        begin = step[step_memory.TARGETS].after - step[step_memory.TARGETS].change
        assert sum(usage.change for usage in step.values()) == pytest.approx(end - begin, abs=MB)


def test_step_enters_its_phases_in_order(cpu):
    phases, meter = [], Meter()
    meter.enter = phases.append
    config = step_memory.step_config(backbone="thin", num_anchors=1)
    run, batch = step_memory._run(config, 30), step_memory._batch((64, 96), 30, 32)
    step_memory._watch(run, meter)
    step_memory.optimize(run, run.network, batch, cpu, images_per_pass=1, precision="fp32", clip_norm=None)
    s = step_memory
    levels = [s.FEATURES, s.LOGITS] * 5 + [s.FEATURES]
    backward = [s.FEATURES_BACKWARD, s.LOGITS_BACKWARD] * 5 + [s.FEATURES_BACKWARD]
    in_turn = [phase for phase, _ in itertools.groupby(phases)]
    assert in_turn == [*levels, s.LOSS, s.LOSS_BACKWARD, *backward, s.UPDATE, s.END]


def test_step_target_by_hand():
    def target(peak):
        phases = {phase: Usage(0, 10**9, 2 * 10**9) for phase in step_memory.PHASES}
        steps = [phases, phases | {step_memory.LOGITS: Usage(0, 10**9, peak)}]
        return step_memory.target(StepMemory(0, Usage(), steps, [1.0, 1.0], {}, (1, 1), (32, 32)))

    assert target(7_999_999_999) == "target: peak under 8 GB: 8.00 GB, in step 2, logits: met"
    assert target(8_000_000_000).endswith(": NOT met")


def test_peak_of_tensors_leaves_out_what_libraries_keep():
    last = {step_memory.LOGITS: Usage(0, 500, 900), step_memory.END: Usage(0, 700, 710)}
    staying = {"weights": 200, "gradients of weights": 150, "momentum": 150, "logits": 99}
    measured = StepMemory(100, Usage(), [{}, last], [1.0, 1.0], staying, (1, 1), (32, 32))
    assert measured.peak_of_tensors == 700  # 200 of the 700 at the end are no tensors
    assert step_memory.comparison(measured, 770).endswith("difference +10.0%")
