"""AP with multiplicities against really repeated data, and intervals with known answers."""

import json

import numpy as np
import pytest

from longshot.datasets.annotations.annotations import read_annotations
from longshot.detector.evaluation.ground_truth import LVIS, GroundTruth
from longshot.detector.report.bootstrap import Resampler, bootstrap, interval
from longshot.detector.report.verdicts import find_verdicts
from longshot.detector.results.columns import DetectionColumns

BOX, FAR = (100, 100, 100, 100), (600, 100, 100, 100)


def resampler_of(validation, detections):
    return Resampler.of(find_verdicts(validation.ground_truth, detections)[1].state(), validation.ground_truth)


def evaluator_ap(truth, detections):
    """(K,) AP in percent by the evaluator; NaN without objects."""
    precision = find_verdicts(truth, detections)[1].accumulate().precision[..., 0, 0].mean(axis=(0, 1))
    return np.where(precision < 0, np.nan, 100 * precision)


def repeated(validation, detections, multiplicity):
    """Ground truth and detections of the dataset in which image i is there multiplicity[i] times in a row."""
    content = json.loads(validation.annotations.path.read_text())
    images, objects, parts = [], [], []
    for i, image in enumerate(content["images"]):
        for _ in range(multiplicity[i]):
            images.append(image | {"id": len(images)})
            mine = [o for o in content["annotations"] if o["image_id"] == image["id"]]
            objects += [o | {"id": 1 + len(objects) + n, "image_id": len(images) - 1} for n, o in enumerate(mine)]
            there = detections.image_index == i
            index = np.full(there.sum(), len(images) - 1)
            parts.append(
                detections._replace(
                    image_index=index, **{k: getattr(detections, k)[there] for k in ("labels", "boxes_xywh", "scores")}
                )
            )
    path = validation.annotations.path.with_name("repeated.json")
    path.write_text(json.dumps(content | {"images": images, "annotations": objects}))
    truth = GroundTruth.from_annotations(read_annotations(path), LVIS)
    return truth, DetectionColumns(*(np.concatenate(c) for c in zip(*parts, strict=True)))


@pytest.mark.parametrize("seed", range(4))
def test_every_image_once_is_the_plain_ap(random_case, seed):
    validation, detections = random_case(seed)
    ap = resampler_of(validation, detections).average_precision(np.ones(12, int))
    np.testing.assert_allclose(ap, evaluator_ap(validation.ground_truth, detections), atol=1e-10)
    assert np.nanmin(ap) > 0


@pytest.mark.parametrize("seed", range(4))
def test_multiplicities_are_repeated_images(random_case, seed):
    validation, detections = random_case(seed)
    rng = np.random.default_rng(seed)
    # Different scores, since copies of a detection shall not trade places with others of the same score.
    detections = detections._replace(scores=rng.permutation(len(detections.scores)) / 1000)
    multiplicity = np.bincount(rng.integers(12, size=12), minlength=12)
    ap = resampler_of(validation, detections).average_precision(multiplicity)
    np.testing.assert_allclose(ap, evaluator_ap(*repeated(validation, detections, multiplicity)), atol=1e-10)


def test_class_whose_images_are_not_drawn_has_no_ap(make_validation, columns):
    validation = make_validation([(0, 0, BOX), (1, 1, BOX)])
    ap = resampler_of(validation, columns((0, 0, BOX, 0.9), (1, 1, BOX, 0.9))).average_precision(np.array([2, 0]))
    np.testing.assert_allclose(ap, [100, np.nan, np.nan])


def test_equal_runs_differ_by_exactly_nothing(random_case):
    validation, detections = random_case(0)
    again = detections._replace(boxes_xywh=detections.boxes_xywh.copy())
    ap = bootstrap([resampler_of(validation, detections), resampler_of(validation, again)], 12, resamples=20)
    assert ap.shape == (20, 2, 6)
    np.testing.assert_array_equal(ap[:, 0], ap[:, 1])
    assert np.nanstd(ap[:, 0, :5], axis=0).max() > 1


def test_images_that_are_all_alike_have_an_interval_without_width(make_validation, columns):
    # Wrong above right in each of 4 images; all resamples have AP 1/2.
    validation = make_validation([(i, 0, BOX) for i in range(4)], num_images=4, num_classes=1)
    rows = [(i, 0, box, score) for i in range(4) for box, score in ((FAR, 0.9), (BOX, 0.8))]
    ap = bootstrap([resampler_of(validation, columns(*rows))], 4, resamples=30)
    np.testing.assert_allclose(ap[:, 0, 0], 50)
    assert interval(50, ap[:, 0, 0]) == pytest.approx((50, 50))


def test_seed_decides(random_case):
    validation, detections = random_case(0)
    run = resampler_of(validation, detections)
    first, same, other = (bootstrap([run], 12, resamples=5, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other, equal_nan=True)


def test_interval_has_the_width_of_the_resamples_and_the_mean_of_the_estimate():
    # 0 … 100, with quantiles 2.5 and 97.5 and mean 50.
    assert interval(20, np.arange(101.0)) == pytest.approx((20 - 47.5, 20 + 47.5))


def test_interval_leaves_out_what_is_no_number():
    assert interval(50, np.append(np.arange(101.0), np.nan)) == pytest.approx((2.5, 97.5))
    assert interval(50, np.array([np.nan])) is None
    assert interval(None, np.arange(101.0)) is None
