"""The files in configs/: each is valid, says what it stands for, and trains."""

import csv
import math
import re
from pathlib import Path

import pytest
import torch

from longshot.datasets.loading.samplers import TrainingStream
from longshot.detector.build import build_network, build_postprocess, build_run, build_schedule
from longshot.detector.build_data import build_data, build_training_loader
from longshot.detector.config.schema import load_config
from longshot.detector.model.postprocess import detect
from longshot.detector.training.step import optimize

ROOT = Path(__file__).resolve().parents[3]
FILES = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "configs").rglob("*.yaml"))]
SMALL = [  # a trunk, pyramid, towers and images that take milliseconds
    "data.generate=null", "data.short_sides=[48, 64]", "data.test_short_side=64", "data.long_side=96", "data.workers=0",
    "model.backbone.name=thin", "model.backbone.weights=null", "model.backbone.norm=gn", "model.backbone.frozen_stages=0",
    "model.fpn.channels=32", "model.head.width=32", "model.head.num_convs=1",
    "train.batch_size=2", "train.images_per_pass=1",
]  # fmt: skip


def _small(file, shapes):
    splits = [
        f"data.{split}.{key}={value}"
        for split, annotations in (("train", shapes.train), ("val", shapes.val))
        for key, value in (("annotations", annotations), ("images", shapes.folder))
    ]
    return load_config(ROOT / file, [*SMALL, *splits])


def test_there_are_files():
    assert len(FILES) > 30


@pytest.mark.parametrize("file", FILES)
def test_every_file_says_how_to_run_it_and_what_came_of_it(file):
    comment = " ".join(
        line.removeprefix("#").strip() for line in (ROOT / file).read_text().split("\n") if line[:1] == "#"
    )
    if "not to be run by itself" in comment:
        return
    assert re.match(rf"(python|torchrun --nproc-per-node \d+) tools/train\.py --config {file}\b", comment), comment
    assert "Hardware: " in comment
    told = comment.count("not measured here") == 2 or "Measured: " in comment  # hours and result
    assert told or "hours: about" in comment  # for the user's own data


@pytest.mark.parametrize("file", FILES)
def test_every_file_trains_and_detects(file, shapes, cpu):
    config = _small(file, shapes)
    data = build_data(config, cpu)
    run = build_run(config, data.classes, cpu, num_images=24)
    (batch,) = build_training_loader(config, data, cpu, first=0, total=1)
    before = [parameter.clone() for parameter in run.network.parameters()]
    numbers = optimize(
        run, run.network.train(), batch, cpu, images_per_pass=1, precision="fp32", clip_norm=config.optimizer.clip_norm
    )
    assert all(math.isfinite(number) for number in numbers.values())
    branches = {"quality": config.model.head.quality != "none", "distribution": config.model.head.box == "distribution"}
    assert {name: name in numbers for name in branches} == branches
    assert any(not torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True))
    (found,) = detect(run.network.eval(), batch.images[:1], batch.padded_sizes[0], build_postprocess(config))
    assert len(found.scores) <= config.test.detections_per_image


@pytest.mark.parametrize("trunk", ["r50", "r101"])
def test_the_improved_baseline_has_the_parameters_of_the_published_models(trunk):
    # Of United-Perception (52aaeb9), made from its module classes: name, shape, whether it is trained.
    with (ROOT / f"tests/fixtures/state_dict_layout_{trunk}.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "param"]
    theirs = sorted((row["shape"], row["trainable"] == "True") for row in rows)
    config = load_config(ROOT / f"configs/lvis/baseline_{trunk}_efl_2x.yaml")
    with torch.device("meta"):
        network = build_network(config.model, 1203, pretrained=False)
    ours = sorted(("x".join(map(str, p.shape)), p.requires_grad) for p in network.parameters())
    assert ours == theirs


def test_the_improved_baseline_keeps_the_published_schedule_to_a_few_steps():
    # With every class frequent enough an epoch is 99,388 images: 6,211.75 steps of 16. The official code fills up each epoch
    # to 6,212 steps, 149,088 in all; here the stream of images goes on.
    config = load_config(ROOT / "configs/lvis/baseline_r50_efl_2x.yaml")
    found = build_schedule(config, TrainingStream(99388, batch_size=16, seed=0))
    assert found.total_steps == 149082
    rates = {step: found.learning_rate(step) for step in (0, 6210, 6211, 99387, 99388, 136657, 136658, 149081)}
    expected = [0.02 * 0.001, 0.02 - 0.02 * 0.999 / 6211, 0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002]
    assert list(rates.values()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [0, 1, 2, 4, 12])
def test_an_ablation_of_the_scale_changes_nothing_else(scale):
    whole = load_config(ROOT / "configs/lvis/baseline_r50_efl_2x.yaml").model_dump(exclude={"output"})
    part = load_config(ROOT / f"configs/lvis/ablation_scale_{scale}_r50_2x.yaml").model_dump(exclude={"output"})
    assert whole["loss"]["classification"].pop("scale") == 8
    assert part["loss"]["classification"].pop("scale") == scale
    assert part == whole


@pytest.mark.parametrize(("factor", "off"), [("focusing", "use_weighting"), ("weighting", "use_focusing")])
def test_an_ablation_is_the_paper_s_model_without_one_factor(factor, off):
    whole = load_config(ROOT / "configs/lvis/baseline_r50_efl_2x.yaml").loss.classification.options()
    part = load_config(ROOT / f"configs/lvis/ablation_{factor}_only_r50_2x.yaml").loss.classification.options()
    assert part == {**whole, off: False}
    assert whole[off]
