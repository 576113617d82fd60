"""Starting from the weights of another detector."""

import logging
from pathlib import Path
from textwrap import shorten

from torch import Tensor
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from .checkpoint import load_checkpoint, network_weights
from .classes import Classes
from .model.retinanet import RetinaNet
from .model.torchvision_weights import convert_torchvision_retinanet
from .yaml_files import ConfigError

_log = logging.getLogger(__name__)

# torchvision's published RetinaNets index logits by the category id of COCO: 91 names, "N/A" where COCO has none.
COCO_NAMES = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]


def load_detector(network: RetinaNet, path: Path | str, classes: Classes) -> None:
    """Put the weights of a Longshot checkpoint, or of torchvision's RetinaNet, into `network`.

    The class head of a torchvision file is taken over if all class names are COCO's; otherwise it stays as it is, which
    a warning tells.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: it is the file of another model or, for a Longshot checkpoint, of other classes.
    """
    state = load_checkpoint(path)
    if "classes" in state:
        theirs = state["classes"]
        classes.check_same(theirs["ids"], theirs["names"], here="the training set", there=f"model.weights {path}")
        weights = network_weights(state)
    else:
        weights = _from_torchvision(network, state, path, classes)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"model.weights: {path} does not fit the model of this configuration: {shorten(str(error), 500)}"
        ) from error


def _from_torchvision(network: RetinaNet, state: dict, path: Path | str, classes: Classes) -> dict[str, Tensor]:
    strangers = [name for name in classes.names if name not in COCO_NAMES]
    rows = None if strangers else [COCO_NAMES.index(name) for name in classes.names]
    try:
        weights = convert_torchvision_retinanet(state, category_ids=rows)
    except ValueError as error:
        raise ConfigError(f"model.weights: {path}: {error}") from error
    generator = network.anchor_generator
    if generator.style != "torchvision" or generator.offset != 0:
        raise ConfigError(
            f"model.weights: {path} was trained with torchvision's anchors; set model.anchors.style to torchvision and "
            "model.anchors.offset to 0, as configs/coco/retinanet_r50_torchvision.yaml does"
        )
    if strangers:
        _log.warning("%s: the class head starts anew, since COCO has no class called %r", path, strangers[0])
        weights |= {key: value for key, value in network.state_dict().items() if key.startswith("head.logits.")}
    return weights
