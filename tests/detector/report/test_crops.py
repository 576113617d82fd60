"""Which mistakes are shown, and that pictures of them come out."""

import io

import numpy as np
import pytest
from PIL import Image

from longshot.detector.report.crops import worst_false_positives, worst_misses
from longshot.detector.report.error_kinds import find_errors
from longshot.detector.report.verdicts import find_verdicts

BOX, NEAR, FAR = (100, 100, 100, 100), (125, 100, 100, 100), (600, 100, 100, 100)


@pytest.fixture
def images(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((1000, 1000, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def captions(pictures):
    return [caption for _, caption in pictures]


def test_false_positives_by_falling_score_and_one_of_each_image(make_validation, columns, images):
    validation = make_validation([(0, 0, BOX), (1, 0, BOX), (2, 0, BOX)], num_images=3)
    rows = [(0, 1, NEAR, 0.7), (0, 0, FAR, 0.6), (1, 0, FAR, 0.9), (2, 0, BOX, 0.95), (2, 0, NEAR, 0.5)]
    verdicts, _ = find_verdicts(validation.ground_truth, columns(*rows))
    errors = find_errors(verdicts, validation.ground_truth)
    shown = list(worst_false_positives(validation, verdicts, errors, images))
    assert captions(shown) == [
        "class 0 0.90: background (1.png)",
        "class 1 0.70: classification, on class 0 (0.png)",
        "class 0 0.50: duplicate (2.png)",
    ]
    assert captions(worst_false_positives(validation, verdicts, errors, images, count=1)) == captions(shown)[:1]


def test_misses_by_their_best_score_and_then_by_size(make_validation, columns, images):
    small, large = (600, 600, 20, 20), (400, 400, 300, 300)
    validation = make_validation([(0, 0, BOX), (1, 0, small), (1, 1, large), (2, 2, large)], num_images=3)
    rows = [(0, 0, BOX, 0.9), (0, 0, NEAR, 0.2), (1, 0, large, 0.3), (2, 2, large, 0.1)]
    verdicts, _ = find_verdicts(validation.ground_truth, columns(*rows))
    assert captions(worst_misses(validation, verdicts, images)) == [
        "class 1: not detected, seen as class 0 0.30 (1.png)",
        "class 2: best detection 0.100 (2.png)",
        "class 0: best detection 0.900 (0.png)",
    ]


def test_picture_is_a_crop_with_the_box_in_the_color_of_its_class(make_validation, columns, images):
    validation = make_validation([(0, 0, BOX)])
    verdicts, _ = find_verdicts(validation.ground_truth, columns())
    ((jpeg, _),) = worst_misses(validation, verdicts, images)
    picture = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    # 60 pixels of surroundings on each side of 100, enlarged to 300.
    assert picture.shape == (300, 300, 3)
    zoom = 300 / 220
    left, right, middle = round(60 * zoom), round(160 * zoom), 150
    red = picture[:, :, 0] - picture[:, :, 2]
    assert min(red[middle, left], red[middle, right]) > 100
    assert abs(red[middle, middle]) < 20


def test_box_beyond_its_image_is_shown_all_the_same(make_validation, columns, images):
    outside = (990, 990, 300, 300), (1500, 0, 50, 50)
    validation = make_validation([(0, 0, outside[0]), (1, 0, outside[1])])
    verdicts, _ = find_verdicts(validation.ground_truth, columns())
    shown = list(worst_misses(validation, verdicts, images))
    assert len(shown) == 2
    for jpeg, _ in shown:
        assert min(Image.open(io.BytesIO(jpeg)).size) > 0
