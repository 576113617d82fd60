"""Fixed AP against the steps of its authors on the official package, bit for bit, and against numbers worked out by hand."""

import copy
from collections import defaultdict

import numpy as np
import pytest

from longshot.detector.evaluation import columnar
from longshot.detector.evaluation.columnar import ColumnarEvaluator
from longshot.detector.evaluation.ground_truth import COCO, LVIS, GroundTruth
from longshot.detector.evaluation.metrics import summarize_fixed_ap, table

EVERYTHING, ELSEWHERE = [0.0, 0.0, 100.0, 100.0], [500.0, 500.0, 9.0, 9.0]


def by_image(case):
    return case._replace(results=sorted(case.results, key=lambda record: record["image_id"]))


def best_of_classes(results, count):
    """What the authors' script keeps of a list of results."""
    of_class = defaultdict(list)
    for record in results:
        of_class[record["category_id"]].append(record)
    best = (sorted(records, key=lambda record: record["score"], reverse=True)[:count] for records in of_class.values())
    return [record for records in best for record in records]


@pytest.mark.parametrize("count", [1, 5, 20, 10_000])
@pytest.mark.parametrize("seed", range(12))
def test_fixed_ap_equals_that_of_its_authors_bitwise(
    seed, count, random_case, ground_truth_of, columns_of, lvis_oracle
):
    case = by_image(random_case(seed))
    official = lvis_oracle(case._replace(results=best_of_classes(copy.deepcopy(case.results), count)), per_image=-1)
    truth = ground_truth_of(case.dataset, LVIS)
    evaluator = ColumnarEvaluator(truth.with_fixed_ap_rules(detections_per_class=count))
    evaluator.add(*columns_of(case))
    curves = evaluator.accumulate()
    np.testing.assert_array_equal(curves.precision, official.precision)
    np.testing.assert_array_equal(curves.recall, official.recall)
    categories = sorted(case.dataset["categories"], key=lambda category: category["id"])
    found = summarize_fixed_ap(evaluator, [category["frequency"] for category in categories])
    names = [name for name in official.numbers if name.startswith("AP")]
    assert len(names) == 9
    assert {name: found[f"{name}_fixed"] for name in names} == {name: official.numbers[name] for name in names}


def test_those_cases_are_cut_and_tie_where_they_are_cut(random_case):
    ties = 0
    for seed in range(12):
        of_class = defaultdict(list)
        for record in random_case(seed).results:
            of_class[record["category_id"]].append(record["score"])
        ordered = [sorted(scores, reverse=True) for scores in of_class.values()]
        ties += sum(scores[19] == scores[20] for scores in ordered if len(scores) > 20)
    assert ties >= 40


def evaluator_of(protocol, *, num_images=1, num_classes=1, count=10_000, negative_cells=()):
    """One object of class 0, which is all of image 0, by the rules of Fixed AP."""
    truth = GroundTruth.from_arrays(
        protocol, num_images=num_images, num_classes=num_classes, image_index=[0], labels=[0], boxes_xywh=[EVERYTHING],
        areas=[10_000], crowd=[0], ignore=[0], negative_cells=negative_cells,
    )  # fmt: skip
    return ColumnarEvaluator(truth.with_fixed_ap_rules(detections_per_class=count))


def ap50(evaluator):
    return evaluator.accumulate().precision[0, :, 0, 0, 0].mean()


@pytest.mark.parametrize("protocol", [LVIS, COCO], ids=["lvis", "coco"])
def test_an_image_may_have_more_detections_than_the_protocol_takes(protocol):
    evaluator = evaluator_of(protocol, num_classes=2)
    evaluator.add([0] * 401, [1] * 400 + [0], [EVERYTHING] * 401, [0.9] * 400 + [0.1])
    assert ap50(evaluator) == pytest.approx(1)
    evaluator = evaluator_of(protocol)
    evaluator.add([0] * 401, [0] * 401, [ELSEWHERE] * 400 + [EVERYTHING], [0.9] * 400 + [0.1])
    assert ap50(evaluator) == pytest.approx(1 / 401)


