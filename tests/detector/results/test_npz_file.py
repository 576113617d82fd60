"""Detections as .npz: exact both ways, with the ids and names of the file, never executed, and one clear error each."""

import logging
import pathlib

import numpy as np
import pytest

from longshot.detector.errors import ResultsError
from longshot.detector.results.columns import DetectionColumns
from longshot.detector.results.files import read_results, write_results

IDS = {
    "image_ids": np.array([5, 17, 300]),
    "category_ids": np.array([3, 7, 90]),
    "class_names": ("ant", "bee", "cat"),
}


def detections(count=20, seed=0):
    rng = np.random.default_rng(seed)
    boxes, scores = rng.uniform(0, 1000, (count, 4)).astype(np.float32), rng.random(count, np.float32)
    return DetectionColumns(rng.integers(0, 3, count), rng.integers(0, 3, count), boxes, scores)


@pytest.fixture
def path(tmp_path):
    """A good file."""
    write_results(tmp_path / "found.npz", detections(), **IDS)
    return tmp_path / "found.npz"


@pytest.fixture
def change(path):
    """Write the good file's arrays, with some of them replaced; None leaves one out."""
    with np.load(path) as archive:
        good = dict(archive)

    def write(**arrays):
        np.savez(path, **{name: array for name, array in (good | arrays).items() if array is not None})

    return write


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_written_detections_read_back_bitwise(count, tmp_path):
    expected = detections(count)
    write_results(tmp_path / "found.npz", expected, **IDS)
    for found, column in zip(read_results(tmp_path / "found.npz", **IDS), expected, strict=True):
        assert found.dtype == column.dtype
        np.testing.assert_array_equal(found, column)
    assert [path.name for path in tmp_path.iterdir()] == ["found.npz"]


def test_a_detection_takes_28_bytes_and_the_same_ones_give_the_same_file(tmp_path):
    for name, count in (("few", 1000), ("many", 3000), ("again", 3000)):
        write_results(tmp_path / f"{name}.npz", detections(count), **IDS)
    few, many = ((tmp_path / f"{name}.npz").stat().st_size for name in ("few", "many"))
    assert many - few == pytest.approx(2000 * 28, abs=100)
    assert (tmp_path / "many.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()


def test_the_file_bears_the_ids_and_names_of_the_annotations(path):
    with np.load(path, allow_pickle=False) as archive:
        assert archive["image_ids"].tolist() == [5, 17, 300]
        assert archive["category_ids"].tolist() == [3, 7, 90]
        assert archive["class_names"].tolist() == ["ant", "bee", "cat"]
        assert archive["image_index"].tolist() == detections().image_index.tolist()
        assert archive["labels"].tolist() == detections().labels.tolist()


def test_what_float32_would_round_is_not_written(tmp_path):
    rng = np.random.default_rng(0)
    exact = detections()._replace(boxes_xywh=rng.uniform(0, 1000, (20, 4)), scores=rng.random(20))
    with pytest.raises(AssertionError, match="a file that rounds"):
        write_results(tmp_path / "found.npz", exact, **IDS)
    assert not list(tmp_path.iterdir())


def test_a_model_may_know_more_classes_than_the_annotations(path, caplog):
    # The annotations cut down to ants and cats: label 1 of the file is unknown, and 2 is 1.
    fewer = IDS | {"category_ids": np.array([3, 90]), "class_names": ("ant", "cat")}
    with caplog.at_level(logging.WARNING):
        columns = read_results(path, **fewer)
    expected = np.array([0, -1, 1])[detections().labels]
    assert columns.labels.tolist() == expected.tolist()
    bees = np.count_nonzero(expected == -1)
    assert f"{bees} of 20 detections match nothing: the annotations do not have their category ids 7" in caplog.text


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"image_ids": np.array([5, 300])},
            r"in 3 images, of which the annotations do not have 1, with the image ids 17;",
        ),
        (
            {"image_ids": np.array([5, 17, 99, 300])},
            r"the annotations have 1 others, with the image ids 99; nothing was",
        ),
        ({"class_names": ("ant", "wasp", "cat")}, r"1 differ: id 7: 'bee' here, 'wasp' there"),
        (
            {"category_ids": np.array([1, 3, 7, 90]), "class_names": ("elk", "ant", "bee", "cat")},
            r"1 differ: id 1: 'nothing' here, 'elk' there",
        ),
    ],
)
def test_a_file_of_other_images_or_classes_is_an_error(other, message, path):
    with pytest.raises(ResultsError, match=message):
        read_results(path, **IDS | other)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_an_error(part, path):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ResultsError, match=r"found.npz: .*not a complete copy"):
        read_results(path, **IDS)


def test_a_file_with_a_flipped_bit_is_an_error(path):
    content = bytearray(path.read_bytes())
    content[content.index(detections().boxes_xywh.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=r"found.npz: .*Bad CRC"):
        read_results(path, **IDS)


class Payload:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("executed"),)


def test_reading_never_executes_what_is_in_a_file(path, change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ({"class_names": np.array([Payload()] * 3)}, {"scores": np.array([Payload()] * 20)}):
        change(**content)
        with pytest.raises(ResultsError, match=r"found.npz: no file of detections"):
            read_results(path, **IDS)
    np.array([Payload()]).dump(path)  # a pickle and nothing else
    with pytest.raises(ResultsError, match=r"found.npz: no file of detections"):
        read_results(path, **IDS)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"scores": None}, "scores is not a file in the archive"),
        ({"labels": np.zeros(20)}, r"labels is float64 \(20,\)"),
        ({"scores": np.float32(1)}, r"scores is float32 \(\)"),
        ({"class_names": np.arange(3)}, r"class_names is int64 \(3,\)"),
        ({"boxes_xywh": np.zeros((20, 5), np.float32)}, r"boxes_xywh is of shape \(20, 5\), expected \(20, 4\)"),
        ({"labels": np.zeros(19, int)}, r"labels is of shape \(19,\), expected \(20,\)"),
        ({"class_names": np.array(["ant"])}, r"class_names is of shape \(1,\), expected \(3,\)"),
        ({"labels": np.full(20, 3)}, "labels has values outside of the 3 category_ids"),
        ({"image_index": np.full(20, -1)}, "image_index has values outside of the 3 image_ids"),
        ({"scores": np.full(20, np.nan, np.float32)}, r"20 detections have a box or score that is NaN .* at \$\[0\]"),
    ],
)
def test_a_foreign_file_is_an_error_that_says_what_is_wrong(arrays, message, path, change):
    change(**arrays)
    with pytest.raises(ResultsError, match=message):
        read_results(path, **IDS)


def test_other_formats_under_the_name_and_missing_files_are_errors(path):
    path.write_text("[]")
    with pytest.raises(ResultsError, match=r"found.npz: no file of detections"):
        read_results(path, **IDS)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ResultsError, match=r"found.npz: no file of detections"):
        read_results(path, **IDS)
    with pytest.raises(ResultsError, match=r"nowhere.npz: cannot read the results file: No such file"):
        read_results(path.with_name("nowhere.npz"), **IDS)
