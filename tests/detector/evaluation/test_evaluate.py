import json
from dataclasses import replace

import numpy as np
import pytest

from longshot.detector.build import build_evaluation
from longshot.detector.build_data import build_val
from longshot.detector.evaluation.ground_truth import COCO, LVIS
from longshot.detector.inference import load_model, predict
from longshot.detector.model.legacy import LegacyPostprocess


@pytest.fixture(scope="module")
def model(learned):
    return load_model(learned / "checkpoints" / "best.pt")


@pytest.fixture
def evaluation_of(model, cpu):
    def build(**changes):
        config = model.config.model_copy(update={"eval": model.config.eval.model_copy(update=changes)})
        return build_evaluation(config, build_val(config, cpu), model.classes, cpu)

    return build


def columns_by_image(evaluation, network):
    parts = list(evaluation.detections(network))
    columns = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return {i: [c[columns[0] == i] for c in columns[1:]] for i in range(7)}


def test_the_result_is_that_of_the_run(evaluation_of, model, learned):
    result = evaluation_of().run(model.network)
    written = json.loads((learned / "metrics.json").read_text())
    assert {"step": 300, **result} == written
    assert result["protocol"]["score_threshold"] == 0.0
    assert [row["train_images"] for row in result["classes"]] == model.classes.train_images


@pytest.mark.parametrize("legacy", [False, True])
def test_detections_are_those_of_predict_in_pixels_of_the_original_images(evaluation_of, model, shapes, legacy):
    # The image of 72 x 80 pixels is evaluated at 64 x 71. One image a batch: padding leaks into a network with GroupNorm.
    evaluation = evaluation_of(batch_size=1)
    if legacy:
        evaluation = replace(evaluation, postprocess=LegacyPostprocess(**vars(evaluation.postprocess)))
    model = replace(model, postprocess=evaluation.postprocess)
    by_image = columns_by_image(evaluation, model.network)
    images = sorted(json.loads(shapes.val.read_text())["images"], key=lambda image: image["id"])
    predictions = predict(model, [shapes.folder / image["file_name"] for image in images])
    for i, prediction in enumerate(predictions):
        labels, boxes_xywh, scores = by_image[i]
        np.testing.assert_array_equal(labels, prediction.labels)
        np.testing.assert_array_equal(scores, prediction.scores)
        corners = boxes_xywh + np.pad(boxes_xywh[:, :2], ((0, 0), (2, 0)))
        np.testing.assert_allclose(corners, prediction.boxes, atol=1e-4)


def test_every_image_is_evaluated_once_whatever_the_batches(evaluation_of, model):
    for batch_size in (1, 3, 7, 100):
        evaluation = evaluation_of(batch_size=batch_size)
        indices = [i for batch in evaluation.batches for i in batch.image_indices]
        assert sorted(indices) == list(range(7))


def test_columns_are_those_that_files_of_results_hold(evaluation_of, model):
    columns = next(iter(evaluation_of().detections(model.network)))
    assert [column.dtype for column in columns] == [np.int64, np.int64, np.float32, np.float32]
    assert columns.boxes_xywh.shape == (len(columns.scores), 4)


def test_the_network_is_put_into_eval_mode(evaluation_of, model):
    model.network.train()
    evaluation_of().run(model.network)
    assert not model.network.training


def test_a_network_that_finds_nothing_scores_zero(evaluation_of, model):
    evaluation = evaluation_of()
    nothing = replace(evaluation, postprocess=replace(evaluation.postprocess, score_threshold=1.0))
    result = nothing.run(model.network)
    assert result["AP"] == result["AR300"] == 0


def test_an_image_that_is_evaluated_twice_or_not_at_all_is_an_error(evaluation_of, model):
    evaluation = evaluation_of(batch_size=3)
    first, second, third = evaluation.batches
    for batches, problem, index in (
        ([first, second], "1 of 7 images were evaluated not at all", third.image_indices[0]),
        ([first, second, third, third], "1 of 7 images were evaluated more than once", third.image_indices[0]),
        ([], "7 of 7 images were evaluated not at all", 0),
    ):
        with pytest.raises(ValueError, match=f"{problem}, the first at index {index} of the annotations"):
            list(replace(evaluation, batches=batches).detections(model.network))


def test_numbers_that_are_not_comparable_are_warned_of():
    rules = {"score_threshold": 0.0, "detections_per_image": 300}
    assert LVIS.caveats(**rules) == []
    (few,) = LVIS.caveats(**rules | {"detections_per_image": 100})
    assert "test.detections_per_image 100; LVIS numbers are comparable only" in few
    assert len(LVIS.caveats(**rules | {"score_threshold": 0.01})) == 1
    assert COCO.caveats(**rules | {"detections_per_image": 100}) == []
