"""Whether the content of a checkpoint is what it should be, before any of it is used.

Whoever can write a file can put anything into it, a checksum that fits included.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CLASSES = {"ids": int, "names": str, "frequencies": str, "train_images": int}  # see `Classes`


def archive_damage(path: Path) -> str:
    """What is wrong with a zip file, "" for a good one and for other files. Raises BadZipFile and others for half a file.

    Its parts are compared with the zip's own CRCs, as torch.load does not.
    """
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        # torch.save compresses nothing; what is compressed can be a thousand times as large as the file.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            return "refused: its content is compressed, and a small file could fill the memory"
        # One bit there makes a folder of a part, and torch.load takes whatever is in memory for its content.
        folders = [entry.filename for entry in archive.infolist() if entry.external_attr]
        changed = folders[0] if folders else archive.testzip()
    if changed:
        return (
            f"damaged: bits of {changed[:100]} in it have changed since it was written. Take the checkpoint before it or "
            "another copy, and look after the disk"
        )
    return ""


def strange_tensor(content: Any) -> str:
    """The shape of a tensor without a number of its own for each element, anywhere in `content`; "" if there is none.

    A file of a few bytes can say that one number is repeated a billion times; computing with it would fill the memory.
    """
    left, seen = [content], set()
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            if not _is_whole(value):
                return str(tuple(value.shape))
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, Mapping) else value
    return ""


def is_state_dict(value: Any) -> bool:
    """Whether it is tensors by name."""
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def wrong_entries(state: Mapping[str, Any]) -> list[str]:
    """Which of the entries that a training run writes are there and of another kind."""
    kinds = {
        "config": _is_config,
        "classes": _are_classes,
        "step": lambda step: type(step) is int and 0 <= step < 2**63,
        "model": is_state_dict,
        "ema": lambda ema: ema is None or (is_state_dict(ema) and (not ema or _holds(ema, state.get("model")))),
        "criterion": is_state_dict,
    }
    return [key for key, is_right in kinds.items() if key in state and not is_right(state[key])]


def _is_whole(tensor: Tensor) -> bool:
    dense = tensor.layout is torch.strided and tensor.device.type != "meta"
    return dense and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _is_config(config: Any) -> bool:
    """Whether it is plain values, in the sections that are looked into before it is checked as a whole."""
    try:
        json.dumps(config)
    except (TypeError, ValueError, RecursionError):
        return False
    sections = config if isinstance(config, Mapping) else {}
    loss = sections.get("loss")
    named = [sections.get("optimizer"), loss.get("classification") if isinstance(loss, Mapping) else None]
    return isinstance(sections.get("model"), Mapping) and all(isinstance(s, Mapping) and "name" in s for s in named)


def _are_classes(classes: Any) -> bool:
    """Whether they are the fields of `Classes`, each with a value for each of the same classes."""
    if not (isinstance(classes, Mapping) and classes.keys() == _CLASSES.keys()):
        return False
    typed = all(
        isinstance(values := classes[key], list) and all(type(value) is kind for value in values)
        for key, kind in _CLASSES.items()
    )
    return typed and len(set(map(len, classes.values()))) == 1 and len(set(classes["ids"])) == len(classes["ids"]) > 0


def _holds(ema: Mapping[str, Tensor], model: Any) -> bool:
    return isinstance(model, Mapping) and {key.removeprefix("module.") for key in ema} >= model.keys()
