"""From a checkpoint of ours to a plain state dict, or to one with the keys of another project."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint.file import check_entries, load_checkpoint, network_weights, save_checkpoint
from ..config.schema import parse_config
from ..config.yaml_files import merge
from ..errors import CheckpointError, ConfigError
from . import torchvision
from . import united_perception as official
from .key_table import KeyRow, compare, is_complete
from .keys import model_differences, model_settings, rename

FORMATS = ("plain", "official", "torchvision")
_KINDS = {"official": official, "torchvision": torchvision}


class Export(NamedTuple):
    """What an export did."""

    rows: list[KeyRow]
    notes: list[str]
    written: list[Path]  # nothing unless the other project's model would be complete


def export_checkpoint(checkpoint: Path, out: Path, *, kind: str = "plain") -> Export:
    """Write the weights of a checkpoint, averaged ones if there are any, bit for bit.

    Args:
        checkpoint: of a training run, or of `import_checkpoint`.
        out: .safetensors, or .pth or .pt for torch.save.
        kind: the keys: "plain" ours, "official" those of EFL's code (with the state of its loss, under "model"),
            "torchvision" those of its RetinaNet.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ConfigError: another suffix.
    """
    if out.suffix not in (".safetensors", ".pth", ".pt"):
        raise ConfigError(f"{out}: expected a name that ends in .safetensors, .pth or .pt")
    state = load_checkpoint(checkpoint)
    if missing := {"config", "model", "criterion"} - state.keys():
        raise CheckpointError(f"{checkpoint}: no checkpoint of ours; it lacks {', '.join(sorted(missing))}")
    check_entries(state, f"{checkpoint}: its")
    weights = network_weights(state)
    if kind == "plain":
        rows, notes, tensors = compare(weights, {key: key for key in weights}, weights, {}), [], weights
    else:
        try:
            rows, notes, tensors = _renamed(weights, state, _KINDS[kind])
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint}: {error}") from error
    if not is_complete(rows) or (kind != "plain" and any(row.status == "unused" for row in rows)):
        return Export(rows, notes, [])
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    if out.suffix == ".safetensors":
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out, metadata={"format": "pt"})
    else:
        save_checkpoint(out, {"model": tensors} if kind == "official" else tensors)
    return Export(rows, notes, [out])


def _renamed(
    weights: Mapping[str, Tensor], state: Mapping[str, Any], kind: Any
) -> tuple[list[KeyRow], list[str], dict]:
    """Rows, notes, and the tensors by the keys of another project."""
    names = {key: rename(key, kind.MODULES) for key in weights}
    unused = {key: weights[key] for key, theirs in names.items() if theirs is None}
    tensors = {names[key]: weights[key] for key in weights if key not in unused}
    ours = {theirs: key for key, theirs in names.items() if theirs}
    if kind is official:
        loss_state = official.official_loss_state(state["criterion"])
        tensors |= loss_state
        ours |= {key: official.LOSS[key] for key in loss_state}
    rows = compare(tensors, ours, tensors, unused)
    # torchvision's first version has no norm layers in its head, and is complete without.
    modules = [theirs for ours, theirs in kind.MODULES.items() if not ours.endswith(".norm")]
    empty = [module for module in modules if not any(key.startswith(f"{module}.") for key in tensors)]
    rows += [KeyRow("missing", "", f"{module}.*", "") for module in empty]
    settings = merge(model_settings(weights), kind.SETTINGS["model"])
    theirs = parse_config({"model": settings}).model.model_dump(mode="json")
    changes = model_differences(state["config"]["model"], theirs)
    return rows, [f"warning: the other project computes something else: {change} there" for change in changes], tensors
