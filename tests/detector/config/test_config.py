import pytest

from longshot.datasets.images.augmentation import AUGMENTATIONS
from longshot.detector.config.schema import load_config, parse_config
from longshot.detector.errors import ConfigError
from longshot.losses import CLASSIFICATION_LOSSES

EFL = {"loss": {"classification": {"name": "equalized_focal", "scale": 4}}}


def test_defaults_fill_what_the_file_leaves_out():
    config = parse_config(EFL)
    options = config.loss.classification.options()
    assert (options["alpha"], options["gamma"], options["scale"]) == (0.25, 2.0, 4.0)
    assert config.matching.matcher.name == "iou"


def test_the_run_folder_is_named_after_the_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 3")
    assert load_config(tmp_path / "mine.yaml").output == "runs/mine"
    assert load_config(tmp_path / "mine.yaml", ["output=elsewhere"]).output == "elsewhere"


def test_a_dumped_configuration_parses_to_itself():
    config = parse_config({**EFL, "data": {"short_sides": [640, 800]}})
    assert parse_config(config.model_dump(mode="json")) == config


def test_the_other_way_to_say_something_takes_the_place_of_the_default():
    config = parse_config({"optimizer": {"lr_per_image": 1e-3}, "schedule": {"warmup_epochs": 1}})
    assert (config.optimizer.lr, config.schedule.warmup_steps) == (None, None)
    assert config.optimizer.learning_rate(16) == pytest.approx(0.016)
    assert parse_config(config.model_dump(mode="json")) == config
    changed = {"optimizer": {"lr_per_image": None, "lr": 0.02}, "schedule": {"warmup_epochs": None, "warmup_steps": 3}}
    config = parse_config(changed)
    assert (config.optimizer.learning_rate(16), config.schedule.warmup_steps) == (0.02, 3)
    assert parse_config(config.model_dump(mode="json")) == config


def test_augmentations_are_off_unless_named():
    names = set(AUGMENTATIONS)
    assert len(names) == 5
    assert all(getattr(parse_config({}).data, name) is None for name in names)
    data = parse_config({"data": {"crop": {}, "mosaic": {"size": [64, 96]}}}).data
    assert data.crop.options() == {"probability": 0.5, "min_side": 0.5}
    assert data.mosaic.size == (64, 96)
    assert data.mixup is None


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse_config({}).seed = 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimiser": {}}, "optimiser: unknown key; did you mean 'optimizer'?"),
        ({"optimizer": {"lrr": 1.0}}, "optimizer.lrr: unknown key; did you mean 'lr'?"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr: Input should be a valid number, found 'fast'"),
        ({"optimizer": {"lr": -1}}, "optimizer.lr: Input should be greater than 0, found -1"),
        ({"optimizer": {"name": "sdg"}}, "optimizer.name: unknown value 'sdg'; did you mean 'sgd'?"),
        ({"optimizer": 3}, "optimizer: Input should be an object, found 3"),
        ({"seed": True}, "seed: Input should be a valid integer, found True"),
        ({"seed": 1.5}, "seed: Input should be a valid integer, found 1.5"),
        ({"data": {"short_sides": 3}}, "data.short_sides: Input should be a valid array, found 3"),
        ({"data": {"short_sides": [640, "x"]}}, "data.short_sides[1]: Input should be a valid integer, found 'x'"),
        ({"data": {"train": {"image": "x"}}}, "data.train.image: unknown key; did you mean 'images'?"),
        ({"data": {"generate": {}}}, "data.generate.folder: required, but missing"),
        ({"data": {"mosaic": {}}}, "data.mosaic.size: required, but missing"),
        ({"data": {"mosaic": {"size": [800]}}}, "data.mosaic.size[1]: required, but missing"),
        ({"data": {"color_jitter": {"hues": 0.1}}}, "data.color_jitter.hues: unknown key; did you mean 'hue'?"),
        ({"data": {"mix_up": {}}}, "data.mix_up: unknown key; did you mean 'mixup'?"),
        (
            {"loss": {"classification": {"name": "equalised_focal"}}},
            "loss.classification.name: unknown choice 'equalised_focal'; did you mean 'equalized_focal'?",
        ),
        ({"loss": {"classification": {"alpha": 0.1}}}, f"loss.classification: needs a `name`; known: {', '.join(CLASSIFICATION_LOSSES)}"),
        (
            {"loss": {"classification": {"name": "focal", "scale": 8.0}}},
            "loss.classification.scale: unknown key; known: alpha, gamma, name, weight",
        ),
        ({"loss": {"classification": {"name": "focal", "num_classes": 3}}}, "loss.classification.num_classes: unknown key"),
        ({"matching": {"matcher": {"name": "atss", "candidate": 3}}}, "did you mean 'candidates'?"),
        ({"schedule": {"length": 12, "milestones": [8, 20]}}, "schedule: milestones [8.0, 20.0] must rise between 0 and length 12"),
        ({"schedule": {"milestones": [11, 8]}}, "schedule: milestones [11.0, 8.0] must rise between 0 and length 12"),
        ({"data": {"generate": {"folder": "x"}, "val": {"images": "y"}}}, "data: `generate` draws a dataset in place of train"),
        ({"optimizer": {"lr": 0.01, "lr_per_image": 1e-3}}, "optimizer: lr and lr_per_image are both set; set one of them to null"),
        ({"optimizer": {"lr": None}}, "optimizer: needs lr or lr_per_image; both are null"),
        ({"schedule": {"warmup_steps": 5, "warmup_epochs": 1}}, "schedule: warmup_steps and warmup_epochs are both set; set one"),
        ({"data": {"rare": 5, "common": 4}}, "data: rare 5 must not exceed common 4"),
        ({"model": {"weights": "a.pt"}}, "model.weights: unknown key"),
        ({"model": {"anchors": {"ratios": [0]}}}, "model.anchors.ratios[0]: Input should be greater than or equal to 0.001, found 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_path_and_a_suggestion(values, message):
    with pytest.raises(ConfigError) as error:
        parse_config(values, where="x.yaml")
    assert str(error.value).startswith("x.yaml: ")
    assert message in str(error.value)


def test_every_mistake_is_told_at_once():
    with pytest.raises(ConfigError) as error:
        parse_config({"sead": 1, "optimizer": {"lr": 0, "clip": 1}})
    assert len(str(error.value).split("\n")) == 3
