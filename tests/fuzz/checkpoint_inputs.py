"""Checkpoints of training runs."""

import copy
import io
import math
import os
import pickle
import random
import tempfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Case, refused, run_tool
from mutations import NUMBERS, OTHERS, Zeros, changed, damaged, zipped
from specimens import settings, write_dataset
from torch import Tensor

from longshot.detector.build import build_run
from longshot.detector.build_data import build_data
from longshot.detector.checkpoint.file import load_checkpoint, network_weights, save_checkpoint
from longshot.detector.config.schema import parse_config
from longshot.detector.conversion.exporting import export_checkpoint
from longshot.detector.inference import load_model, predict
from longshot.detector.run.folder import FORMAT
from longshot.detector.run.initial_weights import start_from
from longshot.detector.run.resume import restore, state_to_resume
from longshot.detector.system.distributed import Process
from longshot.detector.training.state import Run
from longshot.tools import predict as predict_tool

OPTIONS = frozenset({"--resume", "checkpoint to resume"})
HERE = Process(0, 1, torch.device("cpu"))


class Checkpoints:
    """Checkpoints, as all tools read them."""

    inputs = 160

    def __init__(self, folder: Path):
        write_dataset(folder)
        self.path, self.image = folder / "step_00000001.pt", folder / "3.png"
        self.config = parse_config(settings(folder))
        self.data = build_data(self.config, HERE)
        self.run = build_run(self.config, self.data.classes, HERE, num_images=3)
        state = {
            "format": FORMAT,
            "config": self.config.model_dump(mode="json"),
            "classes": self.data.classes._asdict(),
        }
        self.content = state | copy.deepcopy(self.run.state_dict()) | {"step": 1}
        with tempfile.TemporaryDirectory() as home:
            save_checkpoint(Path(home) / "good.pt", self.content)
            self.bytes = (Path(home) / "good.pt").read_bytes()

    def case(self, number: int, rng: random.Random) -> Case:
        """The named ones first, then random ones."""
        reader = [self.load, self.use, self.start, self.resume, self.export, self.draw][number % 6]
        if number < len(NAMED):
            what, make, reader_name, check = NAMED[number]
            self.path.write_bytes(make(self))
            return Case(
                f"{what} ({reader_name})", self.path, getattr(self, reader_name), check or self.is_specimen, OPTIONS
            )
        kind = rng.random()
        if kind < 0.35:
            what, content = damaged(self.bytes, rng)
            self.path.write_bytes(content)
            return Case(f"{what} ({reader.__name__})", self.path, reader, self.is_specimen)
        if kind < 0.5:
            what, content = damaged(saved({"model": {"a": torch.arange(6.0)}, "b": [1, "x"]}), rng)
            self.path.write_bytes(content)
            return Case(f"{what}, without checksum", self.path, self.load, lambda _: None)
        what, self.expected = changed(self.content, rng, odd_value)
        self.path.unlink(missing_ok=True)
        try:
            save_checkpoint(self.path, self.expected)
        except (RuntimeError, TypeError, UnicodeEncodeError):  # torch cannot write that either
            self.path.write_bytes(pickle.dumps(str(what)))
        return Case(f"{what} ({reader.__name__})", self.path, reader, self.is_expected, OPTIONS)

    def load(self) -> dict:
        """The content alone."""
        return load_checkpoint(self.path)

    def use(self) -> dict:
        """A model, and its detections."""
        model = load_model(self.path)
        (found,) = predict(model, [self.image])
        assert len(found.boxes) == len(found.class_names) <= 10**6, "detections"
        return {"used": model.network.state_dict()}

    def start(self) -> dict:
        """The weights for another run."""
        run = self._fresh()
        start_from(run, self.path, self.data.classes)
        return {"used": run.network.state_dict()}

    def resume(self) -> dict:
        """All of it, to go on."""
        run, state = self._fresh(), state_to_resume(self.path.parent / "run", str(self.path))
        restore(run, state, self.data, self.config)
        return {"model": run.network.state_dict()}

    def export(self) -> dict:
        """The weights as a state dict."""
        with tempfile.TemporaryDirectory() as home:
            done = export_checkpoint(self.path, Path(home) / "out.pth")
            return {"used": load_checkpoint(*done.written)}

    def draw(self) -> dict:
        """tools/predict.py."""
        with tempfile.TemporaryDirectory() as home:
            told = run_tool(predict_tool.main, "--checkpoint", self.path, "--out", home, self.image)
        assert "detections in 1 images" in told, told
        return {}

    def is_specimen(self, found: dict) -> None:
        """What the checksum vouches for."""
        self.expected = self.content
        self.is_expected(found)

    def is_expected(self, found: dict) -> None:
        """What was written."""
        wanted = self.expected
        if "used" in found:
            wanted, found = network_weights(wanted), found["used"]
        elif found.keys() != wanted.keys():
            wanted = {key: wanted[key] for key in found}
        assert equal(found, wanted), "something else than was written"

    def _fresh(self) -> Run:
        return copy.deepcopy(self.run)


