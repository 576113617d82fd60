import math
from collections import Counter

import numpy as np
import pytest

from datasets.samplers import TrainingStream, repeat_factors


def _long_tail(num_images=200, num_classes=8, seed=0):
    """Labels and images of objects: class c is in about 2^(c - 8) of the images, the last is common; some images are empty."""
    present = np.random.default_rng(seed).random((num_images, num_classes)) < 0.5 ** np.arange(num_classes, 0, -1)
    images, labels = np.nonzero(present)
    return np.concatenate([labels, labels[::3]]), np.concatenate([images, images[::3]])  # several objects of a class


def test_repeat_factors_equal_the_formula_of_the_paper():
    labels, images = _long_tail()
    factors = repeat_factors(labels, images, num_images=200, threshold=0.3)
    classes = [set(labels[images == i].tolist()) for i in range(200)]
    fraction = {c: sum(c in here for here in classes) / 200 for c in set(labels.tolist())}
    expected = [max([max(1.0, math.sqrt(0.3 / fraction[c])) for c in here], default=1.0) for here in classes]
    np.testing.assert_allclose(factors, expected, rtol=1e-12)
    assert any(not here for here in classes)


def test_repeat_factors_by_hand():
    # Class 0 in 3 of 4 images, class 1 in one: sqrt(1 / (1 / 4)) = 2; the last image is empty.
    factors = repeat_factors(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 2, 2]), num_images=4, threshold=1.0)
    np.testing.assert_allclose(factors, [math.sqrt(4 / 3), math.sqrt(4 / 3), 2, 1])


def test_dataset_without_objects_repeats_nothing():
    none = np.zeros(0, np.int64)
    assert repeat_factors(none, none, num_images=3, threshold=0.5).tolist() == [1, 1, 1]


def test_random_epochs_hold_every_image_once_in_ever_new_order():
    stream = TrainingStream(50, batch_size=4, seed=0)
    epochs = [stream.sequence(epoch).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, list(range(50))]}) == 4
    assert TrainingStream(50, batch_size=4, seed=1).sequence(0).tolist() != epochs[0]
    assert stream.epoch_length == 50


def test_every_image_comes_as_often_as_its_factor_rounded_up():
    factors = np.array([1.0, 1.2, 2.0, 3.7, 1.0])
    stream = TrainingStream(5, batch_size=4, seed=0, factors=factors)
    for epoch in range(3):
        assert Counter(stream.sequence(epoch).tolist()) == {0: 1, 1: 2, 2: 2, 3: 4, 4: 1}
    assert stream.epoch_length == 10


def test_stochastic_repeats_are_right_on_average_and_never_off_by_one():
    factors = np.array([1.0, 1.25, 2.0, 3.7, 1.5])
    stream = TrainingStream(5, batch_size=4, seed=0, factors=factors, rounding="stochastic")
    counts = np.array([np.bincount(stream.sequence(epoch), minlength=5) for epoch in range(2000)])
    assert ((counts == np.floor(factors)) | (counts == np.ceil(factors))).all()
    np.testing.assert_allclose(counts.mean(axis=0), factors, atol=0.05)  # standard deviation of the mean 0.011
    assert stream.epoch_length == pytest.approx(9.45)


def _streams():
    labels, images = _long_tail(40)
    factors = repeat_factors(labels, images, num_images=40, threshold=0.3)
    wide = np.random.default_rng(3).random(40) < 0.6
    for options in ({}, {"factors": factors}, {"factors": factors, "rounding": "stochastic"}):
        for grouping in (None, wide):
            yield lambda o=options, g=grouping: TrainingStream(40, batch_size=6, seed=5, wide=g, **o)


@pytest.mark.parametrize("new", _streams())
def test_step_is_a_function_of_its_number(new):
    stream = new()
    steps = [stream.step(step) for step in range(80)]
    assert [new().step(step) for step in (79, 33, 0)] == [steps[79], steps[33], steps[0]]
    backwards = new()
    assert [backwards.step(step) for step in reversed(range(80))] == steps[::-1]


@pytest.mark.parametrize("new", _streams())
def test_batches_are_full_and_use_every_position_once(new):
    stream = new()
    pairs = [pair for step in range(64) for pair in stream.step(step)]  # two windows
    assert all(len(stream.step(step)) == 6 for step in range(64))
    assert sorted(position for _, position in pairs) == list(range(64 * 6))
    images = {position: image for image, position in pairs}
    assert [images[position] for position in range(64 * 6)] == stream.indices(range(64 * 6)).tolist()


def test_stream_is_epoch_after_epoch_and_batches_straddle_them():
    stream = TrainingStream(5, batch_size=4, seed=0)
    seen = [image for step in range(5) for image, _ in stream.step(step)]
    assert seen == [*stream.sequence(0), *stream.sequence(1), *stream.sequence(2), *stream.sequence(3)]


def test_stochastic_epochs_of_different_length_follow_each_other_without_a_gap():
    factors = np.full(7, 1.5)
    stream = TrainingStream(7, batch_size=4, seed=0, factors=factors, rounding="stochastic")
    epochs = [stream.sequence(epoch).tolist() for epoch in range(6)]
    assert len({len(epoch) for epoch in epochs}) > 1
    joined = [image for epoch in epochs for image in epoch]
    assert stream.indices(range(len(joined))).tolist() == joined


def test_batch_larger_than_the_dataset_is_full():
    assert Counter(image for image, _ in TrainingStream(2, batch_size=7, seed=0).step(0)).total() == 7


def test_grouping_keeps_the_images_of_a_window_and_mixes_at_most_one_batch():
    wide = np.random.default_rng(3).random(100) < 0.6
    grouped = TrainingStream(100, batch_size=6, seed=5, wide=wide)
    plain = TrainingStream(100, batch_size=6, seed=5)
    for window in range(3):
        steps = range(32 * window, 32 * (window + 1))
        batches = [grouped.step(step) for step in steps]
        assert sorted(pair for batch in batches for pair in batch) == sorted(
            pair for step in steps for pair in plain.step(step)
        )
        kinds = [{bool(wide[image]) for image, _ in batch} for batch in batches]
        assert sum(len(kind) == 2 for kind in kinds) <= 1
        order = [kind.copy().pop() for kind in kinds]
        assert order != sorted(order)  # batches are shuffled: wide and tall ones take turns
        assert order != sorted(order, reverse=True)


def test_senseless_arguments_are_refused():
    with pytest.raises(ValueError, match="expected at least one image and a batch of one, found 0 and 4"):
        TrainingStream(0, batch_size=4, seed=0)
    with pytest.raises(ValueError, match="one value for each of the 3 images"):
        TrainingStream(3, batch_size=4, seed=0, factors=np.ones(2))
