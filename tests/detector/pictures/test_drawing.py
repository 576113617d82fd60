import numpy as np
import pytest

from longshot.detector.pictures.drawing import color_of, draw_boxes, sheet, side_by_side, titled

GRAY = np.full((40, 60, 3), 100, np.uint8)


def colored(picture, label):
    """(H, W) where the picture has the color of a label."""
    return (picture == np.array(color_of(label))).all(-1)


def test_labels_have_bright_colors_that_differ_from_their_neighbors():
    colors = np.array([color_of(label) for label in range(1203)], int)
    assert (colors.max(1) == 255).all()
    assert np.abs(colors[1:] - colors[:-1]).max(1).min() > 100
    assert color_of(7) == color_of(7)
    assert color_of(-2) == (255, 255, 255)


def test_a_box_is_drawn_where_it_is():
    drawn = draw_boxes(GRAY, np.array([[10.0, 5, 30, 20]]), [3], [""], min_side=1)
    assert drawn.shape == GRAY.shape
    rows, columns = np.nonzero(colored(drawn, 3))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 20, 10, 30)
    assert (drawn[8:18, 13:28] == 100).all()
    assert (GRAY == 100).all()  # the image is not drawn into


def test_boxes_grow_with_a_small_image():
    drawn = draw_boxes(GRAY, np.array([[10.0, 5, 30, 20]]), [3], [""], min_side=80)
    assert drawn.shape == (80, 120, 3)
    rows, columns = np.nonzero(colored(drawn, 3))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 40, 20, 60)


@pytest.mark.parametrize("box", [[0, 0, 5, 5], [55, 35, 60, 40], [0, 38, 60, 40], [59, 0, 60, 1]])
def test_captions_stay_inside_the_picture(box):
    plain = draw_boxes(GRAY, np.array([box], float), [3], [""], min_side=400)
    drawn = draw_boxes(GRAY, np.array([box], float), [3], ["a caption"], min_side=400)
    # The whole caption's ground, the color of the label, is there wherever the box lies.
    assert colored(drawn, 3).sum() + (drawn == 0).all(-1).sum() > colored(plain, 3).sum() + 500


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), np.zeros((0, 4), np.float32)])
def test_an_image_without_boxes_stays_as_it_is(boxes):
    assert (draw_boxes(GRAY, boxes, [], [], min_side=1) == GRAY).all()


def test_box_counts_that_differ_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        draw_boxes(GRAY, np.zeros((1, 4)), [1], ["a", "b"])


def test_pictures_beside_each_other_have_their_titles_above():
    left, right = np.zeros((30, 200, 3), np.uint8), np.full((30, 100, 3), 7, np.uint8)
    both = side_by_side(left, right, ("left", "right"))
    bar = len(titled(left, "left")) - 30
    assert both.shape == (30 + bar, 306, 3)
    assert (both[bar:, :200] == 0).all()
    assert (both[bar:, 206:] == 7).all()
    for title in (both[:bar, :200], both[:bar, 206:]):
        assert (title == 0).any()
        assert (title[0] == 255).all()


def test_a_sheet_holds_every_picture_in_rows():
    pictures = [np.full((10 * (i + 1), 20, 3), i + 1, np.uint8) for i in range(5)]
    whole = sheet(pictures, columns=2)
    for i in range(5):
        assert (whole == i + 1).all(-1).sum() == 10 * (i + 1) * 20
    assert (whole[:10, :20] == 1).all()
    assert (np.nonzero((whole == 3).all(-1))[0].min()) > 20  # below the higher picture of the first row
