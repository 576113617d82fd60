"""Files of weights of other projects: .pth, .pkl of numpy arrays, .safetensors."""

import json
import os
import pickle
import random
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoint_inputs import equal, saved
from harness import Case, refused, run_tool
from mutations import NUMBERS, OTHERS, changed, damaged
from safetensors.torch import save
from specimens import write_dataset
from torch import Tensor

from longshot.detector.conversion.foreign_files import ForeignFile, read_foreign
from longshot.detector.conversion.importing import Import, import_checkpoint
from longshot.tools import convert

# The shapes of some tensors of each project's files: what is looked at before the whole network is.
_K, _A = 4, 2  # classes, anchors
_HEAD = {
    "p6": (4, 4, 3, 3),
    "c5": (4, 8, 1, 1),
    "stem": (8, 3, 7, 7),
    "logits": (_A * _K, 4, 3, 3),
    "deltas": (_A * 4, 4, 3, 3),
}
_NAMES = {
    "official": {"p6": "neck.p6_conv", "c5": "neck.c5_lateral", "stem": "backbone.layer0.0",
                 "logits": "roi_head.cls_subnet_pred", "deltas": "roi_head.box_subnet_pred"},
    "torchvision": {"p6": "backbone.fpn.extra_blocks.p6", "c5": "backbone.fpn.inner_blocks.2.0", "stem": "backbone.body.conv1",
                    "logits": "head.classification_head.cls_logits", "deltas": "head.regression_head.bbox_reg"},
    "retinanet": {"p6": "neck.fpn_convs.3.conv", "c5": "neck.lateral_convs.2.conv", "stem": "backbone.conv1",
                  "logits": "bbox_head.retina_cls", "deltas": "bbox_head.retina_reg"},
    "atss": {"p6": "neck.fpn_convs.3.conv", "c5": "neck.lateral_convs.2.conv", "stem": "backbone.conv1",
             "logits": "bbox_head.atss_cls", "deltas": "bbox_head.atss_reg"},
    "detectron2": {"p6": "backbone.top_block.p6", "c5": "backbone.fpn_lateral5", "stem": "backbone.bottom_up.stem.conv1",
                   "logits": "head.cls_score", "deltas": "head.bbox_pred"},
}  # fmt: skip
_MORE: dict[str, dict[str, tuple[int, ...]]] = {
    "official": {"roi_head.iou_pred.weight": (_A, 4, 3, 3)} | {f"post_process.cls_loss.{n}": (_K,) for n in ("pos_grad", "neg_grad", "pos_neg")},
    "torchvision": {"backbone.body.bn1.running_var": (8,), "backbone.body.bn1.weight": (8,)},
    "retinanet": {},
    "atss": {"bbox_head.atss_cls.weight": (_K, 4, 3, 3), "bbox_head.atss_cls.bias": (_K,)}
    | {"bbox_head.atss_reg.weight": (4, 4, 3, 3), "bbox_head.atss_reg.bias": (4,)}
    | {f"bbox_head.scales.{level}.scale": () for level in range(5)} | {"bbox_head.atss_centerness.weight": (1, 4, 3, 3)},
    "detectron2": {"pixel_mean": (3, 1, 1), "pixel_std": (3, 1, 1), "backbone.bottom_up.res2.0.conv3.weight": (1, 1, 1, 1)},
}  # fmt: skip
_BLOCKS = {"official": "backbone.layer{}", "torchvision": "backbone.body.layer{}", "retinanet": "backbone.layer{}",
           "atss": "backbone.layer{}", "detectron2": "backbone.bottom_up.res{}"}  # fmt: skip
_NOTHING = frozenset({"nothing is written"})  # what the tool says below its table of the keys
_WRITERS = {
    ".pth": lambda state: saved({"model": state, "meta": {"mmdet_version": "2.28.2"}}),
    ".pkl": lambda state: pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}, "__author__": "x"}),
    ".safetensors": save,
}


