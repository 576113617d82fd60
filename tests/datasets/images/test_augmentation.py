import numpy as np
import pytest

from longshot.datasets.images.augmentation import ColorJitter, Crop, LargeScaleJitter, MixUp, Mosaic, fitted
from longshot.datasets.images.transforms import Region


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_region_that_fits_is_shown_whole(random):
    part, size = fitted(Region(7, 3, 100, 200), (50, 50), scale=1.0, limit=(50, 50), random=random)
    assert part == Region(7, 3, 100, 200)
    assert size == (25, 50)


def test_region_that_becomes_larger_shows_a_random_part(random):
    # twice the size that fits: 50 x 100, of which 50 x 50 is allowed, half of the width
    drawn = [fitted(Region(7, 3, 100, 200), (50, 50), scale=2.0, limit=(50, 50), random=random) for _ in range(2000)]
    assert {size for _, size in drawn} == {(50, 50)}
    assert {(part.top, part.height, part.width) for part, _ in drawn} == {(7, 100, 100)}
    assert {part.left for part, _ in drawn} == set(range(3, 104))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (4000, 2)])
@pytest.mark.parametrize("scale", [0.001, 1.0, 50.0])
def test_odd_sizes_and_scales_leave_at_least_a_pixel(size, scale, random):
    part, seen = fitted(Region(0, 0, *size), (800, 1333), scale=scale, limit=(400, 9), random=random)
    assert 1 <= seen[0] <= 400
    assert 1 <= seen[1] <= 9
    assert min(part.height, part.width) >= 1
    assert part.top + part.height <= size[0]
    assert part.left + part.width <= size[1]


def test_crop_is_drawn_evenly_within_the_image(random):
    crop = Crop(probability=1.0, min_side=0.4)
    parts = np.array([crop.draw((100, 300), random) for _ in range(4000)])
    top, left, height, width = parts.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 100).all()
    assert (left + width <= 300).all()
    assert (height.min(), height.max(), width.min(), width.max()) == (40, 100, 120, 300)
    assert height.mean() == pytest.approx(70, abs=1.5)  # standard deviation of the mean: 0.27
    assert width.mean() == pytest.approx(210, abs=5)
    assert (left / np.maximum(300 - width, 1)).mean() == pytest.approx(0.5, abs=0.03)
    assert abs(np.corrcoef(height, width)[0, 1]) < 0.06


def test_crop_comes_as_often_as_asked(random):
    whole = Region(0, 0, 100, 300)
    count = sum(Crop(probability=0.3).draw((100, 300), random) != whole for _ in range(3000))
    assert count == pytest.approx(900, abs=100)  # standard deviation 25
    assert all(Crop(probability=0.0).draw((100, 300), random) == whole for _ in range(100))


def test_large_scale_jitter_draws_its_scale_evenly(random):
    jitter = LargeScaleJitter(size=(1000, 1000), min_scale=0.2, max_scale=1.0)
    drawn = [jitter.draw(Region(0, 0, 400, 800), random) for _ in range(3000)]
    assert {part for part, _ in drawn} == {Region(0, 0, 400, 800)}
    widths = np.array([width for _, (_, width) in drawn])
    assert widths.min() >= 200
    assert widths.max() <= 1000
    assert np.quantile(widths, [0.25, 0.5, 0.75]) == pytest.approx([400, 600, 800], abs=25)
    assert all(abs(2 * height - width) <= 1 for _, (height, width) in drawn)


def test_large_scale_jitter_zooms_in_to_a_part(random):
    jitter = LargeScaleJitter(size=(100, 100), min_scale=2.0, max_scale=2.0)
    part, size = jitter.draw(Region(10, 20, 400, 400), random)  # to 200 x 200, of which a quarter is shown
    assert size == (100, 100)
    assert (part.height, part.width) == (200, 200)
    assert 10 <= part.top <= 210
    assert 20 <= part.left <= 220


