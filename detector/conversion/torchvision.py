"""torchvision's RetinaNets, of both versions: `retinanet_resnet50_fpn` and `retinanet_resnet50_fpn_v2`."""

import re
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..config.yaml_files import merge
from ..errors import CheckpointError
from .foreign_files import ForeignFile
from .keys import Converted, convert, num_anchors

NORM_EPS = 1e-5  # of our BatchNorm layers, frozen or not
MODULES = {
    "backbone": "backbone.body",
    **{f"fpn.lateral.c{i + 3}": f"backbone.fpn.inner_blocks.{i}.0" for i in range(3)},
    **{f"fpn.output.p{i + 3}": f"backbone.fpn.layer_blocks.{i}.0" for i in range(3)},
    **{f"fpn.p{i}": f"backbone.fpn.extra_blocks.p{i}" for i in (6, 7)},
    **{f"head.class_tower.{i}.conv": f"head.classification_head.conv.{i}.0" for i in range(4)},
    **{f"head.class_tower.{i}.norm": f"head.classification_head.conv.{i}.1" for i in range(4)},
    **{f"head.box_tower.{i}.conv": f"head.regression_head.conv.{i}.0" for i in range(4)},
    **{f"head.box_tower.{i}.norm": f"head.regression_head.conv.{i}.1" for i in range(4)},
    "head.logits": "head.classification_head.cls_logits",
    "head.deltas": "head.regression_head.bbox_reg",
}
SETTINGS = {
    "model": {"backbone": {"frozen_stages": 2}, "anchors": {"style": "torchvision", "offset": 0.0}},
    "data": {"antialias": False},  # its network resizes images by F.interpolate
    "test": {"detections_per_image": 300},
}
_COUNTER = ".num_batches_tracked"


def recognizes(keys: Collection[str]) -> bool:
    """Whether these are the keys of torchvision's RetinaNet."""
    return "head.classification_head.cls_logits.weight" in keys


def to_ours(file: ForeignFile, category_ids: Sequence[int]) -> Converted:
    """A RetinaNet of torchvision, with the rows of its class head for these category ids, in their order."""
    converted = _convert(file.tensors, norm_eps=None)
    trained_norms = any(key.endswith(_COUNTER) for key in file.tensors)
    norm = {"model": {"backbone": {"norm": "bn" if trained_norms else "frozen_bn"}}}
    notes = (
        [] if trained_norms else ["norms: frozen, so taken to have eps 0 as in the published COCO_V1; eps is 1e-5 now"]
    )
    rows, what = _class_rows(len(converted.weights["head.logits.bias"]) // num_anchors(converted.weights), category_ids)
    _select_classes(converted.weights, rows)
    notes.append(f"class head: the row of a class is its {what}; {len(rows)} rows are kept")
    return converted._replace(settings=merge(merge(converted.settings, SETTINGS), norm), notes=notes)


def convert_torchvision_retinanet(
    state_dict: Mapping[str, Tensor], *, category_ids: Sequence[int] | None = None, norm_eps: float | None = None
) -> dict[str, Tensor]:
    """The state dict of our RetinaNet that computes what torchvision's does.

    It fits ResNet trunks with norm "frozen_bn" or "bn" and a head of four convolutions of width 256. For
    `retinanet_resnet50_fpn`: FPN(p6_from="p5"), DenseHead(norm="none"). For `retinanet_resnet50_fpn_v2`: "c5" and
    "gn". Both want AnchorGenerator(style="torchvision", offset=0).

    Args:
        state_dict: of torchvision's model, or one of its published files.
        category_ids: one for each of our classes; their rows of the class head are kept, in this order. torchvision's
            published models index logits by the category id of COCO. None keeps every row.
        norm_eps: eps of the norm layers of torchvision's trunk, which a state dict does not tell. None: 0 for frozen
            norms, as torchvision uses the published COCO_V1 of `retinanet_resnet50_fpn`, and 1e-5 for BatchNorm.

    Raises:
        ValueError: not the keys of torchvision's RetinaNet, or a category id that it does not have.
    """
    if not recognizes(state_dict.keys()):
        raise ValueError(f"not a state dict of torchvision's RetinaNet; its first keys are {list(state_dict)[:3]}")
    converted = _convert(state_dict, norm_eps=norm_eps)
    if converted.unused:
        raise ValueError(f"{next(iter(converted.unused))!r} is not a key of torchvision's RetinaNet")
    if category_ids is not None:
        _select_classes(converted.weights, category_ids)
    return {key: value for key, value in converted.weights.items() if not key.endswith(_COUNTER)}


def _convert(tensors: Mapping[str, Tensor], *, norm_eps: float | None) -> Converted:
    converted = convert({_new_layout(key): value for key, value in tensors.items()}, MODULES)
    trained_norms = any(key.endswith(_COUNTER) for key in tensors)  # frozen norms have no counters
    _change_eps(converted.weights, from_eps=norm_eps if norm_eps is not None else NORM_EPS if trained_norms else 0.0)
    in_file = {_new_layout(key): key for key in tensors}
    return converted._replace(names={ours: in_file[theirs] for ours, theirs in converted.names.items()})


def _new_layout(key: str) -> str:
    """The key of today's torchvision for that of an older one.

    Older files, the published COCO_V1 of the first version among them, have no level "0" for the convolution of a
    block, and count the activations of a tower too: conv.0, conv.2, conv.4, conv.6.
    """
    if match := re.fullmatch(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(\w+)", key):
        return f"{match[1]}.0.{match[2]}"
    if match := re.fullmatch(r"(head\.\w+\.conv)\.([0246])\.(\w+)", key):
        return f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"
    return key


def _change_eps(state_dict: dict[str, Tensor], *, from_eps: float) -> None:
    """Rescale the weights of the trunk's norm layers, w / sqrt(variance + eps), so that NORM_EPS gives the same."""
    if from_eps == NORM_EPS:
        return
    for key in [key for key in state_dict if key.endswith(".running_var")]:
        weight_key = key.replace(".running_var", ".weight")
        variance = state_dict[key].double()
        growth = ((variance + NORM_EPS) / (variance + from_eps)).sqrt()
        state_dict[weight_key] = (state_dict[weight_key].double() * growth).to(state_dict[weight_key].dtype)


def _class_rows(num_rows: int, category_ids: Sequence[int]) -> tuple[Sequence[int], str]:
    """The row of each class, and what they are; the published models and those of its tutorials index by category id."""
    if max(category_ids) < num_rows:
        return category_ids, "category id"
    if len(category_ids) == num_rows:
        return range(num_rows), "place among the category ids"
    raise CheckpointError(
        f"the class head has rows for {num_rows} classes; the annotations have {len(category_ids)}, with ids up to "
        f"{max(category_ids)}: are they of another dataset?"
    )


def _select_classes(weights: dict[str, Tensor], rows: Sequence[int]) -> None:
    """Keep, of the (A * K, …) rows of the class head, anchor-outermost, those of the given classes for every anchor."""
    anchors = num_anchors(weights)
    for key in ("head.logits.weight", "head.logits.bias"):
        by_anchor = weights[key].unflatten(0, (anchors, -1))
        strange = [row for row in rows if not 0 <= row < by_anchor.shape[1]]
        if strange:
            raise ValueError(
                f"category ids {strange[:5]} have no row in the class head, which has rows for 0 to "
                f"{by_anchor.shape[1] - 1}; are these the categories of another dataset?"
            )
        weights[key] = by_anchor[:, torch.tensor(list(rows))].flatten(0, 1)