class ForeignFiles:
    """What tools/convert.py import reads."""

    inputs = 160

    def __init__(self, folder: Path):
        self.folder = folder
        self.annotations = write_dataset(folder)

    def case(self, number: int, rng: random.Random) -> Case:
        """The named ones first, then random ones."""
        if number < len(NAMED):
            what, suffix, make, check = NAMED[number]
            path = self._written(suffix, make())
            return Case(f"{what} ({suffix})", path, lambda: read_foreign(path), check)
        suffix = rng.choice(list(_WRITERS))
        state = _specimen(rng.choice(list(_NAMES)))
        if rng.random() < 0.5:
            what, content = damaged(_WRITERS[suffix](state), rng)
            path = self._written(suffix, content)
            exact = suffix == ".pth" and not what.startswith(("bits", "random", "twice", "with"))
            check = (lambda found: _is(found, state)) if exact else _is_foreign_file
            return Case(f"{what} ({suffix})", path, lambda: read_foreign(path), check)
        what, state = changed(state, rng, _odd_tensor)
        path = self._written(suffix, _written_somehow(state, suffix))
        if number % 4 == 3:
            return Case(
                f"{what} ({suffix}, convert)", path, lambda: self.convert(path), refused("half a detector"), _NOTHING
            )
        return Case(f"{what} ({suffix})", path, lambda: self.import_file(path), _writes_nothing)

    def import_file(self, path: Path) -> Any:
        """The conversion; of so few keys nothing is written."""
        with tempfile.TemporaryDirectory() as home:
            return import_checkpoint(path, Path(home) / "out.pt", annotations=self.annotations)

    def convert(self, path: Path) -> str:
        """The tool."""
        with tempfile.TemporaryDirectory() as home:
            return run_tool(convert.main, "import", path, Path(home) / "out.pt", "--annotations", self.annotations)

    def _written(self, suffix: str, content: bytes) -> Path:
        for old in self.folder.glob("weights.*"):
            old.unlink()
        path = self.folder / f"weights{suffix}"
        path.write_bytes(content)
        return path


def _specimen(project: str) -> dict[str, Tensor]:
    """A ResNet-18 or, as detectron2 has no such, a ResNet-50, with a head for four classes, as far as it is looked at before its tensors are counted."""
    shapes = {f"{name}.weight": _HEAD[part] for part, name in _NAMES[project].items()}
    shapes |= {f"{name}.bias": _HEAD[part][:1] for part, name in _NAMES[project].items() if part != "stem"}
    first, blocks = (2, (3, 4, 6, 3)) if project == "detectron2" else (1, (2, 2, 2, 2))
    for stage, count in enumerate(blocks, start=first):
        shapes |= {f"{_BLOCKS[project].format(stage)}.{block}.conv1.weight": (1, 1, 1, 1) for block in range(count)}
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.rand(shape, generator=generator) for key, shape in (shapes | _MORE[project]).items()}
    return state | ({"pixel_mean": torch.tensor([103.53, 116.28, 123.675])} if project == "detectron2" else {})


def _odd_tensor(rng: random.Random) -> Any:
    """A tensor of another shape or type, or no tensor."""
    shapes = [(), (0,), (1,), (8,), (4,), (3,), (0, 0), (36,), (10**6,), (8, 4), (8, 4, 1, 1), (1,) * 20]
    shape, dtype = (
        rng.choice(shapes),
        rng.choice([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]),
    )
    return rng.choice(
        [torch.zeros(shape, dtype=dtype), torch.full((8,), float("nan")), rng.choice([*NUMBERS, *OTHERS])]
    )


def _written_somehow(state: Any, suffix: str) -> bytes:
    """In the format of the suffix, or as a pickle where that cannot hold it."""
    try:
        return _WRITERS[suffix](state)
    except (AttributeError, TypeError, ValueError, RuntimeError, UnicodeEncodeError):
        return pickle.dumps(str(state))


def _writes_nothing(done: Import) -> None:
    assert not done.written, "half a detector was converted"


def _is(found: ForeignFile, state: dict[str, Tensor]) -> None:
    assert equal(found.tensors, state), "other tensors"


def _is_foreign_file(found: ForeignFile) -> None:
    assert all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.tensors.items()), (
        "no state dict"
    )
    for value in found.tensors.values():
        value.double() if not value.is_complex() else value  # what is not really there would fill the memory now


class _Calls:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _pickled(value: Any, protocol: int = 4) -> Callable[[], bytes]:
    return lambda: pickle.dumps({"model": {"a": value}}, protocol)


def _safetensors(header: Any, content: bytes = b"", length: int | None = None) -> Callable[[], bytes]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda: struct.pack("<Q", len(text) if length is None else length) + text + content


def _tensor_entry(dtype: str, shape: list[int], end: int) -> dict:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def _with_another_number() -> bytes:
    content = saved({"a": torch.full((8,), 2.5)})
    numbers = torch.full((8,), 2.5).numpy().tobytes()
    return content.replace(numbers, torch.full((8,), 3.5).numpy().tobytes())


