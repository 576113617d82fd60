"""tools/eval.py: saved detections, checkpoints, and what it says to bad input."""

import json

import pytest

IMAGES = [{"id": 9, "width": 200, "height": 200, "file_name": "a.jpg", "neg_category_ids": [4]}]
OBJECT = {"image_id": 9, "category_id": 2, "bbox": [10, 10, 50, 50]}
CATEGORIES = [{"id": 2, "name": "ant", "frequency": "r"}, {"id": 4, "name": "bee", "frequency": "f"}]
DATASET = {"images": IMAGES, "annotations": [{"id": 1, **OBJECT}], "categories": CATEGORIES}
SAVED = ("--annotations", "gt.json", "--results", "dets.json")


def write_case(folder, results, dataset=DATASET):
    (folder / "gt.json").write_text(json.dumps(dataset))
    (folder / "dets.json").write_text(json.dumps(results))


def without_lvis_fields(dataset):
    """The dataset as a plain COCO file."""
    images = [{key: value for key, value in image.items() if key != "neg_category_ids"} for image in dataset["images"]]
    categories = [{"id": c["id"], "name": c["name"]} for c in dataset["categories"]]
    return dataset | {"images": images, "categories": categories}


def test_saved_detections_are_scored_printed_and_written(start, tmp_path):
    wrong = OBJECT | {"bbox": [100, 100, 50, 50], "score": 0.9}
    write_case(tmp_path, [OBJECT | {"score": 0.8}, wrong, wrong | {"category_id": 77}])
    done = start("eval", *SAVED, "--out", "new/out.json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "lvis protocol (federated): 300 detections per image" in done.out
    assert "APr        50.0        1        1" in done.out
    assert "1 of 3 detections match nothing" in done.err
    written = json.loads((tmp_path / "new" / "out.json").read_text())
    assert written["AP"] == written["APr"] == pytest.approx(50)
    assert written["APf"] is None
    assert written["protocol"]["name"] == "lvis"


def test_open_images_are_scored_by_their_own_protocol(call, tmp_path):
    group = {"id": 2, "image_id": 9, "category_id": 4, "bbox": [100, 100, 60, 60], "iscrowd": 1}
    dataset = DATASET | {"annotations": [*DATASET["annotations"], group]}
    inside = {"image_id": 9, "category_id": 4, "bbox": [110, 110, 9, 9]}
    # Two detections in one group are one true positive; the ant's box is missed by a wrong one.
    write_case(
        tmp_path, [inside | {"score": 0.8}, inside | {"score": 0.7}, inside | {"category_id": 2, "score": 0.6}], dataset
    )
    arguments = ("--protocol", "open_images", "--train-annotations", "gt.json", "--out", "out.json")
    done = call("eval", *SAVED, *arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "AP50 50.0" in done.out
    written = json.loads((tmp_path / "out.json").read_text())
    assert [c["AP50"] for c in written["classes"]] == [0, 100]


def test_the_protocol_can_be_named(call, tmp_path):
    write_case(tmp_path, [])
    done = call("eval", *SAVED, "--protocol", "coco", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "coco protocol (exhaustive): 100 detections per class and image" in done.out
    assert "AP          0.0        1        1" in done.out


def test_coco_file_gets_its_groups_from_the_training_set(call, tmp_path):
    write_case(tmp_path, [OBJECT | {"score": 0.8}], without_lvis_fields(DATASET))
    images = [{"id": i, "width": 200, "height": 200, "file_name": f"{i}.jpg"} for i in range(11)]
    objects = [OBJECT | {"id": 1 + i, "image_id": i} for i in range(11)]  # one image more than a rare class has
    train = without_lvis_fields(DATASET | {"images": images, "annotations": objects})
    (tmp_path / "train.json").write_text(json.dumps(train))
    assert "APc         n/a        -        -" in call("eval", *SAVED, cwd=tmp_path).out
    done = call("eval", *SAVED, "--train-annotations", "train.json", "--out", "out.json", cwd=tmp_path)
    assert "APc       100.0        1        1" in done.out
    first, second = json.loads((tmp_path / "out.json").read_text())["classes"]
    assert (first["frequency"], first["train_images"]) == ("c", 11)
    assert (second["frequency"], second["train_images"]) == ("r", 0)


def test_a_bad_file_gives_one_line_and_no_traceback(call, is_error, tmp_path):
    write_case(tmp_path, [OBJECT | {"score": 0.8, "image_id": 10}])
    assert is_error(call("eval", *SAVED, cwd=tmp_path), "dets.json: 1 of 1 detections name image ids")
    (tmp_path / "dets.json").write_text('[{"image_id": 9,')
    assert is_error(call("eval", *SAVED, cwd=tmp_path), "dets.json: not JSON")
    assert is_error(call("eval", "--annotations", "none.json", "--results", "dets.json", cwd=tmp_path), "none.json")


def test_lvis_protocol_needs_lvis_annotations(call, is_error, trained, shapes, tmp_path):
    write_case(tmp_path, [], without_lvis_fields(DATASET))
    assert is_error(call("eval", *SAVED, "--protocol", "lvis", cwd=tmp_path), "gt.json", "'neg_category_ids'")
    (tmp_path / "val.json").write_text(json.dumps(without_lvis_fields(json.loads(shapes.val.read_text()))))
    done = call(
        "eval", "--config", trained.config, "--checkpoint", trained.checkpoint, "eval.protocol=lvis",
        "data.val.annotations=val.json", cwd=tmp_path,
    )  # fmt: skip
    assert is_error(done, "eval.protocol: val.json", "use the coco protocol")


@pytest.mark.parametrize(("protocol", "package"), [("lvis", "lvis 0.5.3"), ("coco", "pycocotools 2.")])
def test_the_official_package_is_asked_too_and_agrees(call, tmp_path, protocol, package):
    near = OBJECT | {"bbox": [14, 12, 50, 50], "score": 0.7}  # IoU 0.79
    write_case(tmp_path, [near, near | {"category_id": 77, "score": 0.9}, near | {"category_id": 4}])
    done = call("eval", *SAVED, "--protocol", protocol, "--official", "--out", "out.json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert f"official {package}" in done.out
    assert "largest difference 0 over " in done.out
    assert "numbers in percent, 0 in precision, 0 in recall" in done.out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["AP"] == pytest.approx(60)  # 6 of the 10 thresholds
    numbers = {"in_numbers": 0, "in_precision": 0, "in_recall": 0}
    assert written["official"] == {**written["official"], **numbers}


def test_the_official_package_does_not_know_groups_that_the_annotations_do_not_state(call, tmp_path):
    dataset = without_lvis_fields(DATASET) | {"images": IMAGES}
    write_case(tmp_path, [OBJECT | {"score": 0.8}], dataset)
    assert "largest difference 0 over 10 numbers" in call("eval", *SAVED, "--official", cwd=tmp_path).out


def test_fixed_ap_is_a_number_of_its_own_that_warns_of_too_few_detections(call, caplog, tmp_path):
    # 300 wrong detections of one class keep those of the other out of LVIS's numbers.
    wrong = [OBJECT | {"category_id": 4, "score": 0.9}] * 300
    write_case(tmp_path, [*wrong, OBJECT | {"score": 0.8}])
    done = call("eval", *SAVED, "--fixed-ap", "--out", "out.json", cwd=tmp_path)
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["AP"], written["AP_fixed"]) == (0, pytest.approx(100))
    assert "AP_fixed 100.0, AP50_fixed 100.0" in done.out
    assert "2 of 2 classes have fewer; the model must give more in an image: raise test.detections_per" in caplog.text
    assert "fixed" not in call("eval", *SAVED, cwd=tmp_path).out.lower()


def test_training_set_of_other_classes_is_an_error(call, is_error, tmp_path):
    write_case(tmp_path, [])
    (tmp_path / "train.json").write_text(json.dumps(DATASET | {"categories": [*CATEGORIES, {"id": 5, "name": "cat"}]}))
    done = call("eval", *SAVED, "--train-annotations", "train.json", cwd=tmp_path)
    assert is_error(done, "train.json has 3 classes, gt.json has 2", "id 5: 'cat' here, nothing there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --config and --checkpoint, or --annotations and --results"),
        (["--config", "a"], "--config: needs --checkpoint too"),
        (["seed=1"], "section.key=value: needs --config and --checkpoint too"),
        (["--results", "a"], "--results: needs --annotations too"),
        (["--protocol", "coco"], "--protocol: needs --annotations and --results too"),
        (["--config", "a", "--results", "b"], "--results cannot be used together with --config"),
        (["--config", "a", "--checkpoint", "b", "--protocol", "coco"], "--protocol cannot be used together with"),
        ([*SAVED, "seed=1"], "--annotations, --results cannot be used together with section.key=value"),
        ([*SAVED, "--detections", "a"], "--annotations, --results cannot be used together with --detections"),
        (["--config", "a", "--checkpoint", "b", "--official"], "--official cannot be used together with --config"),
        (["--fixed-ap"], "give --config and --checkpoint, or --annotations and --results"),
        ([*SAVED, "--out", "."], "--out: . is a folder; name a file"),
        (
            [*SAVED, "--protocol", "open_images", "--fixed-ap", "--official"],
            "--protocol open_images has no --official, --fixed-ap; leave it out",
        ),
    ],
)
def test_arguments_of_no_mode_or_two_are_a_usage_error(call, tmp_path, arguments, message):
    done = call("eval", *arguments, cwd=tmp_path)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"eval.py: error: {message}")


