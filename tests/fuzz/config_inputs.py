"""Configuration files and overrides, as far as the first training batch."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from harness import Case, refused, run_tool
from mutations import NUMBERS, OTHERS, changed, damaged, replaced
from specimens import settings, write_dataset

from longshot.detector.build import build_evaluation, build_run, build_schedule
from longshot.detector.build_data import build_data, build_training_loader, images_per_pass
from longshot.detector.config.schema import Config, load_config
from longshot.detector.system.distributed import Process
from longshot.tools import show_dataset

KEYS = frozenset(f"{key}{after}" for key in Config.model_fields for after in ".: ") | {
    "cannot read the annotation file"
}
HERE = Process(0, 1, torch.device("cpu"))


class Texts:
    """Whole files: their YAML, and the values in it."""

    inputs = 130

    def __init__(self, folder: Path):
        write_dataset(folder)
        self.folder, self.path, self.good = folder, folder / "mine.yaml", settings(folder)
        (folder / "base.yaml").write_text(yaml.safe_dump(self.good), encoding="utf-8")

    def case(self, number: int, rng: random.Random) -> Case:
        """The named ones first, then random ones."""
        check = self.says_what_it_should
        if number < len(NAMED):
            what, make, check = NAMED[number]
            content, check = make(self), check or self.says_what_it_should
        elif rng.random() < 0.4:
            what, content = damaged(yaml.safe_dump(self.good, allow_unicode=True).encode(), rng)
        else:
            what, tree = changed(self.good, rng, odd_value)
            content = yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass")
        self.path.write_bytes(content)
        if number % 20 == 19:
            return Case(f"{what} (show_dataset)", self.path, self.show, lambda _: None, KEYS)
        return Case(what, self.path, lambda: (content, built(load_config(self.path))), check, KEYS)

    def show(self) -> str:
        """What tools/show_dataset.py prints."""
        out = self.folder.parent / "out"
        try:
            return run_tool(show_dataset.main, "--config", self.path, "--out", out, "--count", 1)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def says_what_it_should(self, result: tuple[bytes, Config]) -> None:
        """Every value of the file."""
        content, config = result
        values = yaml.safe_load(content.decode("utf-8-sig"))
        base = values.pop("base", None)
        if base is None:
            assert_holds(values, config.model_dump(mode="json"))


class Overrides(Texts):
    """section.key=value: the whole range of values for each key."""

    inputs = 220

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.keys = sorted(_leaves(Config().model_dump(mode="json")) | _leaves(self.good) | _EXTRA.keys())

    def case(self, number: int, rng: random.Random) -> Case:
        """Absurd values of each number in turn, then anything."""
        key = self.keys[number % len(self.keys)]
        value = self._value(key, rng)
        overrides = [f"{key}={_as_yaml(_EXTRA[key](value) if key in _EXTRA else value)}"]
        if key.startswith("data.generate"):
            overrides += [
                f"data.{split}.{part}=null" for split in ("train", "val") for part in ("annotations", "images")
            ]
            overrides += [
                f"data.generate.{option}" for option in _DRAWING if not key.endswith(option.partition("=")[0])
            ]
            overrides += [f"data.generate.folder={self.folder.parent / 'drawn'}"]
        shutil.copy(self.folder / "base.yaml", self.path)
        return Case(
            " ".join(overrides)[:200], self.path, lambda: self.load(overrides), lambda _: None, KEYS | {str(value)}
        )

    def _value(self, key: str, rng: random.Random) -> Any:
        """Absurd or only odd, of the type that the key has, or of any."""
        default = Config().model_dump(mode="json") | self.good
        for part in key.split("."):
            default = default.get(part) if isinstance(default, dict) else None
        like = rng.random()
        if like < 0.1:
            return rng.choice(OTHERS)
        if isinstance(default, bool) and like < 0.9:
            return rng.choice([True, False])
        if isinstance(default, str) and like < 0.9:
            return rng.choice(_WORDS)
        value = rng.choice(PLAUSIBLE if like < 0.5 else ABSURD)
        return [value] if isinstance(default, list) and like < 0.9 and not isinstance(value, list) else value

    def load(self, overrides: list[str]) -> Config:
        """The configuration, and what is built of it."""
        drawn = self.folder.parent / "drawn"
        try:
            config = load_config(self.path, overrides)
            numbers = [value for value in _numbers(config.model_dump(mode="json")) if not math.isfinite(value)]
            assert not numbers, "a number that is not finite"
            drawing = config.data.generate
            return config if drawing and drawing.train_images > 100 else built(config)  # a million takes its time
        finally:
            shutil.rmtree(drawn, ignore_errors=True)


ABSURD = [value for value in NUMBERS if value not in (1, 0.5)] + [
    10**6,
    10**9,
    [10**9, 10**9],
    [10**6] * 3,
    [1e-300],
    [0.0],
]
PLAUSIBLE = [1, 2, 3, 5, 7, 64, 100, 1000, 0.1, 0.5, 0.999, 1.0, 1.5, 1e-3, 1e-6, 30.0, [1, 2], [0.5, 1.0], [64, 96]]
_WORDS = ["", "gn", "bn", "frozen_bn", "sync_bn", "none", "iou", "centerness", "distances", "distribution", "cosine",
          "multi_step", "epochs", "steps", "random", "class_aware", "instance_balanced", "lvis", "coco", "bf16", "fp16",
          "adamw", "focal", "giou", "l1", "seesaw", "quality_focal", "equalization", "center_sampling", "atss", "legacy",
          "torchvision", "resnet18", "p5", "c5_lateral", "quality", "score", "skip", "stochastic", "cuda", "/", ".", "APr",
          "x" * 5000, "a\0b"]  # fmt: skip
_DRAWING = ["train_images=12", "val_images=2", "categories=10", "image_size=32", "max_objects=2"]
# Keys whose section is not there by default: the section that an odd value is put into.
_EXTRA: dict[str, Callable[[Any], Any]] = {
    "data.mosaic": lambda value: {"size": value},
    "data.large_scale_jitter": lambda value: {"size": [64, 64], "max_scale": value},
    "data.large_scale_jitter.size": lambda value: value,
    "data.crop": lambda value: {"min_side": value, "probability": 1.0},
    "data.color_jitter": lambda value: {"hue": value},
    "data.mixup": lambda value: {"alpha": value, "probability": 1.0},
    "data.generate.train_images": lambda value: value,
    "data.generate.image_size": lambda value: value,
    "data.generate.max_objects": lambda value: value,
    "data.generate.count_scale": lambda value: value,
    "loss.box": lambda value: {"name": "smooth_l1", "beta": value},
    "loss.classification": lambda value: {"name": "seesaw", "p": value},
    "matching.matcher": lambda value: {"name": "center_sampling", "radius": value},
    "model.head.box": lambda value: value,
    "model.backbone.weights": lambda value: value,
    "init_from": lambda value: value,
}


def built(config: Config) -> Config:
    """The configuration, after everything has been built that training needs before its first step."""
    images_per_pass(config, HERE)
    data = build_data(config, HERE)
    build_evaluation(config, data.val, data.classes, HERE)
    run = build_run(config, data.classes, HERE, num_images=len(data.train))
    schedule = build_schedule(config, data.stream)
    rates = [schedule.learning_rate(step) for step in (0, schedule.total_steps // 2, schedule.total_steps - 1)]
    assert np.isfinite(rates).all(), f"learning rates {rates}"
    loader = build_training_loader(config, data, HERE, first=0, total=schedule.total_steps)
    if config.data.workers == 0 and config.train.batch_size <= 16:
        batch = next(iter(loader))
        pixels = run.network.preprocess(batch.images[:1], batch.padded_sizes[0])
        if pixels.numel() < 10**6:
            assert all(torch.isfinite(level).all() for level in run.network.anchors(tuple(pixels.shape[-2:]))), (
                "anchors"
            )
    return config


def odd_value(rng: random.Random) -> Any:
    """Anything that YAML can hold."""
    return rng.choice(rng.choice([NUMBERS, PLAUSIBLE, _WORDS, [v for v in OTHERS if v != "\ud800"]]))


def assert_holds(values: Any, config: Any, at: str = "") -> None:
    """Raise AssertionError unless the configuration has the values."""
    if isinstance(config, dict):
        assert isinstance(values, dict), f"{at}: {values!r} became {config!r}"
        unknown = values.keys() - config.keys()
        assert not unknown, f"{at}: {unknown} went unnoticed"
        for key, value in config.items():
            if values.get(key) is not None or (key in values and value is not None):
                assert_holds(values[key], value, f"{at}.{key}")
    elif isinstance(values, list):
        assert len(values) == len(config), f"{at}: {values!r} became {config!r}"
        for one, other in zip(values, config, strict=True):
            assert_holds(one, other, at)
    elif isinstance(values, str) and not isinstance(config, str):
        assert float(values) == config, f"{at}: {values!r} became {config!r}"  # 1e-4, which YAML 1.1 takes for text
    elif (at, values) != (".output", ""):  # which is none
        same = float(values) == config if isinstance(config, float) else values == config
        assert same, f"{at}: {values!r} became {config!r}"
        assert isinstance(values, bool) == isinstance(config, bool), f"{at}: {values!r} became {config!r}"


def _leaves(values: dict, at: str = "") -> set[str]:
    nested = [_leaves(v, f"{at}{k}.") if isinstance(v, dict) else {f"{at}{k}"} for k, v in values.items()]
    return set().union(*nested)


def _numbers(values: Any) -> list[float]:
    if isinstance(values, dict | list):
        return [
            number for value in (values.values() if isinstance(values, dict) else values) for number in _numbers(value)
        ]
    return [values] if isinstance(values, float) else []


def _as_yaml(value: Any) -> str:
    return json.dumps(value).replace("NaN", ".nan").replace("Infinity", ".inf")


def _text(text: str) -> Callable[[Texts], bytes]:
    return lambda texts: text.encode()


def _with(*place: str, value: Any) -> Callable[[Texts], bytes]:
    return lambda texts: yaml.safe_dump(replaced(texts.good, place, value)).encode()


_LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
# What was done, the file, and what may be made of it; None: what it says.
NAMED: list[tuple[str, Callable[[Texts], bytes], Callable | None]] = [
    ("untouched", lambda texts: yaml.safe_dump(texts.good).encode(), None),
    ("as JSON", lambda texts: json.dumps(texts.good).encode(), None),
    ("a base", _text("base: base.yaml\nseed: 3\n"), lambda result: _has_seed(result, 3)),
    ("itself for a base", _text("base: mine.yaml\n"), refused("a circle")),
    ("a folder for a base", _text("base: .\n"), refused("a folder")),
    ("a base with a zero in its name", _text('base: "a\\0b"\n'), refused("an impossible name")),
    ("a base of 5,000 letters", _text(f"base: {'x' * 5000}\n"), refused("an impossible name")),
    ("a list for a base", _text("base: [base.yaml]\n"), refused("a list")),
    ("billion laughs", _text(_LAUGHS), refused("nine to the tenth values")),
    ("a billion laughs in a value", _text(_LAUGHS + "data: {short_sides: *a9}\n"), refused("nine to the tenth values")),
    ("a list within itself", _text("data: &a {short_sides: [*a]}\n"), refused("a circle")),
    ("lists 10,000 deep", _text("seed: " + "[" * 10**4 + "]" * 10**4), refused("lists")),
    ("mappings 10,000 deep", _text("{a: " * 10**4 + "}" * 10**4), refused("mappings")),
    ("a hundred thousand [", _text("[" * 10**5), refused("no YAML")),
    ("a key twice", _text("seed: 1\nseed: 2\n"), refused("a key twice")),
    ("a number of 5,000 digits", _text(f"seed: {'1' * 5000}\n"), refused("an absurd seed")),
    ("a number of 131,072 digits and a letter", _text(f"seed: {'9' * 2**17}x\n"), refused("an absurd seed")),
    ("a milestone of NaN", _with("schedule", "milestones", value=[math.nan]), refused("NaN")),
    ("an option of a loss of NaN", _with("loss", "classification", "scale", value=math.nan), refused("NaN")),
    ("a date that is none", _text("output: 2001-99-99\n"), refused("an impossible date")),
    ("a date", _text("output: 2001-01-01\n"), lambda _: None),
    ("bytes", _text("output: !!binary aGVsbG8=\n"), lambda _: None),
    ("bytes that are none", _text("output: !!binary ä\n"), refused("no bytes")),
    ("a call of Python", _text("output: !!python/object/apply:os.system [echo]\n"), refused("a call")),
    ("a set", _text("data: !!set {a, b}\n"), refused("a set")),
    ("merged mappings", _text("base: base.yaml\ntrain: {<<: {log_every: 3}}\n"), lambda _: None),
    ("two documents", _text("seed: 1\n---\nseed: 2\n"), refused("two documents")),
    ("a key that is no text", _text("1: 2\n"), refused("a number for a key")),
    ("a key that is a list", _text("? [a, b]\n: 2\n"), refused("a list for a key")),
    ("ten thousand unknown keys", _text("".join(f"k{i}: {i}\n" for i in range(10**4))), refused("unknown keys")),
    ("a value of 128 kB", _with("device", value="x" * 2**17), refused("no device")),
    ("a key of 128 kB", _text(f"? {'k' * 2**17}\n: 1\n"), refused("an unknown key")),
    ("a name of 128 kB", _with("loss", "box", "name", value="x" * 2**17), refused("no such loss")),
    ("10^12 images in a batch", _with("train", "batch_size", value=10**12), refused("an absurd batch")),
    ("2^31 images in a batch", _with("train", "batch_size", value=2**31), refused("an absurd batch")),
    ("10^12 images in a pass", _with("train", "images_per_pass", value=10**12), refused("an absurd batch")),
    ("10^9 channels", _with("model", "fpn", "channels", value=10**9), refused("absurd channels")),
    ("10^9 channels in the head", _with("model", "head", "width", value=10**9), refused("absurd channels")),
    ("10^9 convolutions", _with("model", "head", "num_convs", value=10**9), refused("an absurd depth")),
    ("10^6 levels", _with("model", "fpn", "levels", value=10**6), refused("absurd levels")),
    ("10^6 workers", _with("data", "workers", value=10**6), refused("absurd workers")),
    ("padding to 10^9", _with("data", "pad_multiple", value=10**9), refused("absurd padding")),
    ("images of 10^9", lambda texts: _large_images(texts), refused("absurd images")),
    ("a thousand scales", _with("model", "anchors", "scales", value=[1.0] * 1000), refused("absurd anchors")),
    ("a mosaic of 10^9", _with("data", "mosaic", value={"size": [10**9, 10**9]}), refused("an absurd mosaic")),
    ("10^9 bins", _with("model", "head", value={"box": "distribution", "bins": 10**9}), refused("absurd bins")),
    ("10^12 drawn images", lambda texts: _drawing(texts, train_images=10**12), refused("absurd drawing")),
    ("drawn images of 10^9", lambda texts: _drawing(texts, image_size=10**9), refused("absurd drawing")),
    ("a million epochs of 10^300", _with("schedule", "length", value=1e300), refused("an absurd length")),
    ("a repeat factor to the power 300", _with("data", "sampler", "power", value=300.0), refused("an absurd power")),
    ("a seed of 10^400", _with("seed", value=10**400), refused("an absurd seed")),
]  # fmt: skip


def _large_images(texts: Texts) -> bytes:
    tree = replaced(texts.good, ("data", "short_sides"), [10**9])
    return yaml.safe_dump(replaced(tree, ("data", "long_side"), 10**9)).encode()


def _drawing(texts: Texts, **options: Any) -> bytes:
    tree = replaced(texts.good, ("data", "generate"), {"folder": str(texts.folder / "drawn"), **options})
    del tree["data"]["train"], tree["data"]["val"]
    return yaml.safe_dump(tree).encode()


def _has_seed(result: tuple[bytes, Config], seed: int) -> None:
    assert result[1].seed == seed, result[1].seed
