"""That what is compared does the same work. Nothing here is timed."""

import re

import pytest
import torch

from longshot.tools.benchmarks import matching, memory
from longshot.tools.benchmarks.harness import in_new_process
from longshot.tools.benchmarks.matching import CONTENDERS, LOOP, OUR_IOU, OURS, TORCHVISION, Cost

MB = 2**20


def test_there_are_as_many_anchors_as_for_an_image_of_800_by_1333():
    anchors, boxes = matching.anchors_and_boxes(60)
    assert sum(map(len, anchors)) == 46_564
    assert boxes.shape == (60, 4)
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([1333, 800, 1333, 800])).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() < 16
    assert sides.max() > 400


def test_contenders_for_the_same_matches_agree():
    inputs = matching.anchors_and_boxes(60)
    matches = {name: contender(*inputs) for name, contender in CONTENDERS.items()}
    assert torch.equal(matches[OURS], matches[LOOP])
    assert torch.equal(matches[OUR_IOU], matches[TORCHVISION])
    assert all((found >= 0).sum() > 300 for found in matches.values())


def test_contenders_that_disagree_are_not_timed(monkeypatch):
    monkeypatch.setitem(CONTENDERS, LOOP, matching.our_max_iou)
    with pytest.raises(RuntimeError, match=r"'ours: ATSS' and 'ATSS, a loop over objects' differ at \d+ anchors"):
        matching.measure(20, repeats=1)


def test_table_and_target_by_hand():
    few = {OURS: Cost(0.002, 3 * MB), LOOP: Cost(0.010, 2 * MB), TORCHVISION: Cost(0.020, None)}
    many = {OURS: Cost(0.008, 4 * MB), LOOP: Cost(0.100, 2 * MB), TORCHVISION: Cost(0.300, None)}
    measured = {60: few, 600: many}
    rows = [re.split(r"\s{2,}", line) for line in matching.table(measured).splitlines()[1:]]
    assert rows[0] == [OURS, "60", "2.00", "1.00", "3.0", "1.00"]
    assert rows[2] == [TORCHVISION, "60", "20.00", "10.00", "-", "1.00"]
    assert rows[4] == [LOOP, "600", "100.00", "12.50", "2.0", "10.00"]
    assert matching.target(measured) == "target: at least 5 times as fast as a loop over 60 objects: 5.00, met"
    slower = {60: {**few, LOOP: Cost(0.0099, None)}, 600: many}
    assert matching.target(slower).endswith("4.95, NOT met")


@pytest.mark.skipif(not memory.is_measurable(), reason="resident memory is measured on Linux")
def test_extra_memory_is_the_peak_of_the_contender():
    # The IoUs of 600 objects and 46,564 anchors alone take 107 MB.
    ours, theirs = (in_new_process(matching.extra_memory, name, 600, what=name) / MB for name in (OUR_IOU, TORCHVISION))
    assert theirs > 2 * 107
    assert 1 < ours < 107
