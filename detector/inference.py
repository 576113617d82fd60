"""Trained detectors for a notebook: `load_model(checkpoint)`, `predict(model, images)`."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..datasets.classes import Classes
from ..datasets.images.reading import read_image, to_rgb
from ..datasets.images.transforms import View, apply_view, resized_size
from ..datasets.loading.batches import padded_size
from .build import build_network, build_postprocess
from .checkpoint.file import check_entries, load_checkpoint, network_weights
from .config.schema import Config, parse_config
from .errors import CheckpointError, ConfigError
from .model.postprocess import Detections, Postprocess, detect
from .model.retinanet import RetinaNet

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A trained network with everything that its detections need to be understood."""

    network: RetinaNet
    postprocess: Postprocess
    classes: Classes  # ids of the annotation file, names and frequencies by label
    config: Config  # of the training run
    device: torch.device


class Prediction(NamedTuple):
    """The detections in one image, by falling score; D of them."""

    boxes: np.ndarray  # (D, 4) float32 xyxy, pixels of the image as it was given
    scores: np.ndarray  # (D,) float32 in [0, 1]
    labels: np.ndarray  # (D,) int64 in [0, K)
    category_ids: np.ndarray  # (D,) int64: ids of the annotation file which the model was trained on
    class_names: list[str]


def load_model(
    checkpoint: Path | str, *, device: str | torch.device = "cpu", score_threshold: float | None = None
) -> LoadedModel:
    """The model of a training checkpoint, ready to predict: averaged weights where the run kept them.

    Args:
        score_threshold: in place of the run's `test.score_threshold`.

    Raises:
        CheckpointError: missing, truncated or foreign file.
        ConfigError: a GPU is asked for, and there is none.
    """
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device}: torch finds no GPU here")
    state = load_checkpoint(checkpoint)
    missing = {"config", "classes", "model"} - state.keys()
    if missing:
        raise CheckpointError(f"{checkpoint}: no checkpoint of a training run; it lacks {', '.join(sorted(missing))}")
    check_entries(state, f"{checkpoint}: its")
    config = parse_config(_without_dead_key(state["config"], checkpoint), where=f"{checkpoint}: config")
    classes = Classes(**state["classes"])
    with torch.device("meta"):  # without memory, of which a configuration can ask for any amount: do the weights fit?
        load_weights(build_network(config.model, len(classes.ids), pretrained=False), state, checkpoint, assign=True)
    network = build_network(config.model, len(classes.ids), pretrained=False)
    load_weights(network, state, checkpoint)
    postprocess = build_postprocess(config)
    if score_threshold is not None:
        postprocess = replace(postprocess, score_threshold=score_threshold)
    return LoadedModel(network.to(where).eval(), postprocess, classes, config, where)


def _without_dead_key(config: dict, checkpoint: Path | str) -> dict:
    """The configuration of a checkpoint without `model.weights`, which old ones have."""
    model = dict(config["model"])
    if "weights" in model:
        del model["weights"]
        _log.warning(
            "%s: config: model.weights is left out; it said what the run started from, as init_from does now",
            checkpoint,
        )
    return {**config, "model": model}


def load_weights(network: RetinaNet, state: dict, checkpoint: Path | str, *, assign: bool = False) -> None:
    """Put the weights of a checkpoint's content into a network, averaged ones if there are any; `assign`: in place of its own."""
    try:
        network.load_state_dict(network_weights(state), assign=assign)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint}: the checkpoint of another model: {shorten(str(error), 500)}") from error


def predict(model: LoadedModel, images: Iterable[Path | str | Image.Image | np.ndarray]) -> list[Prediction]:
    """The detections in each image: a path, a PIL image, or an (H, W, 3) uint8 RGB array.

    Images are resized as in the test of the training run and run one by one. The EXIF orientation of a file is applied;
    a PIL image is taken as its pixels lie.

    Raises:
        DataError: a path that is missing or undecodable.
        TypeError: anything else, and one image in place of a list.
    """
    if isinstance(images, str | Path | Image.Image | np.ndarray):
        raise TypeError(f"predict: expected a list of images, found one {type(images).__name__}; write [image]")
    return [_predict_one(model, _pixels(image)) for image in images]


def _pixels(image: Path | str | Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise TypeError(f"predict: expected a path, a PIL image or an (H, W, 3) uint8 array, found {found}")


def _predict_one(model: LoadedModel, image: np.ndarray) -> Prediction:
    data, size = model.config.data, image.shape[:2]
    resized = resized_size(size, data.test_short_side, data.long_side)
    tensor, _ = apply_view(image, np.zeros((0, 4), np.float32), View(resized, False), antialias=data.antialias)
    (found,) = detect(model.network, [tensor], padded_size([resized], data.pad_multiple), model.postprocess)
    found = model.postprocess.rescale(found, resized, size)
    return to_prediction(found, model.classes)


def to_prediction(found: Detections, classes: Classes) -> Prediction:
    """Detections as arrays, with the names and ids of their classes."""
    labels = found.labels.cpu().numpy()
    return Prediction(
        found.boxes.float().cpu().numpy(),
        found.scores.float().cpu().numpy(),
        labels,
        np.array(classes.ids, np.int64)[labels],
        [classes.names[label] for label in labels],
    )
