from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from longshot.datasets.images.transforms import (
    Colors,
    Region,
    View,
    apply_view,
    draw_view,
    resized_size,
    visible_fraction,
)

NO_BOXES = np.zeros((0, 4))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # 1066.67
        ((640, 480), (1067, 800)),
        ((400, 1000), (533, 1333)),  # the long side decides: 533.2
        ((100, 100), (800, 800)),
        ((800, 1333), (800, 1333)),
        ((1, 5000), (1, 1333)),  # 0.27 is at least 1
        ((640, 642), (800, 802)),  # 802.5: to the even number, as OpenCV rounds,
        ((640, 646), (800, 808)),  # and 807.5
    ],
)
def test_resized_size_by_hand(size, expected):
    assert resized_size(size, 800, 1333) == expected


def test_resized_size_hits_one_side_exactly_and_keeps_the_other_below():
    generator = np.random.default_rng(0)
    for height, width, short in generator.integers(1, 3000, (2000, 3)).tolist():
        long = short + int(generator.integers(0, 1000))
        size = resized_size((height, width), short, long)
        assert min(size) == short or max(size) == long
        assert min(size) <= short
        assert max(size) <= long
        scale = min(short / min(height, width), long / max(height, width))
        assert all(
            abs(side - scale * old) <= 0.5 + 1e-6 or side == 1 for side, old in zip(size, (height, width), strict=True)
        )


def _draw(position, seed=0, flip=0.5):
    return draw_view((30, 40), seed=seed, position=position, short_sides=(10, 20, 30), long_side=100, flip=flip)


def test_view_is_a_function_of_seed_and_position():
    views = [_draw(position) for position in range(50)]
    np.random.default_rng(1).random()
    assert [_draw(position) for position in reversed(range(50))] == views[::-1]
    assert [_draw(position, seed=1) for position in range(50)] != views


def test_views_are_drawn_evenly():
    views = Counter(_draw(position) for position in range(3000))
    assert len(views) == 6
    assert all(420 < count < 580 for count in views.values())  # 500 each; standard deviation 20


def test_flip_probability_reaches_never_and_always():
    assert not any(_draw(position, flip=0.0).flip for position in range(200))
    assert all(_draw(position, flip=1.0).flip for position in range(200))


def test_flip_of_image_and_boxes_by_hand():
    image = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    tensor, boxes = apply_view(image, np.array([[1.0, 0.0, 3.0, 2.0]]), View((2, 5), flip=True))
    assert boxes.tolist() == [[2, 0, 4, 2]]
    assert torch.equal(tensor, torch.from_numpy(image[:, ::-1].copy()).permute(2, 0, 1))


def test_boxes_are_scaled_by_the_sizes_that_came_out():
    size = resized_size((333, 500), 100, 1000)
    assert size == (100, 150)  # nominal scale 0.3003; the width is really scaled by 0.3
    _, boxes = apply_view(
        np.zeros((333, 500, 3), np.uint8), np.array([[0, 0, 500, 333], [50, 33.3, 100, 66.6]]), View(size, False)
    )
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes, [[0, 0, 150, 100], [15, 10, 30, 20]], rtol=1e-6)


def test_legacy_offset_scales_the_first_and_the_last_pixel():
    # Pixels 10 … 29 and 4 … 11, scaled by 2.5: 25 … 72.5 and 10 … 27.5. Flipped they are 70 … 89, which is 175 … 222.5.
    box, image = np.array([[10.0, 4.0, 30.0, 12.0]]), np.zeros((40, 100, 3), np.uint8)
    _, seen = apply_view(image, box, View((100, 250), flip=False), last_pixel=1)
    assert seen.tolist() == [[25, 10, 73.5, 28.5]]
    _, flipped = apply_view(image, box, View((100, 250), flip=True), last_pixel=1)
    assert flipped.tolist() == [[175, 10, 223.5, 28.5]]


def test_legacy_offset_changes_nothing_where_nothing_is_scaled():
    box, image = np.array([[10.0, 4.0, 30.0, 12.5]]), np.zeros((40, 100, 3), np.uint8)
    for view in (View((40, 100), flip=True), View((20, 60), flip=True, crop=Region(2, 7, 20, 60))):
        ours, legacy = (apply_view(image, box, view, last_pixel=last)[1] for last in (0, 1))
        assert ours.tolist() == legacy.tolist()


