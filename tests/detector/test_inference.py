import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from longshot.datasets import DataError
from longshot.detector.checkpoint.file import load_checkpoint, save_checkpoint
from longshot.detector.errors import CheckpointError
from longshot.detector.inference import load_model, predict
from longshot.detector.model.legacy import LegacyPostprocess
from longshot.detector.model.postprocess import Postprocess

IMAGES = ("val_0.png", "val_1.png", "val_3.png")  # 64 x 64, 64 x 96, 72 x 80


@pytest.fixture(scope="module")
def model(learned):
    return load_model(learned / "checkpoints" / "best.pt", score_threshold=0.3)


@pytest.fixture(scope="module")
def paths(shapes):
    return [shapes.folder / name for name in IMAGES]


def assert_same(ours, theirs):
    assert ours.class_names == theirs.class_names
    for a, b in zip(ours[:4], theirs[:4], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_objects_are_found_under_their_names_and_original_ids(model, paths, shapes):
    content = json.loads(shapes.val.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    images = {image["file_name"]: image["id"] for image in content["images"]}
    wanted = found = 0
    for path, prediction in zip(paths, predict(model, paths), strict=True):
        assert prediction.class_names == [names[c] for c in prediction.category_ids.tolist()]
        assert (np.diff(prediction.scores) <= 0).all()
        assert (prediction.scores > 0.3).all()
        height, width = np.asarray(Image.open(path)).shape[:2]
        assert (prediction.boxes >= 0).all()
        assert (prediction.boxes <= [width, height, width, height]).all()
        for a in content["annotations"]:
            if a["image_id"] == images[path.name]:
                x, y, w, h = a["bbox"]
                close = np.abs(prediction.boxes - [x, y, x + w, y + h]).max(1) < 6
                found += any(close & (prediction.category_ids == a["category_id"]))
                wanted += 1
    assert found >= 0.8 * wanted > 2


def test_checkpoint_from_before_init_from_is_read_without_its_dead_key(learned, paths, tmp_path, caplog):
    new = learned / "checkpoints" / "best.pt"
    state = load_checkpoint(new)
    state["config"]["model"]["weights"] = None
    save_checkpoint(tmp_path / "old.pt", state)
    predictions = [predict(load_model(file), paths[:1])[0] for file in (new, tmp_path / "old.pt")]
    assert_same(*predictions)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'old.pt'}: config: model.weights is left out")


def test_path_text_picture_and_array_give_the_same_detections(model, paths):
    by_path = predict(model, paths)
    others = (
        predict(model, [str(path) for path in paths]),
        predict(model, (Image.open(path) for path in paths)),
        predict(model, [np.asarray(Image.open(path).convert("RGB")) for path in paths]),
        [predict(model, [path])[0] for path in paths[::-1]][::-1],  # alone, and in another order
    )
    for other in others:
        for ours, theirs in zip(by_path, other, strict=True):
            assert_same(ours, theirs)


def test_types_are_those_that_the_docstring_says(model, paths):
    prediction = predict(model, paths[:1])[0]
    assert [a.dtype for a in prediction[:4]] == [np.float32, np.float32, np.int64, np.int64]
    assert prediction.boxes.shape == (len(prediction.class_names), 4)


def test_nothing_found_is_empty_arrays(learned, paths):
    (prediction,) = predict(load_model(learned / "checkpoints" / "best.pt", score_threshold=1.0), paths[:1])
    assert prediction.boxes.shape == (0, 4)
    assert [len(part) for part in prediction] == [0] * 5
    assert predict(load_model(learned / "checkpoints" / "best.pt"), []) == []


def test_gray_and_16_bit_pictures_are_understood_as_their_files_are(model, paths, tmp_path):
    gray = np.asarray(Image.open(paths[0]).convert("L"))
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray.astype(np.uint16) << 8).save(tmp_path / "gray16.png")
    model_inputs = [tmp_path / "gray.png", tmp_path / "gray16.png"]
    by_path = predict(model, model_inputs)
    for ours, path in zip(by_path, model_inputs, strict=True):
        assert_same(ours, predict(model, [Image.open(path)])[0])
    assert_same(*by_path)


