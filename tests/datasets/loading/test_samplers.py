import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from longshot.datasets.loading.samplers import (
    ClassAwareStream,
    TrainingStream,
    instance_factors,
    occurrences,
    repeat_factors,
)


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


@pytest.mark.parametrize(("power", "expected"), [(1, [4 / 3, 4]), (0.25, [(4 / 3) ** 0.25, math.sqrt(2)]), (0, [1, 1])])
def test_power_takes_the_place_of_the_root(power, expected):
    # Class 0 in 3 of 4 images, class 1 in one.
    labels, images = np.array([0, 0, 0, 1]), np.array([0, 1, 2, 3])
    factors = repeat_factors(labels, images, num_images=4, threshold=1.0, power=power)
    np.testing.assert_allclose(factors[[0, 3]], expected)


@pytest.fixture(scope="module")
def rfs_sampler():
    """The repeat-factor sampler of United-Perception (52aaeb9, run on a CPU): 3,000 images, 12 classes, threshold 0.02."""
    with np.load(Path(__file__).parents[2] / "fixtures" / "rfs_sampler.npz") as file:
        return dict(file)


def _reference_factors(fixture):
    labels = fixture["img_class_flat"] - 1  # theirs begin at 1
    images = np.repeat(np.arange(3000), fixture["img_class_len"])
    return labels, images, repeat_factors(labels, images, num_images=3000, threshold=float(fixture["t"]))


def test_rfs_sampler_has_the_same_factors(rfs_sampler):
    labels, images, factors = _reference_factors(rfs_sampler)
    for label, expected in rfs_sampler["class_factor"]:  # of an image with no other class
        alone = images[(labels == label - 1) & (rfs_sampler["img_class_len"][images] == 1)]
        assert len(alone) > 0
        np.testing.assert_allclose(factors[alone], expected, rtol=1e-14)
    assert np.array_equal(np.ceil(factors), rfs_sampler["repeat_ceil"])
    assert np.array_equal(np.floor(factors), rfs_sampler["repeat_floor"])
    assert np.array_equal(np.rint(factors), rfs_sampler["repeat_round"])


@pytest.mark.parametrize("batch_size", [16, 12])
def test_rfs_sampler_has_the_same_epochs(rfs_sampler, batch_size):
    labels, images, _ = _reference_factors(rfs_sampler)
    factors = repeat_factors(labels, images, num_images=3000, threshold=0.02)
    stream = TrainingStream(3000, batch_size=batch_size, seed=0, factors=factors, rounding="ceil", legacy_order=True)
    length = int(rfs_sampler["repeat_ceil"].sum())
    assert stream.epoch_length == length
    epochs = []
    for epoch in (
        0,
        1,
    ):  # theirs is dealt to four ranks, in contiguous shards whose last is filled up from the beginning
        theirs = np.concatenate([rfs_sampler[f"epoch{epoch}_rank{rank}"] for rank in range(4)])
        assert np.array_equal(stream.sequence(epoch), theirs[:length])
        epochs += theirs[:length].tolist()
    steps = 2 * length // batch_size
    assert [image for step in range(steps) for image, _ in stream.step(step)] == epochs[: steps * batch_size]


def test_legacy_order_follows_from_the_seed_and_the_epoch():
    orders = [
        TrainingStream(50, batch_size=4, seed=seed, legacy_order=True).sequence(epoch).tolist()
        for seed, epoch in ((0, 0), (0, 1), (3, 0), (0, 3))
    ]
    assert orders[2] == orders[3] == np.random.RandomState(3).permutation(50).tolist()
    assert len({tuple(order) for order in orders}) == 3
    assert TrainingStream(50, batch_size=4, seed=0).sequence(0).tolist() not in orders


def test_occurrences_count_a_class_once_per_image():
    labels, images = occurrences(np.array([2, 0, 2, 2], np.int32), np.array([3, 3, 3, 1]), num_images=4)
    assert list(zip(labels.tolist(), images.tolist(), strict=True)) == [(0, 3), (2, 1), (2, 3)]


def test_instance_factors_are_the_numbers_of_objects_with_a_mean_of_one():
    assert instance_factors(np.array([0, 0, 0, 2]), num_images=4).tolist() == [3, 0, 1, 0]


def test_every_object_comes_equally_often_in_an_instance_balanced_stream():
    counts = np.array([1, 0, 3, 8, 2])
    factors = instance_factors(np.repeat(np.arange(5), counts), num_images=5)
    stream = TrainingStream(5, batch_size=4, seed=0, factors=factors, rounding="stochastic")
    seen = np.bincount(np.concatenate([stream.sequence(epoch) for epoch in range(4000)]), minlength=5)
    np.testing.assert_allclose(seen / 4000, counts * 5 / 14, atol=0.04)  # standard deviation of the mean below 0.008
    assert seen[1] == 0
    assert stream.epoch_length == pytest.approx(5)


def _class_aware(seed=0):
    labels, images = _long_tail()
    return ClassAwareStream(labels, images, num_images=200, batch_size=6, seed=seed), labels, images


def test_every_class_has_its_turn_equally_often():
    # Class 5 is in image 0 alone, class 9 in images 1 to 4, class 2 in 5 to 14; image 15 is empty: an epoch of 16 turns.
    labels, images = np.repeat([5, 9, 2], [1, 4, 10]), np.arange(15)
    stream = ClassAwareStream(labels, images, num_images=16, batch_size=4, seed=0)
    assert stream.epoch_length == 16
    for epoch in range(20):
        sequence = stream.sequence(epoch)
        classes = labels[sequence]
        assert all(set(classes[i : i + 3].tolist()) == {5, 9, 2} for i in range(0, 15, 3))
        nines = sequence[classes == 9].tolist()
        assert set(nines[:4]) == {1, 2, 3, 4}  # each of its images before any comes again
        twos = sequence[classes == 2].tolist()
        assert len(set(twos)) == len(twos)


def test_orders_of_class_aware_epochs_differ_and_follow_from_the_seed():
    stream, *_ = _class_aware()
    epochs = [stream.sequence(epoch).tolist() for epoch in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert _class_aware()[0].sequence(2).tolist() == epochs[2]
    assert _class_aware(seed=1)[0].sequence(0).tolist() != epochs[0]


def test_every_order_of_the_classes_comes_up():
    stream = ClassAwareStream(np.arange(3), np.arange(3), num_images=3, batch_size=4, seed=0)
    assert len({tuple(stream.sequence(epoch).tolist()) for epoch in range(100)}) == 6


def test_objects_beyond_the_first_of_a_class_in_an_image_change_nothing():
    labels, images = _long_tail()
    once = occurrences(labels, images, num_images=200)
    assert ClassAwareStream(*once, num_images=200, batch_size=6, seed=0).sequence(0).tolist() == (
        _class_aware()[0].sequence(0).tolist()
    )


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
    repeated = {"factors": factors}
    for options in ({}, repeated, {**repeated, "rounding": "stochastic"}, {**repeated, "legacy_order": True}):
        for grouping in (None, wide):
            yield lambda o=options, g=grouping: TrainingStream(40, batch_size=6, seed=5, wide=g, **o)
    for grouping in (None, wide):
        yield lambda g=grouping: ClassAwareStream(labels, images, num_images=40, batch_size=6, seed=5, wide=g)


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
    none = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="class-aware sampling needs objects, found none"):
        ClassAwareStream(none, none, num_images=3, batch_size=4, seed=0)
