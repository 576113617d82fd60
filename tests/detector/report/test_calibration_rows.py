import numpy as np
import pytest

from longshot.detector.report.calibration import NUM_BINS, in_first_half
from longshot.detector.report.calibration_rows import bin_rows, calibrate
from longshot.detector.report.verdicts import find_verdicts

BOX, FAR = (100, 100, 100, 100), (600, 100, 100, 100)


@pytest.fixture
def case(make_validation, columns):
    """verdicts in the reported half -> what `calibrate` takes; the fitting half asks for a temperature of 2."""

    def make(reported_right=1, federated=True, unchecked=()):
        objects = [(i, 0, BOX) for i in range(12)]
        validation = make_validation(objects, num_images=12, absent=[(i, 1) for i in range(12)], federated=federated)
        first = in_first_half(validation.annotations.image_ids)
        fit, report = np.flatnonzero(first)[:4].tolist(), np.flatnonzero(~first)[:4].tolist()
        # 3 of 4 right at 0.9, and 1 of 4 at 0.1: see test_calibration.
        rows = [(i, 0, BOX if n < 3 else FAR, 0.9) for n, i in enumerate(fit)]
        rows += [(i, 0, BOX if n == 3 else FAR, 0.1) for n, i in enumerate(fit)]
        rows += [(i, 0, BOX if n < reported_right else FAR, 0.9) for n, i in enumerate(report)]
        rows += [(report[0], 2, BOX, score) for score in unchecked]
        detections = columns(*rows)
        return validation, find_verdicts(validation.ground_truth, detections)[0], detections

    return make


def test_fitted_on_one_half_and_reported_on_the_other(case):
    for right in range(5):
        calibration = calibrate(*case(right))
        assert calibration.temperature == pytest.approx(2), "the reported half must not be seen by the fit"
        every = calibration.rows[0]
        assert (every["group"], every["detections"]) == ("all", 4)
        assert every["D-ECE before"] == pytest.approx(abs(0.9 - right / 4))
        assert every["D-ECE after"] == pytest.approx(abs(0.75 - right / 4))
    assert calibration.fitting_images + calibration.reported_images == 12


def test_groups_have_their_own_rows(case):
    rows = {row["group"]: row for row in calibrate(*case()).rows}
    assert rows["r"]["D-ECE before"] == pytest.approx(0.65)
    assert rows["c"]["detections"] == 0
    assert rows["c"]["D-ECE before"] is None


def test_unchecked_classes_count_only_where_it_is_said(case):
    rows = {row["group"]: row for row in calibrate(*case(unchecked=(0.9, 0.9, 0.9, 0.9))).rows}
    assert rows["all"]["D-ECE before"] == pytest.approx(0.65)
    assert rows["unchecked as wrong"]["detections"] == 8
    assert rows["unchecked as wrong"]["D-ECE before"] == pytest.approx(0.9 - 1 / 8)
    assert "unchecked as wrong" not in {row["group"] for row in calibrate(*case(federated=False)).rows}


def test_scores_that_are_no_probabilities_have_no_calibration(make_validation, columns):
    validation, detections = make_validation([(0, 0, BOX)]), columns((0, 0, BOX, 1.5))
    assert calibrate(validation, find_verdicts(validation.ground_truth, detections)[0], detections) is None


def test_without_a_temperature_there_is_no_after(make_validation, columns):
    validation, detections = make_validation([(0, 0, BOX)]), columns()
    calibration = calibrate(validation, find_verdicts(validation.ground_truth, detections)[0], detections)
    assert calibration.temperature is None
    assert {row["temperature"] for row in bin_rows(calibration)} == {"before"}
    assert "D-ECE after" not in calibration.rows[0]


def test_a_row_for_each_bin_of_each_diagram(case):
    rows = bin_rows(calibrate(*case()))
    assert len(rows) == 2 * 4 * NUM_BINS
    (row,) = (row for row in rows if row["temperature"] == "before" and row["group"] == "r" and row["detections"])
    assert (row["from"], row["to"], row["detections"]) == (13 / 15, 14 / 15, 4)
    assert (row["score"], row["precision"]) == (pytest.approx(0.9), 0.25)
