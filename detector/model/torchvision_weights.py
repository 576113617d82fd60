"""Weights of torchvision's RetinaNet, renamed for ours."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

NORM_EPS = 1e-5  # of our BatchNorm layers, frozen or not
TOWERS = {"classification_head": "class_tower", "regression_head": "box_tower"}
LAYERS = {"classification_head.cls_logits": "logits", "regression_head.bbox_reg": "deltas"}


def is_torchvision_retinanet(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of torchvision's RetinaNet."""
    return "head.classification_head.cls_logits.weight" in state_dict


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
    if not is_torchvision_retinanet(state_dict):
        raise ValueError(f"not a state dict of torchvision's RetinaNet; its first keys are {list(state_dict)[:3]}")
    counters = [key for key in state_dict if key.endswith(".num_batches_tracked")]  # frozen norms have none
    converted = {_rename(key): value for key, value in state_dict.items() if key not in counters}
    _change_eps(converted, from_eps=norm_eps if norm_eps is not None else NORM_EPS if counters else 0.0)
    if category_ids is not None:
        num_anchors = len(converted["head.deltas.bias"]) // 4
        for key in ("head.logits.weight", "head.logits.bias"):
            converted[key] = _select_classes(converted[key], num_anchors, category_ids)
    return converted


def _rename(key: str) -> str:
    """Our key for one of torchvision's.

    Older files, the published COCO_V1 of the first version among them, have no level "0" for the convolution of a
    block, and count the activations of a tower too: conv.0, conv.2, conv.4, conv.6.
    """
    if match := re.fullmatch(r"backbone\.body\.(.+)", key):
        return f"backbone.{match[1]}"
    if match := re.fullmatch(r"backbone\.fpn\.extra_blocks\.(p[67]\.\w+)", key):
        return f"fpn.{match[1]}"
    if match := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.([012])\.(?:0\.)?(\w+)", key):
        level = int(match[2]) + 3
        return f"fpn.lateral.c{level}.{match[3]}" if match[1] == "inner" else f"fpn.output.p{level}.{match[3]}"
    if match := re.fullmatch(r"head\.(\w+)\.conv\.(\d)\.([01])\.(\w+)", key):
        return f"head.{TOWERS[match[1]]}.{match[2]}.{('conv', 'norm')[int(match[3])]}.{match[4]}"
    if match := re.fullmatch(r"head\.(\w+)\.conv\.([0246])\.(\w+)", key):
        return f"head.{TOWERS[match[1]]}.{int(match[2]) // 2}.conv.{match[3]}"
    if match := re.fullmatch(r"head\.(\w+\.(?:cls_logits|bbox_reg))\.(\w+)", key):
        return f"head.{LAYERS[match[1]]}.{match[2]}"
    raise ValueError(f"{key!r} is not a key of torchvision's RetinaNet")


def _change_eps(state_dict: dict[str, Tensor], *, from_eps: float) -> None:
    """Rescale the weights of the trunk's norm layers, w / sqrt(variance + eps), so that NORM_EPS gives the same."""
    if from_eps == NORM_EPS:
        return
    for key in [key for key in state_dict if key.endswith(".running_var")]:
        weight_key = key.replace(".running_var", ".weight")
        variance = state_dict[key].double()
        growth = ((variance + NORM_EPS) / (variance + from_eps)).sqrt()
        state_dict[weight_key] = (state_dict[weight_key].double() * growth).to(state_dict[weight_key].dtype)


def _select_classes(rows: Tensor, num_anchors: int, category_ids: Sequence[int]) -> Tensor:
    """Of (A * K, …) rows, anchor-outermost, those of the given classes for every anchor."""
    num_classes = len(rows) // num_anchors
    strange = [category_id for category_id in category_ids if not 0 <= category_id < num_classes]
    if strange:
        raise ValueError(
            f"category ids {strange[:5]} have no row in the class head, which has rows for 0 to {num_classes - 1}; "
            "are these the categories of another dataset?"
        )
    by_anchor = rows.unflatten(0, (num_anchors, num_classes))
    return by_anchor[:, torch.tensor(category_ids)].flatten(0, 1)
