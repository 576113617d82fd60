"""What the converters share: modules of our network under the names of another project, and what shapes tell."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from ..config.yaml_files import differences
from ..errors import CheckpointError

_RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}
_NOT_COMPUTED = (  # a frozen BatchNorm computes what another one does in evaluation
    *(f"model.backbone.{key}:" for key in ("weights", "frozen_stages", "norm")),
    *(f"model.{key}:" for key in ("fpn.init", "head.prior", "head.recompute")),
)


class Converted(NamedTuple):
    """A foreign detector in terms of ours."""

    weights: dict[str, Tensor]  # by our keys
    names: dict[str, str]  # their key for each of our keys
    unused: dict[str, Tensor]  # by their keys: what our network has no place for
    settings: dict[str, Any]  # the sections of a configuration with which our network computes what theirs does
    notes: list[str]  # what was found out, changed or assumed, and what cannot be expressed
    loss_state: Mapping[str, Tensor] = MappingProxyType({})  # of a criterion, by our keys
    loss_names: Mapping[str, str] = MappingProxyType({})  # what becomes of `unused` keys if the loss state is taken


def rename(key: str, modules: Mapping[str, str]) -> str | None:
    """The key with its longest leading module that is in `modules` replaced; None if there is no such module."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if module in modules:
            return ".".join([modules[module], *parts[length:]])
    return None


def convert(tensors: Mapping[str, Tensor], modules: Mapping[str, str]) -> Converted:
    """Their tensors under our keys, with what the shapes tell of the model.

    Args:
        modules: their module for each of ours.

    Raises CheckpointError if the keys are not those of a ResNet with a pyramid and a head as ours.
    """
    ours = {theirs: our for our, theirs in modules.items()}
    weights, names, unused = {}, {}, {}
    for key, value in tensors.items():
        renamed = rename(key, ours)
        if renamed is None:
            unused[key] = value
        else:
            weights[renamed], names[renamed] = value, key
    return Converted(weights, names, unused, {"model": model_settings(weights)}, [])


def model_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The `model` section, as far as the shapes of our weights tell it. Raises as `convert` does."""
    needed = ("head.logits.bias", "head.deltas.bias", "fpn.lateral.c5.weight", "fpn.p6.weight", "backbone.conv1.weight")
    if missing := [key for key in needed if key not in weights]:
        raise CheckpointError(
            f"the file has nothing for {', '.join(missing)} of our network; expected a one-stage detector with a ResNet "
            "and a pyramid of five levels"
        )
    channels, p6_inputs = weights["fpn.p6.weight"].shape[:2]
    convs = [weights[key] for key in weights if key.startswith("head.class_tower.") and key.endswith(".conv.weight")]
    return {
        "backbone": {"name": _resnet_of(weights)},
        "fpn": {"channels": channels, "p6_from": "p5" if p6_inputs == channels else "c5"},
        "head": {
            "num_convs": len(convs),
            "width": len(convs[0]) if convs else channels,
            "norm": "gn" if "head.class_tower.0.norm.weight" in weights else "none",
        },
    }


def model_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`model.key: before -> now` where two `model` sections compute different things with the same weights."""
    changes = differences({"model": before}, {"model": now})
    return [change for change in changes if not change.startswith(_NOT_COMPUTED)]


def num_anchors(weights: Mapping[str, Tensor]) -> int:
    """A, of a head with deltas."""
    return len(weights["head.deltas.bias"]) // 4


def num_classes(weights: Mapping[str, Tensor]) -> int:
    """K."""
    return len(weights["head.logits.bias"]) // num_anchors(weights)


def check_num_classes(weights: Mapping[str, Tensor], category_ids: Sequence[int]) -> None:
    """Raise CheckpointError unless the class head has as many classes as there are category ids."""
    if num_classes(weights) != len(category_ids):
        raise CheckpointError(
            f"the class head has {num_classes(weights)} classes, the annotations have {len(category_ids)}; are they of "
            "another dataset?"
        )


def reorder(rows: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """(prod(shape), …) rows, read as an array of the given shape, with its axes in another order; flat again."""
    axes = range(len(shape), rows.ndim + len(shape) - 1)
    return rows.unflatten(0, tuple(shape)).permute(*order, *axes).flatten(0, len(shape) - 1).contiguous()


def _resnet_of(weights: Mapping[str, Tensor]) -> str:
    blocks = {tuple(key.split(".")[1:3]) for key in weights if key.startswith("backbone.layer")}
    counts = tuple(sum(layer == f"layer{i}" for layer, _ in blocks) for i in range(1, 5))
    name = _RESNETS.get((counts, "backbone.layer1.0.conv3.weight" in weights))
    if name is None:
        raise CheckpointError(
            f"its trunk has {counts} blocks in the four stages; expected ResNet-18, 34, 50 or 101: (2, 2, 2, 2), "
            "(3, 4, 6, 3) or (3, 4, 23, 3)"
        )
    return name
