import pytest
import torch

from longshot.detector.errors import ConfigError
from longshot.losses import CLASSIFICATION_LOSSES
from longshot.losses.kernel import CHUNK
from longshot.tools.planning import kernels, plan
from longshot.tools.planning.communication import Collective
from longshot.tools.planning.plan import Gpu, largest_image, make_plan
from longshot.tools.planning.table import table, warnings

SLOW = Gpu(memory=2**30, fp32=1e9, bf16=2e9, memory_bandwidth=1e8, launch=1e-5, bandwidth=1e6, latency=1e-3)


def planned(config, **options):
    return make_plan(
        config, **{"gpus": 2, "num_classes": 20, "image_size": (60, 90), "precision": "fp32", "gpu": SLOW} | options
    )


@pytest.fixture(scope="module")
def plans(make_config):
    return [planned(make_config(), precision=precision) for precision in ("fp32", "bf16")]


def test_seconds_of_components_are_flops_by_rate(plans):
    for made, rate in zip(plans, (1e9, 2e9), strict=True):
        for name, flops in made.simulated.flops.items():
            assert made.compute[name] == flops / rate
        assert made.hideable == (made.simulated.flops.total() - made.simulated.forward_flops) / rate
    # SGD: weights, gradients and momentum are read, weights and momentum written. All is trained here.
    trained = next(m.size for m in plans[0].collectives if m.name == "gradients")
    assert plans[0].compute[plan.UPDATE] == 5 * trained / 1e8


def test_batch_is_divided_as_in_training(make_config):
    config = make_config("nowhere", {"train": {"batch_size": 12, "images_per_pass": 3}})
    made = planned(config)
    assert (made.num_images, made.passes) == (3, 2)
    assert planned(config, gpus=4).compute["trunk"] == made.compute["trunk"] / 2
    with pytest.raises(ConfigError, match="not divisible by 5 processes"):
        planned(config, gpus=5)


def test_one_gpu_sends_nothing_and_keeps_no_buckets(make_config):
    made = planned(make_config(), gpus=1)
    assert made.collectives == []
    assert made.seconds() == (made.compute.total(),) * 2
    assert made.simulated.peak["DDP's buckets"] == 0


def test_gradients_hide_behind_backward_alone(plans):
    made = plans[0]
    gradients, others = made.collectives[0], made.collectives[1:]
    assert gradients.hidden
    assert not any(message.hidden for message in others)
    by_hand = gradients.size / 1e6 + gradients.count * 1e-3  # two GPUs: 2 (N - 1) / N = 1
    assert made.seconds_of(gradients) == pytest.approx(by_hand)
    shortest, longest = made.seconds()
    exposed = sum(made.seconds_of(message) for message in others)
    assert longest == pytest.approx(made.compute.total() + by_hand + exposed)
    assert shortest == pytest.approx(made.compute.total() + exposed + max(0, by_hand - made.hideable))
    assert made.seconds_of(Collective("x", "all-reduce", 0, 7)) == pytest.approx(7e-3)


def test_memory_needed_is_more_than_that_of_tensors_and_told(plans):
    tensors = plans[0].simulated.peak.total()
    assert plans[0].needed == tensors * 1.1 + 2 * 2**30
    found = warnings(plans)
    assert [line.split(" does")[0] for line in found] == ["warning: fp32", "warning: bf16"]
    assert "of 1024 MB" in found[0]


@pytest.mark.parametrize(
    ("differences", "size"),
    [
        ({}, (64, 96)),
        ({"aspect_grouping": False}, (96, 96)),
        ({"aspect_grouping": False, "pad_together": 2}, (96, 96)),
        ({"aspect_grouping": False, "pad_together": 1}, (64, 96)),
        ({"short_sides": [200]}, (96, 96)),
        ({"large_scale_jitter": {"size": [128, 160]}}, (128, 160)),
        ({"mosaic": {"size": [80, 80]}}, (80, 96)),
    ],
)
def test_largest_image_is_what_training_may_show(differences, size, make_config):
    assert largest_image(make_config("nowhere", {"data": differences})) == size


@pytest.mark.parametrize(
    ("beyond", "error"),
    [
        ({"num_classes": 1_000_001}, "1000001 classes: plans are made for at most 1000000"),
        ({"image_size": (60, 32_769)}, "32769 pixels a side: plans are made for at most 32768"),
        ({"gpus": 1}, "4096 images per pass: plans are made for at most 1024"),
    ],
)
def test_numbers_beyond_reason_are_refused(beyond, error, make_config):
    with pytest.raises(ConfigError, match=error):
        planned(make_config("nowhere", {"train": {"batch_size": 4096}}), **{"gpus": 1024} | beyond)


def test_rows_of_the_table_add_up(plans):
    lines = [line.rsplit(maxsplit=2) for line in table(plans).split("\n\n")[0].splitlines()[1:]]
    total = next(i for i, line in enumerate(lines) if line[0].strip() == "all tensors")
    for column in (1, 2):
        assert sum(float(line[column]) for line in lines[:total]) == pytest.approx(float(lines[total][column]), abs=0.5)
    assert lines[-1][0].strip() == "fits in 1 GiB"
    assert lines[-1][1:] == ["NO", "NO"]


@pytest.mark.parametrize("name", ["focal", "equalized_quality_focal"])
def test_work_of_the_loss_grows_with_its_rows(name):
    loss = CLASSIFICATION_LOSSES[name](1000)
    once, twice = (kernels.loss_work(loss, num_rows=rows, dtype=torch.float32) for rows in (10_000, 20_000))
    assert twice.kernels == pytest.approx(2 * once.kernels)
    chunks = 10_000 * 1000 * 10 / CHUNK  # ten temporaries share a chunk
    assert 20 < once.kernels / chunks < 60
    entries = 10_000 * 1000 * 4
    assert 20 < once.traffic / entries < 150  # each operator reads and writes entries, at least once
    half = kernels.loss_work(loss, num_rows=10_000, dtype=torch.bfloat16)
    assert half.kernels > 1.3 * once.kernels, "half types go over the logits once more in backward"
