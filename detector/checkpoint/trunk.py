"""The weights of a pretrained trunk."""

from pathlib import Path

from torch import Tensor
from torchvision import models

from ..model.backbone import ResNet, load_weights
from .file import load_checkpoint


def load_trunk(trunk: ResNet, name: str, weights: str) -> None:
    """Put pretrained weights into a trunk, see `backbone.load_weights`.

    With GroupNorm, the BatchNorm layers of the weights are left out and GroupNorm starts at 1 and 0; every other entry must
    fit.

    Args:
        name: of the ResNet.
        weights: the name of torchvision weights such as "IMAGENET1K_V1", downloaded once; or the path of a state dict with
            the keys of torchvision's ResNet, or of this trunk.

    Raises ValueError for weights that are neither a file nor a known name, cannot be downloaded, or do not fit the trunk.
    """
    load_weights(trunk, _read(name, weights), source=f"{name} weights {weights}")


def _read(name: str, weights: str) -> dict[str, Tensor]:
    """The state dict that `weights` stands for: the path of one, or the name of torchvision weights of `name`."""
    if Path(weights).is_file():
        return load_checkpoint(weights)
    known = {} if name == "thin" else models.get_model_weights(name).__members__
    if weights not in known:
        raise ValueError(
            f"{name} weights {weights!r}: no such file, nor the name of torchvision weights of {name} "
            f"({', '.join(known) or 'it has none'})"
        )
    try:
        return known[weights].get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:  # urllib's URLError and HTTPError, a lost connection, a cache folder one cannot write
        raise ValueError(
            f"{name} weights {weights} could not be downloaded from {known[weights].url}: {error}. "
            "Without a network, fetch that file elsewhere and pass its path as the weights"
        ) from error
