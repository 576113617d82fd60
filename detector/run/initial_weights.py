"""Starting from the weights of another detector."""

from pathlib import Path
from textwrap import shorten

from torch import Tensor
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from ...datasets.classes import Classes
from ..checkpoint.content import is_state_dict
from ..checkpoint.file import check_entries, load_checkpoint, network_weights
from ..conversion.torchvision import convert_torchvision_retinanet
from ..errors import CheckpointError, ConfigError, brief
from ..model.retinanet import RetinaNet
from ..training.state import Run

# torchvision's published RetinaNets index logits by the category id of COCO: 91 names, "N/A" where COCO has none.
COCO_NAMES = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]


def start_from(run: Run, path: Path | str, classes: Classes) -> str:
    """Put the weights of a Longshot checkpoint, or of torchvision's RetinaNet, into `run`; returns a line that says what.

    Of a checkpoint nothing but the weights is taken, the averaged ones if there are any; the loss may be another. The
    class head of a torchvision file is taken if all class names are COCO's; otherwise it stays as it is.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: it is the file of another model or, for a Longshot checkpoint, of other classes.
    """
    state = load_checkpoint(path)
    if {"config", "classes"} <= state.keys():
        check_entries(state, f"{path}: its", needed={"model", "ema", "criterion", "step"})
        weights, taken = _from_checkpoint(state, path, classes)
    else:
        if not is_state_dict(state):
            raise CheckpointError(f"{path}: neither a checkpoint of ours nor tensors by name")
        weights, taken = _from_torchvision(run.network, state, path, classes)
    try:
        run.network.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"init_from: {path} does not fit the model of this configuration: {shorten(str(error), 500)}"
        ) from error
    if run.ema:
        run.ema.module.load_state_dict(weights)
    return f"init_from {path}: {taken}"


def _from_checkpoint(state: dict, path: Path | str, classes: Classes) -> tuple[dict[str, Tensor], str]:
    theirs = state["classes"]
    classes.check_same(theirs["ids"], theirs["names"], here="the training set", there=f"init_from {path}")
    if "source" in state:
        taken = f"weights converted from {state['source']}"
    else:
        taken = (
            f"{'averaged ' if state['ema'] else ''}weights of step {state['step']} of a run with "
            f"{state['config']['loss']['classification']['name']}"
        )
    if state["criterion"]:
        dropped = ", ".join(key.removeprefix("classification.") for key in state["criterion"])
        taken += f"; its loss state ({dropped}) is dropped, the loss of this run starts anew"
    return network_weights(state), taken


def _from_torchvision(
    network: RetinaNet, state: dict, path: Path | str, classes: Classes
) -> tuple[dict[str, Tensor], str]:
    strangers = [name for name in classes.names if name not in COCO_NAMES]
    rows = None if strangers else [COCO_NAMES.index(name) for name in classes.names]
    try:
        weights = convert_torchvision_retinanet(state, category_ids=rows)
    except (ValueError, RuntimeError, TypeError, LookupError, ZeroDivisionError) as error:  # also of strange shapes
        raise ConfigError(f"init_from: {path}: {brief(str(error), 500)}") from error
    generator = network.anchor_generator
    if generator.style != "torchvision" or generator.offset != 0:
        raise ConfigError(
            f"init_from: {path} was trained with torchvision's anchors; set model.anchors.style to torchvision and "
            "model.anchors.offset to 0, as configs/coco/retinanet_r50_torchvision.yaml does"
        )
    if not strangers:
        return weights, "weights of torchvision's RetinaNet, the class head included"
    weights |= {key: value for key, value in network.state_dict().items() if key.startswith("head.logits.")}
    return weights, (
        f"weights of torchvision's RetinaNet; the class head starts anew, since COCO has no class called {strangers[0]!r}"
    )
