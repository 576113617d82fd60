"""Results files in JSON: exact both ways, and one clear error for each way to be wrong. For .npz see test_results_npz."""

import json
import logging

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
GOOD = {"image_id": 17, "category_id": 90, "bbox": [1.5, 2, 3, 4.25], "score": 0.5}


@pytest.fixture
def read(tmp_path):
    """Read what `json.dumps` makes of the records, or a text as it is."""

    def run(records):
        path = tmp_path / "results.json"
        path.write_text(records if isinstance(records, str) else json.dumps(records))
        return read_results(path, **IDS)

    return run


def test_records_become_columns_in_the_order_of_the_file(read):
    other = {"score": 1, "bbox": [0, 0, 1, 1], "category_id": 3, "image_id": 300, "segmentation": {"size": [1, 1]}}
    columns = read([GOOD, other, GOOD | {"image_id": 5}])
    assert columns.image_index.tolist() == [1, 2, 0]
    assert columns.labels.tolist() == [2, 0, 2]
    assert columns.boxes_xywh.tolist() == [[1.5, 2, 3, 4.25], [0, 0, 1, 1], [1.5, 2, 3, 4.25]]
    assert columns.scores.tolist() == [0.5, 1, 0.5]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_detections", [0, 1, 100_001])
def test_written_detections_read_back_bitwise(dtype, num_detections, tmp_path):
    rng = np.random.default_rng(0)
    columns = DetectionColumns(
        image_index=rng.integers(0, 3, num_detections),
        labels=rng.integers(0, 3, num_detections),
        boxes_xywh=rng.uniform(0, 1000, (num_detections, 4)).astype(dtype),
        scores=rng.random(num_detections).astype(dtype),
    )
    write_results(tmp_path / "results.json", columns, **IDS)
    for found, expected in zip(read_results(tmp_path / "results.json", **IDS), columns, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_written_file_has_the_keys_and_ids_of_coco(tmp_path):
    columns = DetectionColumns(np.array([1]), np.array([2]), np.array([[1.5, 2, 3, 4.25]]), np.array([0.5]))
    write_results(tmp_path / "results.json", columns, **IDS)
    assert json.loads((tmp_path / "results.json").read_text()) == [GOOD]


def test_a_file_without_detections_is_legal(read):
    columns = read([])
    assert [column.shape for column in columns] == [(0,), (0,), (0, 4), (0,)]


def test_unknown_categories_are_counted_and_named_and_kept_for_the_limit(read, caplog):
    with caplog.at_level(logging.WARNING):
        columns = read([GOOD, GOOD | {"category_id": 91}, GOOD | {"category_id": 0}, GOOD | {"category_id": 91}])
    assert columns.labels.tolist() == [2, -1, -1, -1]
    assert "3 of 4 detections match nothing: the annotations do not have their category ids 0, 91" in caplog.text


def test_unknown_images_are_an_error_that_names_them(read):
    with pytest.raises(ResultsError, match=r"13 of 14 detections name image ids .* do not have: 301, 302, .*13 in all"):
        read([GOOD] + [GOOD | {"image_id": 301 + i} for i in range(13)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps([GOOD, GOOD])[:-20], "not JSON: .* is it a complete copy"),
        ("", "not JSON: .* The file has 0 bytes"),
        ({"annotations": []}, "Expected `array`, got `object`; expected a list of"),
        ([GOOD, {"image_id": 17, "category_id": 90, "bbox": [1, 2, 3, 4]}], r"field `score` - at `\$\[1\]`"),
        ([GOOD | {"bbox": [1, 2, 3]}], r"length 4.* - at `\$\[0\].bbox`"),
        ([GOOD | {"score": "high"}], r"Expected `float`, got `str` - at `\$\[0\].score`"),
        ([GOOD | {"image_id": "17"}], r"Expected `int`, got `str` - at `\$\[0\].image_id`"),
        ([GOOD | {"image_id": 2**70}], r"at `\$\[0\].image_id`"),
        ([GOOD, GOOD | {"score": float("nan")}], r"NaN or infinite, the first at \$\[1\]: .* score nan"),
        ([GOOD | {"bbox": [1, 2, float("inf"), 4]}], r"the first at \$\[0\]: bbox \[1.0, 2.0, inf, 4.0\]"),
    ],
)
def test_a_bad_file_is_one_clear_error(content, message, read):
    with pytest.raises(ResultsError, match=message):
        read(content)


def test_a_mistake_is_told_by_its_place_in_the_whole_file(read):
    with pytest.raises(ResultsError, match=r"field `score` - at `\$\[100003\]`"):
        read([GOOD] * 100_003 + [{"image_id": 17, "category_id": 90, "bbox": [1, 2, 3, 4]}])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ResultsError, match=r"nowhere.json: cannot read the results file: No such file"):
        read_results(tmp_path / "nowhere.json", **IDS)


def test_what_json_cannot_hold_is_not_written(tmp_path):
    columns = DetectionColumns(np.array([1]), np.array([2]), np.array([[1.5, 2, 3, 4.25]]), np.array([np.nan]))
    with pytest.raises(ResultsError, match="NaN or infinite"):
        write_results(tmp_path / "results.json", columns, **IDS)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_suffix_is_not_written(tmp_path):
    nothing = DetectionColumns(
        np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    )
    with pytest.raises(ResultsError, match=r"detections.pkl: detections are written as \.npz or \.json"):
        write_results(tmp_path / "detections.pkl", nothing, **IDS)
    assert not list(tmp_path.iterdir())
