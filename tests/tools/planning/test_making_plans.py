import pytest

from longshot.detector.errors import ConfigError
from longshot.tools.planning.plan import largest_image, make_plan
from longshot.tools.planning.table import table, warnings


def planned(config, **options):
    return make_plan(
        config,
        **{"gpus": 2, "num_classes": 20, "image_size": (60, 90), "precision": "fp32", "gpu_memory": 2**30} | options,
    )


@pytest.fixture(scope="module")
def plans(make_config):
    return [planned(make_config(), precision=precision) for precision in ("fp32", "bf16")]


def test_batch_is_divided_as_in_training(make_config):
    config = make_config("nowhere", {"train": {"batch_size": 12, "images_per_pass": 3}})
    made = planned(config)
    assert (made.num_images, made.passes) == (3, 2)
    assert planned(config, gpus=4).passes == 1
    with pytest.raises(ConfigError, match="not divisible by 5 processes"):
        planned(config, gpus=5)


def test_one_gpu_sends_nothing_and_keeps_no_buckets(make_config):
    made = planned(make_config(), gpus=1)
    assert made.collectives == []
    assert made.simulated.peak["DDP's buckets"] == 0


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
    fits = next(line for line in lines if line[0].strip() == "fits in 1 GiB")
    assert fits[1:] == ["NO", "NO"]