@pytest.mark.parametrize(("count", "expected"), [(2, 0), (3, 1)])
def test_unjudged_detections_use_up_places_and_are_no_errors(count, expected):
    # Image 1 was not checked for the class; a box without area is never judged.
    evaluator = evaluator_of(LVIS, num_images=2, count=count)
    evaluator.add([0, 0, 1], [0, 0, 0], [EVERYTHING, [5, 5, 0, 9], EVERYTHING], [0.7, 0.8, 0.9])
    assert ap50(evaluator) == pytest.approx(expected)


def test_of_equal_scores_those_of_the_first_image_are_taken_then_the_first_of_the_image():
    for order in ([0, 1], [1, 0]):
        evaluator = evaluator_of(LVIS, num_images=2, count=1, negative_cells=[1])
        for image in order:
            evaluator.add([image], [0], [EVERYTHING], [0.5])
        assert ap50(evaluator) == pytest.approx(1)
    for boxes, expected in (([EVERYTHING, ELSEWHERE], 1), ([ELSEWHERE, EVERYTHING], 0)):
        evaluator = evaluator_of(LVIS, count=1)
        evaluator.add([0, 0], [0, 0], boxes, [0.5, 0.5])
        assert ap50(evaluator) == pytest.approx(expected)


def test_cutting_on_the_way_and_merging_give_the_same_bits(random_case, ground_truth_of, columns_of, monkeypatch):
    case = random_case(500, images=600, detections=4)
    truth, columns = ground_truth_of(case.dataset, LVIS).with_fixed_ap_rules(detections_per_class=80), columns_of(case)
    whole = ColumnarEvaluator(truth)
    whole.add(*columns)
    assert len(whole.state().score) == 6 * 80  # of 2,400
    monkeypatch.setattr(columnar, "_FIRST_CUT", 40)
    ranks = [ColumnarEvaluator(truth) for _ in range(3)]
    for image in np.random.default_rng(0).permutation(600).tolist():
        of_image = columns[0] == image
        ranks[image % 3].add(*(column[of_image] for column in columns))
    gathered = ColumnarEvaluator(truth)
    for rank in ranks:
        gathered.merge(rank.state())
    expected, found = whole.accumulate(), gathered.accumulate()
    np.testing.assert_array_equal(found.precision, expected.precision)
    np.testing.assert_array_equal(found.recall, expected.recall)
    assert expected.precision.max() > 0.2


def test_no_more_is_kept_than_twice_what_counts(monkeypatch):
    monkeypatch.setattr(columnar, "_FIRST_CUT", 10)
    evaluator, kept = evaluator_of(LVIS, num_images=100, count=30), []
    for image in range(100):
        evaluator.add([image] * 5, [0] * 5, [EVERYTHING] * 5, np.linspace(0, 1, 5))
        kept.append(sum(map(len, evaluator._parts[0])))
    assert max(kept) <= 2 * 30 + 5
    assert len(evaluator.state().score) == 30


def test_classes_with_fewer_detections_are_counted_and_told():
    evaluator = evaluator_of(LVIS, num_images=2, num_classes=3, count=2)
    evaluator.add([0, 1, 1, 1], [0, 0, 1, -1], [EVERYTHING] * 4, [0.9, 0.8, 0.7, 0.6])
    found = summarize_fixed_ap(evaluator)
    assert found["fixed_ap"] == {"detections_per_class": 2, "classes": 3, "classes_with_fewer": 2}
    assert found["AP_fixed"] == pytest.approx(100)
    assert found["APr_fixed"] is None
    support = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"))
    rules = {"name": "lvis", "federated": True, "detections_per_image": 300, "num_images": 2, "score_threshold": None}
    lines = table({"protocol": rules, "support": support} | dict.fromkeys(support) | found).splitlines()
    assert lines[-2:] == [
        "Fixed AP (Dave et al. 2021): the best 2 detections of each class in all images; 2 of 3 classes have fewer",
        "AP_fixed 100.0, AP50_fixed 100.0, AP75_fixed 100.0, APs_fixed n/a, APm_fixed n/a, APl_fixed 100.0, "
        "APr_fixed n/a, APc_fixed n/a, APf_fixed n/a",
    ]
