"""Detections kept on their way."""

import numpy as np
import pytest

from longshot.detector.errors import ResultsError
from longshot.detector.results.columns import DetectionColumns
from longshot.detector.results.parts import part_path, record, recorded, remove_parts


def batch(images, *, first=0):
    """Two detections in each image; every number is another one."""
    image_index = np.repeat(np.array(images, np.int64), 2)
    number = np.arange(first, first + len(image_index), dtype=np.float32)
    boxes = number[:, None] + np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    return DetectionColumns(image_index, np.arange(len(image_index)) % 3, boxes, number / 7)


def test_recorded_detections_are_those_of_all_processes_by_image_and_as_they_came(tmp_path):
    batches = {0: [batch([4, 0]), batch([5], first=4)], 1: [batch([1, 3], first=6)], 2: []}
    parts = [part_path(tmp_path / "found.npz", rank) for rank in batches]
    for rank, of_rank in batches.items():
        for seen, made in zip(record(of_rank, parts[rank]), of_rank, strict=True):
            assert seen is made
    found = recorded(parts)
    assert found.image_index.tolist() == [0, 0, 1, 1, 3, 3, 4, 4, 5, 5]
    together = [np.concatenate(columns) for columns in zip(*batches[0], *batches[1], strict=True)]
    order = [2, 3, 6, 7, 8, 9, 0, 1, 4, 5]
    for column, expected in zip(found, together, strict=True):
        assert column.dtype == expected.dtype
        np.testing.assert_array_equal(column, expected[order])


def test_a_batch_is_in_the_file_before_the_next_one_is_made(tmp_path):
    sizes = []

    def batches():
        for _ in range(3):
            yield batch(np.arange(5000))
            sizes.append((tmp_path / "part").stat().st_size)

    for _ in record(batches(), tmp_path / "part"):
        pass
    # But for what waits in the buffer of the file.
    np.testing.assert_allclose(sizes, 28 * 10_000 * np.arange(1, 4), atol=2**17)
    assert sizes[0] > 0


def test_nothing_is_left_where_the_work_fails(tmp_path):
    def failing():
        yield batch([0])
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        list(record(failing(), tmp_path / "part"))
    assert not list(tmp_path.iterdir())
    unfinished = record([batch([0]), batch([1])], tmp_path / "part")
    next(unfinished)
    unfinished.close()
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_not_there_is_an_error(tmp_path):
    list(record([batch([0])], tmp_path / "0"))
    with pytest.raises(ResultsError, match=r"/1: not there.* in a folder that all processes share"):
        recorded([tmp_path / "0", tmp_path / "1"])


def test_parts_of_any_number_of_processes_are_removed_and_nothing_else(tmp_path):
    path = tmp_path / "found [a].npz"
    others = [path, tmp_path / "found a.npz.0.part", tmp_path / "found [a].npz.mine.part"]
    for file in (*others, part_path(path, 0), part_path(path, 11)):
        file.write_bytes(b"")
    remove_parts(path)
    assert sorted(tmp_path.iterdir()) == sorted(others)