def test_the_averaged_weights_are_used_if_there_are_any(learned, tmp_path):
    state = load_checkpoint(learned / "checkpoints" / "best.pt")
    assert state["ema"] is None
    state["ema"] = {"n_averaged": torch.tensor(3)} | {f"module.{k}": v.clone() for k, v in state["model"].items()}
    state["ema"]["module.head.logits.bias"] += 1
    save_checkpoint(tmp_path / "a.pt", state)
    bias = load_model(tmp_path / "a.pt").network.head.logits.bias
    assert torch.equal(bias, state["model"]["head.logits.bias"] + 1)


def test_a_model_needs_none_of_the_files_of_its_training(learned, tmp_path):
    state = load_checkpoint(learned / "checkpoints" / "best.pt")
    state["config"]["model"]["backbone"]["weights"] = "/nowhere/trunk.pt"
    state["config"]["init_from"] = "/nowhere/detector.pt"
    state["config"]["data"]["train"] = {"annotations": "/nowhere/train.json", "images": "/nowhere"}
    save_checkpoint(tmp_path / "a.pt", state)
    assert not load_model(tmp_path / "a.pt").network.training


def test_settings_of_the_test_are_those_of_the_run(learned, model):
    assert load_model(learned / "checkpoints" / "best.pt").postprocess.score_threshold == 0.0
    assert model.postprocess.score_threshold == 0.3
    assert model.postprocess.detections_per_image == 300
    assert model.config.data.test_short_side == 64


def test_pictures_are_resized_as_in_the_run(model, paths):
    def scores(**changes):
        data = model.config.data.model_copy(update={"test_short_side": 32, **changes})
        config, every = model.config.model_copy(update={"data": data}), replace(model.postprocess, score_threshold=0.0)
        other = replace(model, config=config, postprocess=every)
        return predict(other, paths[:1])[0].scores

    assert np.array_equal(scores(), scores(antialias=True))
    assert not np.array_equal(scores(), scores(antialias=False))


def test_boxes_of_a_legacy_model_are_scaled_by_their_pixels(model, paths):
    # 72 x 80 pixels are seen as 64 x 71. A box that ends at x there ends at (x - 1) * 80 / 71 + 1, not at x * 80 / 71.
    legacy = replace(model, postprocess=LegacyPostprocess(**vars(model.postprocess)))
    (usual,), (shifted,) = (predict(each, paths[2:]) for each in (model, legacy))
    inside = (usual.boxes > 2).all(axis=1) & (usual.boxes < [78, 70, 78, 70]).all(axis=1)
    assert inside.any()
    shift = (shifted.boxes - usual.boxes)[inside]
    np.testing.assert_allclose(shift, np.tile([0, 0, 1 - 80 / 71, 1 - 72 / 64], (len(shift), 1)), atol=1e-4)


def test_the_convention_of_boxes_is_that_of_the_run(learned, model, tmp_path):
    assert type(model.postprocess) is Postprocess
    state = load_checkpoint(learned / "checkpoints" / "best.pt")
    state["config"]["model"]["legacy_offset"] = True
    save_checkpoint(tmp_path / "a.pt", state)
    assert type(load_model(tmp_path / "a.pt").postprocess) is LegacyPostprocess


def test_a_foreign_checkpoint_is_told_with_what_it_lacks(tmp_path, learned):
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt: no checkpoint of a training run; it lacks classes, config"):
        load_model(tmp_path / "other.pt")
    state = load_checkpoint(learned / "checkpoints" / "best.pt")
    del state["model"]["head.deltas.bias"]
    save_checkpoint(tmp_path / "b.pt", state)
    with pytest.raises(CheckpointError, match=r"b.pt: the checkpoint of another model: .*head.deltas.bias"):
        load_model(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ([np.zeros((4, 4, 3))], r"found float64 \(4, 4, 3\)"),
        ([np.zeros((4, 4), np.uint8)], r"found uint8 \(4, 4\)"),
        ([np.zeros((3, 4, 4), np.uint8)], r"found uint8 \(3, 4, 4\)"),
        ([torch.zeros(3, 4, 4)], "found Tensor"),
        ("image.jpg", r"expected a list of images, found one str; write \[image\]"),
        (np.zeros((4, 4, 3), np.uint8), r"expected a list of images, found one ndarray"),
    ],
)
def test_what_is_no_image_is_told(model, images, told):
    with pytest.raises(TypeError, match=told):
        predict(model, images)


def test_a_missing_or_damaged_file_is_told_by_its_path(model, tmp_path):
    with pytest.raises(DataError, match=r"a.png: no such image"):
        predict(model, [tmp_path / "a.png"])
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b.png: cannot be decoded"):
        predict(model, [tmp_path / "b.png"])
