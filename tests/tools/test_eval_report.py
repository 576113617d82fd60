"""tools/eval.py: reports and comparisons."""

import json

import pytest

IMAGES = [{"id": 9, "width": 200, "height": 200, "file_name": "a.jpg", "neg_category_ids": [4]}]
OBJECT = {"image_id": 9, "category_id": 2, "bbox": [10, 10, 50, 50]}
CATEGORIES = [{"id": 2, "name": "ant", "frequency": "r"}, {"id": 4, "name": "bee", "frequency": "f"}]
GROUND_TRUTH = {"images": IMAGES, "annotations": [{"id": 1, **OBJECT}], "categories": CATEGORIES}


@pytest.fixture
def files(tmp_path):
    """gt.json with one object; right.json, which finds it; wrong.json, which does not."""
    (tmp_path / "gt.json").write_text(json.dumps(GROUND_TRUTH))
    (tmp_path / "right.json").write_text(json.dumps([OBJECT | {"score": 0.8}]))
    (tmp_path / "wrong.json").write_text(json.dumps([OBJECT | {"score": 0.8, "bbox": [100, 100, 50, 50]}]))
    return tmp_path


def test_report_of_saved_detections(call, files):
    done = call("eval", "--annotations", "gt.json", "--results", "right.json", "--report", "new/report", cwd=files)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "report: new/report/report.html"
    report = json.loads((files / "new" / "report" / "report.json").read_text())
    assert report["APr"] == pytest.approx(100)
    assert report["header"]["results"] == "right.json"
    assert "the folder of images was not given" in (files / "new" / "report" / "report.html").read_text()


def test_report_of_a_checkpoint_has_its_detections_and_pictures(call, trained, tmp_path):
    done = call(
        "eval", "--config", trained.config, "--checkpoint", trained.checkpoint, "--report", "report", cwd=tmp_path
    )
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["AP"] == trained.metrics["AP"]
    assert report["header"]["score threshold"] == 0
    assert report["header"]["checkpoint"] == str(trained.checkpoint)
    for row, expected in zip(report["classes"], trained.metrics["classes"], strict=True):
        assert {key: row[key] for key in expected} == expected
    assert "data:image/jpeg" in (tmp_path / "report" / "report.html").read_text()
    assert (tmp_path / "report" / "detections.npz").exists()


def test_images_make_pictures_of_saved_detections(call, trained, shapes, tmp_path):
    arguments = ("--config", trained.config, "--checkpoint", trained.checkpoint)
    call("eval", *arguments, "--detections", "dets.npz", cwd=tmp_path)
    saved = ("--annotations", shapes.val, "--results", "dets.npz", "--train-annotations", shapes.train)
    done = call("eval", *saved, "--report", "report", "--images", shapes.folder, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "data:image/jpeg" in (tmp_path / "report" / "report.html").read_text()
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["classes"][0]["train_images"] == trained.metrics["classes"][0]["train_images"]


def test_images_that_are_not_there_are_an_error(call, is_error, files):
    arguments = ("--annotations", "gt.json", "--results", "right.json", "--report", "report", "--images", ".")
    assert is_error(call("eval", *arguments, cwd=files), "a.jpg")


def test_comparison_of_saved_detections(call, files):
    done = call("eval", "--annotations", "gt.json", "--compare", "wrong.json", "right.json", "--report", "r", cwd=files)
    assert done.code == 0, done.err
    assert done.out == "comparison: r/compare.html\n"
    (difference,) = json.loads((files / "r" / "compare.json").read_text())["differences"]
    assert difference["difference"] == "right - wrong"
    assert difference["AP"] == pytest.approx(100)


def test_files_of_the_same_name_go_by_their_paths(call, files):
    for name in ("right", "wrong"):
        (files / name).mkdir()
        (files / f"{name}.json").rename(files / name / "dets.json")
    compared = ("--compare", "wrong/dets.json", "right/dets.json")
    done = call("eval", "--annotations", "gt.json", *compared, "--report", "r", cwd=files)
    assert done.code == 0, done.err
    (difference,) = json.loads((files / "r" / "compare.json").read_text())["differences"]
    assert difference["difference"] == "right/dets - wrong/dets"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "a", "b"], "--compare: needs --annotations and --report too"),
        (["--annotations", "a", "--compare", "b", "c"], "--annotations --compare: needs --report too"),
        (["--annotations", "a", "--compare", "b", "--report", "r"], "--compare: name two files or more, each once"),
        (["--annotations", "a", "--compare", "b", "b", "--report", "r"], "--compare: name two files or more"),
        (
            ["--annotations", "a", "--compare", "b", "c", "--report", "r", "--results", "d", "--fixed-ap"],
            "--compare cannot be used together with --results, --fixed-ap",
        ),
        (["--config", "a", "--checkpoint", "b", "--compare", "c", "d"], "--compare cannot be used together with"),
        (["--annotations", "a", "--results", "b", "--images", "c"], "--images: needs --report too"),
        (["--report", "r"], "give --config and --checkpoint, or --annotations and --results or --compare"),
    ],
)
def test_arguments_that_do_not_fit_are_a_usage_error(call, tmp_path, arguments, message):
    done = call("eval", *arguments, cwd=tmp_path)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"eval.py: error: {message}")
    assert list(tmp_path.iterdir()) == []
