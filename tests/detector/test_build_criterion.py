"""Every classification loss from YAML into a training step."""

import math

import pytest
import torch

from longshot.datasets.classes import Classes
from longshot.detector.build import build_criterion, build_run
from longshot.detector.build_data import build_data, build_training_loader
from longshot.detector.errors import ConfigError
from longshot.detector.run import lifecycle
from longshot.detector.run.loop import train
from longshot.detector.training.step import optimize
from longshot.losses import CLASSIFICATION_LOSSES


@pytest.fixture
def config_of(make_config):
    """(name and options of a classification loss) -> Config."""

    def config(name, *, keep_empty=True, **options):
        loss = {"classification": {"name": name, **options}}
        return make_config(differences={"loss": loss, "data": {"keep_empty": keep_empty}})

    return config


@pytest.mark.parametrize("name", CLASSIFICATION_LOSSES)
def test_every_loss_takes_a_step_from_its_name_alone(config_of, cpu, name):
    config = config_of(name)
    data = build_data(config, cpu)
    run = build_run(config, data.classes, cpu, num_images=24)
    loss = run.criterion.classification
    assert (type(loss), loss.num_classes) == (CLASSIFICATION_LOSSES[name], 4)
    (batch,) = build_training_loader(config, data, cpu, first=0, total=1)
    before = run.network.head.logits.weight.detach().clone()
    numbers = optimize(run, run.network, batch, cpu, images_per_pass=2, precision="fp32", clip_norm=None)
    assert numbers["classification"] > 0
    assert all(map(math.isfinite, numbers.values()))
    assert not torch.equal(run.network.head.logits.weight, before)
    assert all(state.any() for state in loss.state_dict().values())


def test_losses_of_counts_get_those_of_the_training_set(config_of, cpu):
    classes = Classes([3, 7, 12, 90], list("abcd"), list("ffcr"), [9, 9, 5, 1])
    config = config_of("equalization", threshold=0.3)
    for num_images, expected in ((24, [False, False, True, True]), (10, [False, False, False, True])):
        run = build_run(config, classes, cpu, num_images=num_images)
        assert run.criterion.classification.rare.tolist() == expected
    loss = build_criterion(config_of("class_weighted_focal", weighting="inverse_frequency"), [9, 9, 5, 1], 24)
    # 24 samples, 4 classes: 24 / 4 / n
    assert loss.classification.class_weight.tolist() == pytest.approx([6 / 9, 6 / 9, 6 / 5, 6])


def test_images_without_objects_count_in_frequencies_even_if_they_are_not_trained_on(config_of, cpu, monkeypatch):
    class Stop(Exception):
        pass

    def stop(config, classes, process, *, num_images):
        raise Stop(num_images, classes.train_images)

    monkeypatch.setattr(lifecycle, "build_run", stop)
    config = config_of("equalization", keep_empty=False)
    data = build_data(config, cpu)
    with pytest.raises(Stop) as stopped:
        train(config, cpu)
    assert stopped.value.args == (24, data.classes.train_images)
    assert len(data.train) < 24


def test_options_of_the_losses_are_checked_where_they_are_written(config_of):
    with pytest.raises(ConfigError, match=r"^loss: beta is 1.0; expected at least 0 and below 1"):
        build_criterion(config_of("class_weighted_focal", beta=1.0), [1, 2], 3)
    with pytest.raises(ConfigError, match=r"loss.classification.weighting.*effective_number"):
        config_of("class_weighted_focal", weighting="effective_numbers")
    with pytest.raises(ConfigError, match=r"mitigations: unknown key; did you mean 'mitigation'"):
        config_of("seesaw", mitigations=0.5)