def test_mosaic_puts_four_images_around_a_center_in_the_middle(random):
    mosaic = Mosaic(size=(80, 120), min_scale=0.3, max_scale=1.5)
    centers = set()
    for _ in range(300):
        a, b, c, d = mosaic.draw([(30, 50), (400, 100), (64, 64), (7, 900)], random)
        y, x = a.corner[0] + a.size[0], a.corner[1] + a.size[1]  # lower right of the first
        centers.add((y, x))
        assert (b.corner[0] + b.size[0], b.corner[1]) == (y, x)
        assert (c.corner[0], c.corner[1] + c.size[1]) == (y, x)
        assert d.corner == (y, x)
        for placed in (a, b, c, d):
            assert min(placed.corner) >= 0
            assert placed.corner[0] + placed.size[0] <= 80
            assert placed.corner[1] + placed.size[1] <= 120
    assert {y for y, _ in centers} == set(range(20, 61))
    assert {x for _, x in centers} <= set(range(30, 91))
    assert len({x for _, x in centers}) > 50


def test_mosaic_fills_a_quarter_with_part_of_a_larger_image(random):
    mosaic = Mosaic(size=(80, 80), min_scale=1.0, max_scale=1.0)
    first, *_ = mosaic.draw([(160, 160)] * 4, random)  # to 80 x 80, of which the quarter is shown: half a scale
    assert first.corner == (0, 0)
    assert (first.part.height, first.part.width) == (2 * first.size[0], 2 * first.size[1])


def test_partner_of_mixup_fits_within_the_image(random):
    placed, _ = MixUp().draw((400, 100), (80, 120), random)
    assert placed == (Region(0, 0, 400, 100), (80, 20), (0, 0))


def test_mixup_draws_its_weight_from_a_beta_distribution(random):
    weights = np.array([MixUp(alpha=1.5).draw((4, 4), (8, 8), random)[1] for _ in range(4000)])
    assert weights.mean() == pytest.approx(0.5, abs=0.02)
    assert weights.var() == pytest.approx(1 / 16, abs=0.005)  # Beta(a, a): 1 / (4 (2a + 1))


def test_colors_are_drawn_evenly_around_no_change(random):
    jitter = ColorJitter(brightness=0.4, contrast=0.2, saturation=0.0, hue=0.1)
    colors = np.array([jitter.draw(random) for _ in range(3000)])
    np.testing.assert_allclose(colors.min(axis=0), [0.6, 0.8, 1, -0.1], atol=0.01)
    np.testing.assert_allclose(colors.max(axis=0), [1.4, 1.2, 1, 0.1], atol=0.01)
    np.testing.assert_allclose(colors.mean(axis=0), [1, 1, 1, 0], atol=0.03)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Crop, {"probability": 1.5}, r"probability must be in \[0, 1\], found 1.5"),
        (Crop, {"min_side": 0.0}, r"min_side must be in \(0, 1\], found 0.0"),
        (LargeScaleJitter, {"size": (800, 0)}, r"size must be at least 4 x 4 \(height, width\), found \[800, 0\]"),
        (LargeScaleJitter, {"size": (8, 8), "min_scale": 3.0}, "min_scale and max_scale must be above 0 and in this order"),
        (ColorJitter, {"contrast": -0.1}, r"contrast must be in \[0, 1\], found -0.1"),
        (ColorJitter, {"hue": 0.6}, r"hue must be in \[0, 0.5\], found 0.6"),
        (Mosaic, {"size": (8, 8), "probability": -1.0}, r"probability must be in \[0, 1\], found -1.0"),
        (Mosaic, {"size": (3, 8)}, "size must be at least 4 x 4"),
        (Mosaic, {"size": (8, 8), "min_scale": 0.0}, "found 0 and 1"),
        (MixUp, {"probability": 2.0}, r"probability must be in \[0, 1\]"),
        (MixUp, {"alpha": 0.0}, "alpha must be above 0, found 0.0"),
    ],
)  # fmt: skip
def test_senseless_options_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