def test_checkpoint_scores_as_at_the_end_of_its_training(call, trained):
    done = call(
        "eval", "--config", "tiny.yaml", "--checkpoint", trained.checkpoint, "--out", "evaluated.json",
        cwd=trained.home,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert {"step": 40, **json.loads((trained.home / "evaluated.json").read_text())} == trained.metrics
    table = done.out.strip()
    assert table.startswith("lvis protocol (federated)")
    assert table in trained.done.out


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_saved_detections_score_exactly_as_their_model(call, trained, shapes, tmp_path, suffix):
    options = ("--detections", tmp_path / "new" / f"dets.{suffix}", "--out", tmp_path / "model.json", "--fixed-ap")
    call("eval", "--config", "tiny.yaml", "--checkpoint", trained.checkpoint, *options, cwd=trained.home)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"dets.{suffix}"]
    files = ("--annotations", shapes.val, "--results", f"new/dets.{suffix}", "--train-annotations", shapes.train)
    done = call("eval", *files, "--fixed-ap", "--out", "saved.json", cwd=tmp_path)
    assert done.code == 0, done.err
    model, saved = (json.loads((tmp_path / name).read_text()) for name in ("model.json", "saved.json"))
    assert model["protocol"].pop("score_threshold") == 0
    assert saved["protocol"].pop("score_threshold") is None  # the file does not say
    assert model == saved
    assert model["AP_fixed"] > 1