def test_object_and_its_box_stay_together():
    image = np.zeros((60, 90, 3), np.uint8)
    image[12:24, 18:54, 1] = 200
    for flip in (False, True):
        tensor, boxes = apply_view(image, np.array([[18.0, 12.0, 54.0, 24.0]]), View((120, 150), flip))
        rows, columns = (tensor[1] > 100).nonzero().T
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(boxes[0], np.array(found), atol=1)


def test_image_without_boxes_keeps_their_shape():
    tensor, boxes = apply_view(np.zeros((8, 9, 3), np.uint8), np.zeros((0, 4)), View((4, 5), flip=True))
    assert tensor.shape == (3, 4, 5)
    assert tensor.dtype == torch.uint8
    assert boxes.shape == (0, 4)


@pytest.mark.parametrize("size", [(800, 1067), (123, 77), (60, 80), (9, 200), (1, 1)])
def test_resizing_equals_that_of_pillow_up_to_one_step_of_brightness(size):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    ours, _ = apply_view(image, NO_BOXES, View(size, flip=False))
    theirs = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1


def test_resizing_without_antialiasing_equals_that_of_opencv_up_to_one_step_of_brightness():
    image = np.random.RandomState(0).randint(0, 256, (9, 14, 3)).astype(np.uint8)
    # cv2.resize(image, (4, 3)) of OpenCV 5.0.0
    theirs = [
        [[57, 152, 118], [183, 191, 121], [67, 109, 129], [83, 51, 173]],
        [[48, 131, 59], [12, 64, 63], [79, 144, 157], [170, 81, 33]],
        [[168, 215, 152], [93, 93, 168], [141, 88, 42], [104, 28, 132]],
    ]
    difference = {}
    for antialias in (False, True):
        ours, _ = apply_view(image, NO_BOXES, View((3, 4), flip=False), antialias=antialias)
        difference[antialias] = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - theirs).max()
    assert difference[False] <= 1
    assert difference[True] > 30  # else the above says nothing


@pytest.mark.parametrize("size", [(30, 50), (15, 25), (60, 100)])
def test_view_leaves_the_image_alone(size):
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    before = image.copy()
    tensor, _ = apply_view(image, NO_BOXES, View(size, flip=False))
    tensor.zero_()
    assert np.array_equal(image, before)


def test_crop_is_the_part_of_the_image():
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 12, 8], [12, 6, 20, 14], [0, 0, 9, 50]], np.float64)
    tensor, seen = apply_view(image, boxes, View((10, 20), flip=False, crop=Region(5, 10, 10, 20)))
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), image[5:15, 10:30])
    assert seen[:2].tolist() == [[0, 0, 2, 3], [2, 1, 10, 9]]
    assert seen[2, 0] == seen[2, 2]  # outside
    mirrored, flipped = apply_view(image, boxes, View((10, 20), flip=True, crop=Region(5, 10, 10, 20)))
    assert torch.equal(mirrored, tensor.flip(2))
    assert flipped[:2].tolist() == [[18, 0, 20, 3], [10, 1, 18, 9]]


def test_visible_fraction_by_hand():
    boxes = np.array(
        [[0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 15, 25], [12, 12, 13, 13], [12, 12, 12, 20], [0, 12, 9, 14]]
    )
    expected = [0, 0, 5 * 10 / 200, 1, 0, 0]
    np.testing.assert_allclose(visible_fraction(boxes, Region(10, 10, 10, 10)), expected)


@pytest.mark.parametrize("size", [(2, 3), (8, 12)])  # colors after resizing, and before
def test_colors_by_hand(size):
    image = np.full((4, 6, 3), (200, 100, 0), np.uint8)
    gray = 0.2989 * 200 + 0.587 * 100  # 118.5, which is also the mean that contrast is about

    def seen(*colors):
        tensor, _ = apply_view(image, NO_BOXES, View(size, flip=False, colors=Colors(*colors)))
        assert tensor.shape == (3, *size)
        return tensor[:, 0, 0].tolist()

    assert seen(1, 1, 1, 0) == [200, 100, 0]
    assert seen(0.5, 1, 1, 0) == [100, 50, 0]
    assert seen(1, 0.5, 1, 0) == pytest.approx([(200 + gray) / 2, (100 + gray) / 2, gray / 2], abs=1)
    assert seen(1, 1, 0, 0) == pytest.approx([gray, gray, gray], abs=1)
    assert seen(1, 1, 1, 0.5) == pytest.approx([0, 100, 200], abs=1)  # orange and its opposite
    assert seen(0.5, 1, 0.5, 0) == pytest.approx([(100 + gray / 2) / 2, (50 + gray / 2) / 2, gray / 4], abs=1.5)
