"""`tools/eval.py` as a user runs it: from another folder, on files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "eval.py"

IMAGES = [{"id": 9, "width": 200, "height": 200, "file_name": "a.jpg", "neg_category_ids": [4]}]
OBJECT = {"image_id": 9, "category_id": 2, "bbox": [10, 10, 50, 50]}
CATEGORIES = [{"id": 2, "name": "ant", "frequency": "r"}, {"id": 4, "name": "bee", "frequency": "f"}]


@pytest.fixture
def run(tmp_path):
    """Run the tool in a folder with files of the given content, and where another package is called `datasets`."""
    (tmp_path / "decoy" / "datasets").mkdir(parents=True)
    (tmp_path / "decoy" / "datasets" / "__init__.py").write_text("raise ImportError('the wrong datasets')")

    def start(*options, results):
        dataset = {"images": IMAGES, "annotations": [{"id": 1, **OBJECT}], "categories": CATEGORIES}
        (tmp_path / "gt.json").write_text(json.dumps(dataset))
        (tmp_path / "dets.json").write_text(json.dumps(results))
        command = [sys.executable, str(TOOL), "--annotations", "gt.json", "--results", "dets.json", *options]
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "decoy")}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return start


def test_saved_detections_are_scored_printed_and_written(run, tmp_path):
    wrong = OBJECT | {"bbox": [100, 100, 50, 50], "score": 0.9}
    done = run("--out", "new/out.json", results=[OBJECT | {"score": 0.8}, wrong, wrong | {"category_id": 77}])
    assert done.returncode == 0, done.stderr
    assert "lvis protocol (federated): 300 detections per image" in done.stdout
    assert "APr        50.0        1        1" in done.stdout
    assert "1 of 3 detections match nothing" in done.stderr
    written = json.loads((tmp_path / "new" / "out.json").read_text())
    assert written["AP"] == written["APr"] == pytest.approx(50)
    assert written["APf"] is None
    assert written["protocol"]["name"] == "lvis"


def test_the_protocol_can_be_named(run):
    done = run("--protocol", "coco", results=[])
    assert done.returncode == 0, done.stderr
    assert "coco protocol (exhaustive): 100 detections per class and image" in done.stdout
    assert "AP          0.0        1        1" in done.stdout


def test_a_bad_file_gives_one_line_and_no_traceback(run):
    done = run(results=[OBJECT | {"score": 0.8, "image_id": 10}])
    assert done.returncode == 1
    assert done.stderr.startswith("error: dets.json: 1 of 1 detections name image ids")
    assert len(done.stderr.splitlines()) == 1
