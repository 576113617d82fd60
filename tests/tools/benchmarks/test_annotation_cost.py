import numpy as np
import pytest

from longshot.datasets.annotations.annotations import read_annotations
from longshot.datasets.annotations.coco import CocoAnnotation, CocoCategory, CocoImage
from longshot.datasets.annotations.coco_stream import stream_lists
from longshot.tools.benchmarks import memory
from longshot.tools.benchmarks.annotation_file import write_annotations
from longshot.tools.benchmarks.annotations import Cost, Reader, _added_memory, table, targets


def test_made_up_file_has_the_size_of_lvis_and_is_streamed(tmp_path):
    path = tmp_path / "made_up.json"
    write_annotations(path, num_images=300)
    annotations = read_annotations(path)
    assert (len(annotations.image_ids), len(annotations.category_ids), annotations.is_lvis) == (300, 1203, True)
    assert len(annotations.labels) == round(300 * 1_270_141 / 100_170)
    assert path.stat().st_size / len(annotations.labels) == pytest.approx(900, rel=0.1)  # polygons above all
    assert annotations.file_names[0] == "train2017/000000000000.jpg"
    types = {"images": CocoImage, "annotations": CocoAnnotation, "categories": CocoCategory}
    assert {key for key, _ in stream_lists(path, types)} == set(types)


@pytest.mark.skipif(not memory.is_measurable(), reason="needs Linux's /proc")
def test_what_workers_share_counts_once_and_what_they_copy_for_each():
    def read(_):
        return np.ones(200 * memory.MB, np.uint8)  # far more than what else comes and goes in a process of tests

    def copy(array):
        copies.append(array.copy())

    copies = []
    shared = _added_memory(Reader("", read, np.sum), None, 2) / memory.MB
    copied = _added_memory(Reader("", read, copy), None, 2) / memory.MB
    assert shared == pytest.approx(200, abs=50)
    assert copied == pytest.approx(600, abs=50)


def test_table_and_targets_tell_what_was_measured():
    costs = [
        Cost("parsing alone", 100, 2.0, 2.5, 50 * memory.MB, {}),
        Cost("ours, first", 100, 3.0, 4.0, 20 * memory.MB, {}),
        Cost("ours, second", 100, 1.25, 0.2, 5 * memory.MB, {}),
        Cost("ours, dataset", 100, 0.3, 0.4, 6 * memory.MB, {n: (140 + n) * memory.MB for n in (0, 2, 8)}),
    ]
    assert " ".join(table(costs).splitlines()[-1].split()) == "ours, dataset 100 0.300 0.400 6.0 140.0 142.0 148.0"
    assert targets(costs).splitlines() == [
        "target: CPU seconds of the first open / parsing alone at most 2: 1.5, met",
        "target: CPU seconds of the second open at most 1: 1.25, NOT met",
        "target: MB added by a dataset with 0 workers at most 150: 140, met",
        "target: MB added by a dataset with 2 workers at most 150: 142, met",
        "target: MB added by a dataset with 8 workers at most 150: 148, met",
    ]