def equal(one: Any, other: Any) -> bool:
    """Whether two contents are the same, bit for bit; NaN is NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(7.0), other.to(one.dtype).nan_to_num(7.0))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other or (one != one and other != other)


def odd_value(rng: random.Random) -> Any:
    """A value that a checkpoint can hold, in a place where it does not belong."""
    tensors = [
        torch.zeros(0), torch.tensor(1.0), torch.full((8,), math.nan), torch.ones(8, dtype=torch.float64), torch.zeros(3, 3),
        torch.ones(8, dtype=torch.bool), torch.zeros(1).expand(10**9), torch.zeros(1).expand(10**6, 10**6),
        torch.ones(8, dtype=torch.complex64), torch.eye(3).to_sparse(), torch.zeros(8, device="meta"),
        torch.ones(8, dtype=torch.uint8), torch.nn.Parameter(torch.ones(8)),
    ]  # fmt: skip
    return rng.choice(rng.choice([NUMBERS, OTHERS, tensors]))


def saved(content: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


class _Call:
    """Unpickling it calls a function, as real attacks do."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _running(function: Callable, *arguments: Any) -> Callable[[Checkpoints], bytes]:
    return lambda inputs: saved(inputs.content | {"evil": _Call(function, *arguments)})


def _beyond_storage(inputs: Checkpoints) -> bytes:
    """A tensor that says it is larger than its content: 4,000,000 x 4,000,000 of 6 numbers."""
    call = _Call(
        torch._utils._rebuild_tensor_v2,
        torch.zeros(6).untyped_storage(),
        0,
        (4 * 10**6,) * 2,
        (4 * 10**6, 1),
        False,
        OrderedDict(),
    )
    return saved({"model": {"a": call}})


def _bomb(inputs: Checkpoints) -> bytes:
    """A tensor of 1.5 GiB, deflated."""
    with zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(3)}))) as archive:
        entries: dict[str, bytes | Zeros] = {entry: archive.read(entry) for entry in archive.namelist()}
    content = next(name for name in entries if name.endswith("data/0"))
    entries[next(name for name in entries if name.endswith("data.pkl"))] = _pickle_of_size(1536 * 2**18)
    return zipped(entries | {content: Zeros(b"", 1536)})


def _pickle_of_size(number: int) -> bytes:
    """The pickle of {"a": a tensor of so many float32}, as torch.save writes it."""
    out = io.BytesIO()
    torch.save({"a": torch.zeros(0x010203)}, out)
    with zipfile.ZipFile(out) as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    return content.replace(b"J\x03\x02\x01\x00", b"J" + number.to_bytes(4, "little"))


def _with(**content: Any) -> Callable[[Checkpoints], bytes]:
    return lambda inputs: saved(inputs.content | content)


def _wide(inputs: Checkpoints) -> bytes:
    config = copy.deepcopy(inputs.content["config"])
    config["model"]["fpn"]["channels"] = config["model"]["head"]["width"] = 4000
    return saved(inputs.content | {"config": config})


def _many_classes(inputs: Checkpoints) -> bytes:
    number = 10**5
    classes = {
        "ids": list(range(number)),
        "names": ["x"] * number,
        "frequencies": ["f"] * number,
        "train_images": [1] * number,
    }
    return saved(inputs.content | {"classes": classes})


# What was done, the file, who reads it, and what may be made of it; None: the specimen.
NAMED: list[tuple[str, Callable[[Checkpoints], bytes], str, Callable | None]] = [
    *(("untouched", lambda inputs: inputs.bytes, reader, None) for reader in ("load", "use", "start", "resume", "export")),
    ("a call of os.system", _running(os.system, "echo"), "load", refused("a call of os.system")),
    ("a call of eval", _running(eval, "1"), "use", refused("a call of eval")),
    ("a call of getattr", _running(getattr, "x", "upper"), "start", refused("a call of getattr")),
    ("a Counter", _with(step=Counter("ab")), "load", lambda _: None),
    ("a Path", _with(step=Path("a")), "load", refused("a Path")),
    ("a whole module", lambda inputs: saved(torch.nn.Linear(2, 2)), "load", refused("a module")),
    ("a plain pickle", lambda inputs: pickle.dumps({"model": {}}), "load", lambda _: None),
    ("a plain pickle that runs code", lambda inputs: pickle.dumps(_Call(os.system, "echo")), "load", refused("a call")),
    ("the format of old", lambda inputs: saved(inputs.content, _use_new_zipfile_serialization=False), "load", None),
    ("1.5 GiB of zeros in 1.6 MB", _bomb, "load", refused("a bomb")),
    ("a tensor beyond its content", _beyond_storage, "load", refused("memory of others")),
    ("a list", lambda inputs: saved([inputs.content]), "load", refused("a list")),
    ("a tensor", lambda inputs: saved(torch.zeros(3)), "use", refused("a tensor")),
    ("nothing inside", lambda inputs: saved({}), "use", refused("nothing")),
    ("nothing inside", lambda inputs: saved({}), "start", refused("nothing")),
    ("nothing inside", lambda inputs: saved({}), "resume", refused("nothing")),
    ("nothing inside", lambda inputs: saved({}), "export", refused("nothing")),
    ("no weights", _with(model={}), "use", refused("no weights")),
    ("no weights", _with(model={}), "start", refused("no weights")),
    ("a model of 4,000 channels", _wide, "use", refused("another model")),
    ("a hundred thousand classes", _many_classes, "use", refused("another model")),
    ("a step of 10^400", _with(step=10**400), "load", lambda _: None),
    ("lists within themselves", lambda inputs: _recursive(), "load", lambda _: None),
    ("lists 10,000 deep", lambda inputs: b"\x80\x02" + b"]" * 10**4 + b"a" * (10**4 - 1) + b".", "load", refused("lists")),
]  # fmt: skip


def _recursive() -> bytes:
    loop: list = []
    loop.append(loop)
    return saved({"a": loop})