def test_two_processes_find_and_score_what_one_does(call, start, trained, tmp_path):
    arguments = ("--config", trained.config, "--checkpoint", trained.checkpoint, "device=cpu")
    one = call("eval", *arguments, "--fixed-ap", "--detections", "one.npz", cwd=tmp_path)
    two = start("eval", *arguments, "--fixed-ap", "--detections", "two.npz", cwd=tmp_path, processes=2)
    assert two.code == 0, two.err
    assert two.out == one.out
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "two.npz"]
    assert two.err.count("numbers are comparable only with") == two.err.count("Fixed AP is over 10000") == 1


def test_frequencies_are_those_of_the_training_set(call, trained, shapes, tmp_path):
    content = json.loads(shapes.val.read_text())
    for category in content["categories"]:
        category["frequency"] = "r"
    (tmp_path / "val.json").write_text(json.dumps(content))
    done = call(
        "eval", "--config", trained.config, "--checkpoint", trained.checkpoint, "data.val.annotations=val.json",
        "data.train.annotations=null", "--out", "out.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "out.json").read_text())
    assert {row["name"]: row["frequency"] for row in result["classes"]}["red square"] == "f"
    assert result["support"] == trained.metrics["support"]


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (["test.detections_per_image=300"], False),
        (["test.detections_per_image=300", "test.score_threshold=0.05"], True),
        (["test.detections_per_image=299"], True),
        (["test.detections_per_image=299", "eval.protocol=coco"], False),
    ],
)
def test_lvis_numbers_that_nobody_can_compare_are_warned_about(call, caplog, trained, overrides, warned):
    done = call("eval", "--config", "tiny.yaml", "--checkpoint", trained.checkpoint, *overrides, cwd=trained.home)
    assert done.code == 0, done.err
    assert ("comparable only with at most 0.001 and at least 300" in caplog.text) == warned


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--checkpoint", "none.pt"], ["none.pt: no such checkpoint"]),
        (["--checkpoint", "tiny.yaml"], ["tiny.yaml: not a readable checkpoint"]),
        (["--checkpoint", "CHECKPOINT", "model.head.width=32"], ["another model", "model.head.width: 16 -> 32"]),
        (["--checkpoint", "CHECKPOINT", "data.val.images=nowhere"], ["nowhere: no such folder of images"]),
        (["--checkpoint", "CHECKPOINT", "data.val.images=null"], ["data.val.images: not set"]),
    ],
)
def test_model_that_cannot_be_evaluated_gives_one_line(call, is_error, trained, arguments, texts):
    arguments = [trained.checkpoint if argument == "CHECKPOINT" else argument for argument in arguments]
    assert is_error(call("eval", "--config", "tiny.yaml", *arguments, cwd=trained.home), *texts)


def test_detections_of_an_unknown_suffix_are_an_error_before_the_work(call, is_error, trained, tmp_path):
    options = ("--config", trained.config, "--checkpoint", "none.pt", "--detections", "dets.pkl")
    assert is_error(call("eval", *options, cwd=tmp_path), "dets.pkl: detections are written as .npz or .json")


def test_saved_detections_and_annotations_of_different_images_are_an_error(call, is_error, trained, shapes, tmp_path):
    options = ("--config", trained.config, "--checkpoint", trained.checkpoint, "--detections", "dets.npz")
    assert call("eval", *options, cwd=tmp_path).code == 0
    content = json.loads(shapes.val.read_text())
    removed = content["images"].pop()["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != removed]
    (tmp_path / "fewer.json").write_text(json.dumps(content))
    done = call("eval", "--annotations", "fewer.json", "--results", "dets.npz", cwd=tmp_path)
    assert is_error(done, "dets.npz: detections in 7 images", f"do not have 1, with the image ids {removed}")


def test_classes_of_checkpoint_and_data_must_agree(call, is_error, trained, shapes, tmp_path):
    content = json.loads(shapes.val.read_text())
    content["categories"][0]["name"] = "bar"
    (tmp_path / "val.json").write_text(json.dumps(content))
    arguments = ("--config", trained.config, "--checkpoint", trained.checkpoint, "data.val.annotations=val.json")
    done = call("eval", *arguments, cwd=tmp_path)
    assert is_error(done, "step_00000040.pt has 4 classes, val.json (val) has 4", "'blue bar' here, 'bar' there")
