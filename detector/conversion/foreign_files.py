"""Other people's files of weights, read without running code from them."""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from ..checkpoint.file import load_checkpoint
from ..errors import CheckpointError, brief

_SCALAR = np.float32(0).__reduce__()[0]


class _Array(np.ndarray):
    """What a pickle begins an array with; its shape and content come later, together, whatever it asks for now."""

    def __new__(cls, *_: Any) -> "_Array":
        return np.empty(0).view(cls)


def _scalar(dtype: np.dtype, content: bytes) -> np.generic:
    """A number; numpy's own function makes one of gigabytes where there is no content."""
    return _SCALAR(dtype, content)


# All that a pickle of numpy arrays calls, whatever version of Python and numpy wrote it; nothing that takes more memory
# than the file says in full.
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): lambda text, encoding="utf-8": text.encode(encoding),  # how Python 2's protocol holds bytes
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): np.empty(1).__reduce_ex__(5)[0] for core in ("core", "_core")},
}
# The same for files of torch.save, in torch's words; it asks for the classes of what is filled in later.
_ALLOWED_BY_TORCH = [(value, f"{module}.{name}") for (module, name), value in _ALLOWED.items()]
_ALLOWED_BY_TORCH += [type(np.dtype(code)) for code in set(np.typecodes["All"]) - {"O"}]

# What Python and numpy raise for pickles that are damaged, or that call what is allowed in ways that are not.
_DAMAGED = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, MemoryError, OverflowError,
    RecursionError,
)  # fmt: skip


class ForeignFile(NamedTuple):
    """A state dict and what else lay beside it."""

    tensors: dict[str, Tensor]
    metadata: Mapping[str, Any]  # of mmdetection; empty elsewhere


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and plain containers; a file that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"refused: it holds {module}.{name}, and reading that could run code of the file"
            )
        return _ALLOWED[module, name]


def read_foreign(path: Path | str) -> ForeignFile:
    """The tensors and arrays of a .safetensors file, of a .pkl of numpy arrays (detectron2), or of a file of torch.save.

    They are looked for under the key "model" or "state_dict", or at the top. A prefix "module." that all keys have is
    removed.

    Raises CheckpointError for a missing, damaged or foreign file, for one that holds anything but tensors, numpy arrays
    and plain values, and for a checkpoint of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    readers = {".safetensors": _read_safetensors, ".pkl": _read_arrays}
    with safe_globals(_ALLOWED_BY_TORCH):
        content = readers.get(path.suffix, load_checkpoint)(path)
    if {"config", "classes", "criterion"} <= content.keys():
        raise CheckpointError(f"{path}: a Longshot checkpoint already; tools/eval.py and init_from take it as it is")
    state = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), content)
    tensors = {key: _tensor(value, key, path) for key, value in state.items()}
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    metadata = content.get("meta")
    return ForeignFile(tensors, metadata if isinstance(metadata, Mapping) else {})


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {brief(str(error), 300)}") from error


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except _DAMAGED as error:
        raise CheckpointError(
            f"{path}: {brief(str(error), 300)}; expected a pickle of numpy arrays and plain values only, as in detectron2's "
            "model zoo"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(content).__name__}")
    return content


def _tensor(value: Any, key: Any, path: Path) -> Tensor:
    if isinstance(key, str) and isinstance(value, Tensor):
        return value
    numeric = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub"
    # Torch has no numbers longer than 8 bytes, nor another order of bytes than the machine's.
    if isinstance(key, str) and numeric and value.dtype.itemsize <= 8:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise CheckpointError(
        f"{path}: {brief(repr(key))} is {kind}; expected a state dict, tensors or numpy arrays by name, at the top or under "
        "'model' or 'state_dict'"
    )