# What was done, the suffix, the file, and what may be made of it.
NAMED: list[tuple[str, str, Callable[[], bytes], Callable]] = [
    ("untouched", ".pth", lambda: _WRITERS[".pth"](_specimen("official")), lambda found: _is(found, _specimen("official"))),
    ("untouched", ".pkl", lambda: _WRITERS[".pkl"](_specimen("official")), lambda found: _is(found, _specimen("official"))),
    ("untouched", ".safetensors", lambda: save(_specimen("official")), lambda found: _is(found, _specimen("official"))),
    ("a call of os.system", ".pkl", _pickled(_Calls(os.system, "echo")), refused("a call")),
    ("a call of eval", ".pkl", _pickled(_Calls(eval, "1")), refused("a call")),
    ("a number that has changed", ".pth", lambda: _with_another_number(), refused("another number")),
    ("a number", ".pkl", _pickled(np.float32(2.5)), lambda found: _is(found, {"a": torch.tensor(2.5)})),
    ("an array of 8 TB that is not there", ".pkl", _pickled(_Calls(np.ndarray, (10**6, 10**6))), _is_foreign_file),
    ("an array of 3 GB that is not there", ".pkl", _pickled(_Calls(np.ndarray, (20_000, 20_000))), _is_foreign_file),
    ("a number of 2 GB", ".pkl", _pickled(_Calls(np.float32(0).__reduce__()[0], np.dtype("V2000000000"))), refused("a bomb")),
    ("a text of 2^40 letters", ".pkl", lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.", refused("a bomb")),
    ("a text of 2^62 letters", ".pkl", lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.", refused("a bomb")),
    ("a frame of 2^62 bytes", ".pkl", lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"a.", refused("a bomb")),
    ("a memo of 2^31", ".pkl", lambda: b"\x80\x04]r\xff\xff\xff\x7f.", refused("a bomb")),
    ("lists 10^6 deep", ".pkl", lambda: b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".", refused("lists")),
    ("objects in an array", ".pkl", _pickled(np.array([{}, []], dtype=object)), refused("objects")),
    ("times", ".pkl", _pickled(np.array(["2020-01-01"], dtype="M8[D]")), refused("times")),
    ("protocol 5", ".pkl", _pickled(np.arange(3.0), 5), _is_foreign_file),
    ("protocol 0", ".pkl", _pickled(np.arange(3.0), 0), _is_foreign_file),
    ("a header of 2^62 bytes", ".safetensors", _safetensors({}, length=2**62), refused("a bomb")),
    ("a header of 10^8 bytes", ".safetensors", _safetensors({}, length=10**8), refused("a bomb")),
    ("a shape of 10^12", ".safetensors", _safetensors(_tensor_entry("F32", [10**12], 4), bytes(4)), refused("a bomb")),
    ("a shape of 2^63", ".safetensors", _safetensors(_tensor_entry("F32", [2**63, 2], 4), bytes(4)), refused("a bomb")),
    ("a negative shape", ".safetensors", _safetensors(_tensor_entry("F32", [-1], 4), bytes(4)), refused("a bomb")),
    ("an unknown type", ".safetensors", _safetensors(_tensor_entry("F7", [1], 4), bytes(4)), refused("an unknown type")),
    ("numbers of four bits", ".safetensors", _safetensors(_tensor_entry("F4", [2], 1), bytes(1)), lambda _: None),
    ("numbers of eight bits", ".safetensors", _safetensors(_tensor_entry("F8_E4M3", [4], 4), bytes(4)), _is_foreign_file),
    ("lists 10,000 deep", ".safetensors", _safetensors(b"[" * 10**4 + b"]" * 10**4), refused("lists")),
    ("no tensor", ".safetensors", _safetensors({}), _is_foreign_file),
    ("a list under 'model'", ".pth", lambda: saved({"model": [torch.zeros(3)]}), refused("a list")),
    ("numbers for keys", ".pth", lambda: saved({1: torch.zeros(3)}), refused("a number for a key")),
    ("bytes for keys", ".pkl", lambda: pickle.dumps({"model": {b"a": np.zeros(3)}}), refused("bytes for a key")),
    ("a key of a megabyte", ".pth", lambda: saved({"x" * 2**20: 1}), refused("a number")),
    ("an expanded number", ".pth", lambda: saved({"a": torch.zeros(1).expand(10**10)}), refused("a bomb")),
    ("a number repeated by strides", ".pkl", _pickled(np.broadcast_to(np.float32(0), (8,))), _is_foreign_file),
]  # fmt: skip
