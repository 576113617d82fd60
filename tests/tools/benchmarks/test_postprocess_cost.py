"""That both sides do the same work, and that verdicts follow from numbers. Nothing here is timed."""

import pytest
import torch

from longshot.detector.model.postprocess import Detections
from longshot.tools.benchmarks import memory, postprocess
from longshot.tools.benchmarks.harness import in_new_process
from longshot.tools.benchmarks.postprocess import OURS, TORCHVISION, Case, Cost, Measured

SMALL = Case(num_classes=70, image_size=(300, 420), candidates=1000, quality=False, threads=1)


@pytest.mark.parametrize("quality", [False, True])
@pytest.mark.parametrize("candidates", [50, 1000, 6000])
def test_detections_of_both_sides_are_identical(candidates, quality):
    case = SMALL._replace(candidates=candidates, quality=quality)
    inputs = postprocess.made_up_inputs(case)
    ours, theirs = (postprocess.contender(case, name, inputs)() for name in (OURS, TORCHVISION))
    assert len(ours.scores) > 40
    assert ours.labels.unique().numel() > 5
    assert postprocess.are_identical(ours, theirs)
    if not quality:  # an ulp: PyTorch computes the last few elements of a sigmoid by other instructions
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=2e-7, atol=0)


def test_what_differs_in_boxes_labels_or_scores_is_not_identical():
    found = Detections(torch.rand(3, 4), torch.tensor([0.9, 0.5, 0.1]), torch.tensor([4, 0, 4]))
    assert postprocess.are_identical(found, found._replace(scores=found.scores * (1 + 1e-6)))
    assert not postprocess.are_identical(found, found._replace(scores=found.scores * (1 + 1e-5)))
    assert not postprocess.are_identical(found, found._replace(boxes=found.boxes + 1e-3))
    assert not postprocess.are_identical(found, found._replace(labels=found.labels.flip(0) * 2 + 1))
    assert not postprocess.are_identical(found, Detections(*(column[:2] for column in found)))


def test_quality_changes_the_detections():
    with_quality = SMALL._replace(quality=True)
    plain, product = (
        postprocess.contender(case, OURS, postprocess.made_up_inputs(case))() for case in (SMALL, with_quality)
    )
    assert plain.scores[0] > 1.05 * product.scores[0]


@pytest.mark.skipif(not memory.is_measurable(), reason="resident memory is measured on Linux")
def test_torchvision_holds_an_index_of_every_pair():
    pairs = 16_000 * 700  # at least: 64 x 96 locations on P3 of the padded image, with two anchors and 700 classes
    case = SMALL._replace(num_classes=700, image_size=(512, 768))
    inputs = postprocess.made_up_inputs(case)
    assert sum(level[..., 0].numel() for level in inputs.outputs.logits) * 700 > pairs
    assert (
        in_new_process(postprocess.extra_memory, case, TORCHVISION, what="theirs") > (4 + 8) * pairs
    )  # a score and an index of each pair
    assert in_new_process(postprocess.extra_memory, case, OURS, what="ours") < 4 * pairs  # not even the scores


def test_table_and_target_by_hand():
    met = Measured(SMALL, Cost(0.02, 3 * memory.MB), Cost(0.1, 90 * memory.MB), 100, True)
    slow = met._replace(case=SMALL._replace(quality=True), ours=Cost(0.03, None))
    _, first, second = postprocess.table([met, slow]).splitlines()
    assert first.split() == ["1000", "no", "0.0200", "0.1000", "0.200", "3", "90", "yes"]
    assert second.split() == ["1000", "yes", "0.0300", "0.1000", "0.300", "-", "90", "yes"]
    assert postprocess.target([met]).endswith("torchvision's time: yes, at most 0.200, met")
    assert postprocess.target([met, slow]).endswith("yes, at most 0.300, NOT met")
    assert postprocess.target([met._replace(identical=False)]).endswith("no, at most 0.200, NOT met")


def test_measuring_covers_all_cases_and_leaves_the_number_of_threads_alone(monkeypatch):
    monkeypatch.setattr(memory, "is_measurable", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        measured = postprocess.measure(9, (100, 120), threads=before, repeats=1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert [(one.case.candidates, one.case.quality) for one in measured] == [
        (1000, False), (6000, False), (1000, True), (6000, True),
    ]  # fmt: skip
    assert all(one.identical and one.ours.seconds > 0 and one.ours.extra is None for one in measured)
