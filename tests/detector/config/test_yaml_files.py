import pytest

from longshot.detector.config.yaml_files import apply_overrides, differences, merge, read_yaml
from longshot.detector.errors import ConfigError


def write(path, text):
    path.write_text(text)
    return path


def test_exponents_without_a_dot_are_numbers(tmp_path):
    values = read_yaml(write(tmp_path / "a.yaml", "lr: 1e-4\nbig: 2E5\nname: resnet50\nversion: '1e-4'"))
    assert values == {"lr": 1e-4, "big": 2e5, "name": "resnet50", "version": "1e-4"}


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.yaml, line 3: key 'lr' is given twice"):
        read_yaml(write(tmp_path / "a.yaml", "optimizer:\n  lr: 1\n  lr: 2\n"))


def test_a_file_is_merged_over_its_base_which_lies_beside_it(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", "seed: 1\noptimizer: {lr: 1, momentum: 0.9}")
    child = write(tmp_path / "sub" / "child.yaml", "base: ../base.yaml\noptimizer: {lr: 2}")
    assert read_yaml(child) == {"seed": 1, "optimizer": {"lr": 2, "momentum": 0.9}}


def test_a_changed_name_drops_the_options_of_the_old_choice():
    base = {"loss": {"box": {"name": "smooth_l1", "beta": 0.5, "weight": 2.0}}}
    assert merge(base, {"loss": {"box": {"name": "giou"}}}) == {"loss": {"box": {"name": "giou"}}}
    assert merge(base, {"loss": {"box": {"beta": 0.1}}})["loss"]["box"] == {
        "name": "smooth_l1",
        "beta": 0.1,
        "weight": 2.0,
    }


def test_options_that_belong_to_no_choice_survive_a_changed_name():
    base = {"optimizer": {"name": "sgd", "lr": 0.1, "clip_norm": 35.0}}
    assert merge(base, {"optimizer": {"name": "adamw"}})["optimizer"] == {"name": "adamw", "lr": 0.1, "clip_norm": 35.0}


def test_the_order_of_overrides_does_not_matter():
    base = {"loss": {"classification": {"name": "focal", "gamma": 3.0}}}
    overrides = ["loss.classification.scale=4.0", "loss.classification.name=equalized_focal"]
    expected = {"loss": {"classification": {"name": "equalized_focal", "scale": 4.0}}}
    assert apply_overrides(base, overrides) == apply_overrides(base, overrides[::-1]) == expected


def test_a_number_sign_in_an_override_belongs_to_the_value():
    assert apply_overrides({}, ["output=runs/set #1"]) == {"output": "runs/set #1"}


def test_a_base_that_leads_back_is_refused(tmp_path):
    write(tmp_path / "a.yaml", "base: b.yaml")
    with pytest.raises(ConfigError, match="leads back to itself"):
        read_yaml(write(tmp_path / "b.yaml", "base: a.yaml"))


def test_a_missing_base_names_the_file_that_asked_for_it(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml \(the `base:` of .*a\.yaml\): no such file"):
        read_yaml(write(tmp_path / "a.yaml", "base: nowhere.yaml"))


def test_text_that_is_no_yaml_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(write(tmp_path / "a.yaml", "seed: [1, 2"))


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected a mapping of sections, found list"):
        read_yaml(write(tmp_path / "a.yaml", "- 1\n- 2"))


def test_overrides_are_read_as_yaml_and_nest():
    values = apply_overrides({"a": {"b": 1}}, ["a.c=1e-3", "d=[1, 2]", "a.b=null", "e=x=y"])
    assert values == {"a": {"b": None, "c": 1e-3}, "d": [1, 2], "e": "x=y"}


@pytest.mark.parametrize("override", ["lr", "=1", "a..b=1"])
def test_an_override_of_another_form_is_refused(override):
    with pytest.raises(ConfigError, match=r"has the form section\.key=value"):
        apply_overrides({}, [override])


def test_a_key_that_came_later_counts_as_its_default():
    now = {"data": {"antialias": True, "workers": 3}, "loss": {"scale": 8.0}}
    defaults = {"data": {"antialias": True, "workers": 2, "flip": 0.5}}
    assert differences({"loss": {"scale": 8.0}}, now, defaults=defaults) == ["data.workers: 2 -> 3"]
