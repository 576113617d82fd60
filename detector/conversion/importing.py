"""From another project's file to a checkpoint of ours and the configuration that goes with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from ...datasets.annotations.annotations import read_annotations
from ...datasets.classes import Classes
from ..build import build_network
from ..checkpoint.file import save_checkpoint
from ..config.schema import Config, load_config, parse_config
from ..config.yaml_files import merge
from ..errors import CheckpointError, ConfigError, brief, config_errors
from ..model.retinanet import RetinaNet
from . import detectron2, mmdetection, torchvision
from . import united_perception as official
from .foreign_files import read_foreign
from .key_table import KeyRow, compare, is_complete
from .keys import Converted, model_differences

SOURCES = {"official": official, "torchvision": torchvision, "detectron2": detectron2, "mmdetection": mmdetection}
FORMAT = "longshot 1, converted"  # another than that of training runs: there is no optimizer to go on with
_FIRST_LINE = "# Written by tools/convert.py"

# What torch and Python raise for tensors that have the names, but not the shapes of a detector's.
_STRANGE_SHAPES = (RuntimeError, ValueError, TypeError, LookupError, ZeroDivisionError)


class Import(NamedTuple):
    """What an import did."""

    source: str  # a key of SOURCES
    rows: list[KeyRow]
    notes: list[str]
    written: list[Path]  # nothing unless all of our network is there


def import_checkpoint(
    path: Path,
    out: Path,
    *,
    annotations: Path,
    source: str | None = None,
    config: Path | None = None,
    with_loss_state: bool = False,
) -> Import:
    """Write the checkpoint of ours that computes what another project's file does, and a configuration beside it.

    Nothing is written if a part of our network is missing in the file, or has another shape there.

    Args:
        path: what `read_foreign` reads.
        out: .pt or .pth. The configuration gets the same name with .yaml.
        annotations: of the dataset which the detector was trained on, or its validation set: ids and names of the
            classes, in the order of the ids, and their frequencies.
        source: a key of SOURCES; None: as the keys of the file tell.
        config: convert into the model of this configuration, and write none; None: as the file tells.
        with_loss_state: keep the gradients that EFL has collected, as the state of the checkpoint's criterion.

    Raises:
        CheckpointError: the file cannot be used.
        ConfigError: `config` is wrong, or something else would be overwritten.
        DataError: the annotations cannot be used.
    """
    if out.suffix not in (".pt", ".pth"):
        raise ConfigError(f"{out}: a checkpoint is written; name it .pt or .pth")
    beside = None if config else _free_path(out)
    classes = Classes.from_annotations(read_annotations(annotations))
    source, converted = _convert(path, source, classes)
    settings = merge(converted.settings, {"data": {"val": {"annotations": str(annotations)}}})
    theirs = parse_config(settings, where=str(path))
    chosen = load_config(config) if config else theirs
    with config_errors(str(config or path)), torch.device("meta"):  # the shapes alone
        wanted = build_network(chosen.model, len(classes.ids), pretrained=False).state_dict()
    rows = _rows(converted, wanted, with_loss_state)
    notes = [*converted.notes, *_differences(theirs, chosen)]
    if converted.loss_state and not with_loss_state:
        notes.append("the state of its loss is left out; --with-loss-state keeps it")
    if not is_complete(rows):
        return Import(source, rows, notes, [])
    network = build_network(chosen.model, len(classes.ids), pretrained=False)
    network.load_state_dict({row.ours: converted.weights[row.ours] for row in rows if row.ours in converted.weights})
    criterion = dict(converted.loss_state) if with_loss_state else {}
    origin = f"{path.name} ({source})"
    save_checkpoint(out, _content(chosen, classes, network, criterion) | {"source": origin})
    if beside is None:
        return Import(source, rows, notes, [out])
    _write_config(beside, settings, out, origin)
    return Import(source, rows, notes, [out, beside])


def _convert(path: Path, source: str | None, classes: Classes) -> tuple[str, Converted]:
    file = read_foreign(path)
    source = source or next((name for name, kind in SOURCES.items() if kind.recognizes(file.tensors.keys())), None)
    if source is None:
        raise CheckpointError(
            f"{path}: the keys are not those of a detector that can be converted: EFL's improved baseline, RetinaNet of "
            f"torchvision or detectron2, RetinaNet or ATSS of mmdetection; its first keys are "
            f"{[brief(key) for key in file.tensors][:3]}"
        )
    try:
        return source, SOURCES[source].to_ours(file, classes.ids)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {brief(str(error), 1000)}") from error
    except _STRANGE_SHAPES as error:
        raise CheckpointError(
            f"{path}: its tensors do not fit together as those of {source} do: {brief(str(error), 300)}"
        ) from error


def _content(config: Config, classes: Classes, network: RetinaNet, criterion: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a checkpoint of a training run holds, as far as there is anything to hold."""
    return {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "classes": classes._asdict(),
        "step": 0,
        "model": network.state_dict(),
        "ema": None,
        "criterion": criterion,
    }


def _rows(converted: Converted, wanted: Mapping[str, Tensor], with_loss_state: bool) -> list[KeyRow]:
    unused, rows = dict(converted.unused), []
    if with_loss_state:
        names = {ours: theirs for theirs, ours in converted.loss_names.items()}
        kept = {ours: unused.pop(theirs) for ours, theirs in names.items()}
        rows = compare(kept, names, kept, {})
    return compare(converted.weights, converted.names, wanted, unused) + rows


def _differences(theirs: Config, chosen: Config) -> list[str]:
    changes = model_differences(*(config.model.model_dump(mode="json") for config in (theirs, chosen)))
    return [f"warning: the configuration differs from what the file tells: {change}" for change in changes]


def _free_path(out: Path) -> Path:
    """Where the configuration beside `out` is to lie; raises ConfigError if somebody else's file lies there."""
    beside = out.with_suffix(".yaml")
    if beside.exists() and not beside.read_text(encoding="utf-8").startswith(_FIRST_LINE):
        raise ConfigError(f"{beside}: exists, and the converter did not write it; choose another name than {out.name}")
    return beside


def _write_config(path: Path, settings: Mapping[str, Any], checkpoint: Path, source: str) -> None:
    path.write_text(
        f"{_FIRST_LINE} for {source}: what evaluation needs.\n"
        f"# python tools/eval.py --config {path} --checkpoint {checkpoint} data.val.images=FOLDER\n"
        f"{yaml.safe_dump(dict(settings), sort_keys=False)}",
        encoding="utf-8",
    )
