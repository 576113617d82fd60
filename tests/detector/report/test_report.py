"""The page about one model, and the files beside it."""

import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from longshot.datasets import DataError
from longshot.detector.evaluation.metrics import summarize
from longshot.detector.report import write_report

VOID = {"meta", "img"}


class Page(HTMLParser):
    """The elements of a page, its text, what it would load, and whether tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.open, self.text, self.headings = [], [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href", "data", "action") and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture
def write(tmp_path):
    """(validation, detections, options) -> the page, parsed"""

    def run(validation, detections, **options):
        path = write_report(tmp_path / "report", validation, detections, source={"results": "dets.npz"}, **options)
        return Page(path.read_text(encoding="utf-8"))

    return run


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_page_needs_nothing_from_elsewhere(write, random_case, tmp_path):
    validation, detections = random_case(0)
    for i in range(12):
        Image.fromarray(np.zeros((1000, 1000, 3), np.uint8)).save(tmp_path / f"{i}.png")
    page = write(validation, detections, images=tmp_path)
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "http" not in text
    assert "url(" not in text.replace("url(#", "")
    assert page.loads
    assert all(load.startswith(("#", "data:image/jpeg;base64,")) for load in page.loads)
    assert page.tags.count("svg") == 4
    assert page.tags.count("img") > 10
    assert not {"link", "iframe", "object"} & set(page.tags)


def test_page_has_every_section(write, random_case):
    assert write(*random_case(0)).headings == [
        "AP", "AP by frequency", "Precision and recall", "Errors", "Most confused classes",
        "Calibration", "Worst false positives", "Worst misses", "Classes",
    ]  # fmt: skip


def test_head_says_what_was_evaluated(write, random_case):
    validation, detections = random_case(0)
    text = write(validation, detections, score_threshold=0.05).text
    assert "dets.npz" in text
    assert "12 images" in text
    assert f"{len(detections.scores)}: {len(detections.scores) / 12:.1f} per image" in text
    assert "lvis protocol (federated): 300 detections per image" in text
    assert "0.05 to 0.95" in text
    assert f"NumPy {np.__version__}" in text


def test_numbers_are_those_of_the_evaluation(write, random_case, tmp_path):
    validation, detections = random_case(1)
    write(validation, detections)
    from longshot.detector.evaluation.columnar import ColumnarEvaluator

    evaluator = ColumnarEvaluator(validation.ground_truth)
    evaluator.add(*detections)
    curves = evaluator.accumulate()
    expected = summarize(curves, validation.ground_truth, validation.classes)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {key: report[key] for key in expected if key != "classes"} == {
        key: value for key, value in expected.items() if key != "classes"
    }
    table = rows_of(tmp_path / "report" / "report_classes.csv")
    assert [row["name"] for row in table] == list(validation.classes.names)
    for k, row in enumerate(table[:5]):
        assert float(row["AP"]) == expected["classes"][k]["AP"]
        assert float(row["AP50"]) == pytest.approx(100 * curves.precision[0, :, k, 0, 0].mean())
        assert float(row["AR"]) == pytest.approx(100 * curves.recall[:, k, 0, 0].mean())
        labels, images = validation.annotations.labels == k, validation.annotations.object_images
        assert int(row["num_images"]) == len(set(images[labels].tolist()))
    # The class without objects has no numbers.
    assert (table[5]["AP"], table[5]["threshold"], table[5]["num_images"]) == ("", "", "0")


def test_curves_have_the_area_that_is_the_ap(write, random_case, tmp_path):
    write(*random_case(1))
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    curves = report["precision_recall"]
    assert len(curves) == 101
    for name, key in (("all", "AP"), ("r", "APr"), ("c", "APc"), ("f", "APf")):
        assert np.mean([row[f"{name}, IoU 0.50:0.95"] for row in curves]) == pytest.approx(report[key] / 100)
    assert np.mean([row["all, IoU 0.50"] for row in curves]) == pytest.approx(report["AP50"] / 100)


def test_counts_of_groups_add_up(write, random_case, tmp_path):
    write(*random_case(1))
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    kinds = {row["error"]: row for row in report["errors"]}
    assert kinds["false positives"]["count"] is None
    for row in [row for row in report["errors"] if row["count"] is not None]:
        assert row["count"] == sum(row[f"count_{group}"] for group in "rcf")
    shown = [row for row in report["errors"] if row["shown"] is not None]
    assert all(row["shown"] <= row["count"] for row in shown)
    assert sum(row["shown"] for row in shown) > 0
    assert report["confusions"][0]["shown"] >= report["confusions"][-1]["shown"]


def test_without_detections_there_is_a_report(write, make_validation, columns, tmp_path):
    page = write(make_validation([(0, 0, (0, 0, 50, 50))]), columns())
    assert "0: 0.0 per image (0 to 0); 0 count" in page.text
    assert json.loads((tmp_path / "report" / "report.json").read_text())["AP"] == 0


def test_without_objects_there_is_a_report(write, make_validation, columns, tmp_path):
    page = write(make_validation([]), columns((0, 0, (0, 0, 50, 50), 0.5)))
    assert json.loads((tmp_path / "report" / "report.json").read_text())["AP"] is None
    assert "background" in page.text


def test_classes_without_known_frequencies_have_no_groups(write, make_validation, columns, tmp_path):
    validation = make_validation([(0, 0, (0, 0, 50, 50))], frequencies=None, federated=False)
    page = write(validation, columns((0, 0, (0, 0, 50, 50), 0.5)))
    assert "validation objects stand in" in page.text
    assert "gain in AP50 r" not in page.text
    (row, *_) = rows_of(tmp_path / "report" / "report_errors.csv")
    assert set(row) == {"error", "dAP", "shown", "count"}


def test_scores_that_are_no_probabilities_are_said_to_be_none(write, make_validation, columns):
    page = write(make_validation([(0, 0, (0, 0, 50, 50))]), columns((0, 0, (0, 0, 50, 50), 7.0)))
    assert "no probabilities" in page.text


def test_without_images_the_page_says_so(write, random_case):
    page = write(*random_case(0))
    assert page.text.count("the folder of images was not given") == 2
    assert "img" not in page.tags


def test_missing_images_are_an_error_before_the_work(write, random_case, tmp_path):
    with pytest.raises(DataError, match=r"0\.png"):
        write(*random_case(0), images=tmp_path)
    assert not (tmp_path / "report").exists()


def test_names_of_classes_are_text_and_not_markup(write, make_validation, columns):
    validation = make_validation([(0, 0, (0, 0, 50, 50))], names="<script>alert({})</script>&".format)
    page = write(validation, columns((0, 0, (0, 0, 50, 50), 0.5), (0, 1, (0, 0, 50, 50), 0.6)))
    assert page.tags.count("script") == 1
    assert "<script>alert(1)</script>&" in page.text


def test_points_tell_their_class(write, random_case):
    page = write(*random_case(0))
    assert page.tags.count("title") == 1 + 5, "the page's, and one of each class with an AP"
    assert "class 3: " in page.text


def test_thousand_classes_make_a_page_of_moderate_size(write, make_validation, columns, tmp_path):
    objects = [(0, k, (k, 0, 50, 50)) for k in range(1000)]
    validation = make_validation(objects, num_classes=1203)
    page = write(validation, columns(*((0, k, (k, 0, 50, 50), 0.5) for k in range(300))))
    assert (tmp_path / "report" / "report.html").stat().st_size < 2e6
    assert "class 1202" in page.text
