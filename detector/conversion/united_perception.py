"""EFL's own checkpoints: the improved baseline of United-Perception, whose published models hold 367 and 673 tensors.

Facts from its code at 52aaeb9: configs/det/efl and up/tasks/det.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..config.yaml_files import merge
from .foreign_files import ForeignFile
from .keys import Converted, check_num_classes, convert, num_anchors, num_classes, reorder

MODULES = {
    "backbone.conv1": "backbone.layer0.0",
    "backbone.bn1": "backbone.layer0.1",
    **{f"backbone.layer{i}": f"backbone.layer{i}" for i in range(1, 5)},
    **{f"fpn.lateral.c{i}": f"neck.c{i}_lateral" for i in (3, 4, 5)},
    **{f"fpn.output.p{i}": f"neck.p{i}_conv" for i in (3, 4, 5)},
    "fpn.p6": "neck.p6_conv",
    "fpn.p7": "neck.p7_conv",
    # A Sequential of convolution, norm and ReLU, four times.
    **{f"head.class_tower.{i}.conv": f"roi_head.cls_subnet.{3 * i}" for i in range(4)},
    **{f"head.class_tower.{i}.norm": f"roi_head.cls_subnet.{3 * i + 1}" for i in range(4)},
    **{f"head.box_tower.{i}.conv": f"roi_head.box_subnet.{3 * i}" for i in range(4)},
    **{f"head.box_tower.{i}.norm": f"roi_head.box_subnet.{3 * i + 1}" for i in range(4)},
    "head.logits": "roi_head.cls_subnet_pred",
    "head.deltas": "roi_head.box_subnet_pred",
    "head.quality": "roi_head.iou_pred",
}
SETTINGS = {
    "model": {
        "backbone": {"frozen_stages": 2, "norm": "frozen_stats"},
        "fpn": {"p6_from": "c5_lateral", "p7_relu": False, "init": "xavier_normal"},
        "head": {"prior": 0.001, "quality": "iou"},
        "anchors": {"base_size": 1.0, "scales": [6.0, 8.0], "ratios": [1.0]},
        "legacy_offset": True,
    },
    "data": {"pad_multiple": 64, "antialias": False},
    "test": {
        "score_threshold": 0.0,
        "candidates_per_level": 6000,
        "limit_to_anchors": True,
        "detections_per_image": 300,
    },
    "eval": {"batch_size": 1},  # group norm sees the padding, and theirs pads each image by itself
}
_POSITIVE, _NEGATIVE, _RATIO = (f"post_process.cls_loss.{name}" for name in ("pos_grad", "neg_grad", "pos_neg"))
LOSS = {
    _POSITIVE: "classification.positive_gradient",
    _NEGATIVE: "classification.negative_gradient",
    _RATIO: "classification.gradient_ratio",  # no entry of ours: it is computed from the other two
}
_CLEAR = 4  # correlations so many standard errors apart tell the layout of the class head


def recognizes(keys: Collection[str]) -> bool:
    """Whether these are the keys of an improved baseline of United-Perception."""
    return "roi_head.cls_subnet_pred.weight" in keys and "roi_head.iou_pred.weight" in keys


def to_ours(file: ForeignFile, category_ids: Sequence[int]) -> Converted:
    """An improved baseline of United-Perception, its class head anchor-outermost, with the state of EFL's loss if any."""
    converted = convert(file.tensors, MODULES)
    weights, unused = converted.weights, converted.unused
    check_num_classes(weights, category_ids)
    settings, notes = merge(converted.settings, SETTINGS), [_straighten(weights)]
    if not LOSS.keys() <= unused.keys():
        return converted._replace(settings=settings, notes=notes)
    settings["loss"] = {"classification": {"name": "equalized_focal"}}
    state = {LOSS[key]: unused[key].double() for key in (_POSITIVE, _NEGATIVE)}
    if not torch.equal(_ratio(unused[_POSITIVE], unused[_NEGATIVE]), unused[_RATIO]):
        notes.append(f"{_RATIO} is not the ratio of the gradients beside it; ours is always computed from them")
    return converted._replace(settings=settings, notes=notes, loss_state=state, loss_names=LOSS)


def official_loss_state(criterion: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official buffers for the state of a criterion; {} unless it is one with EFL or EQFL."""
    entries = {theirs: criterion.get(ours) for theirs, ours in LOSS.items() if theirs != _RATIO}
    if any(value is None for value in entries.values()):
        return {}
    buffers = {key: value.float() for key, value in entries.items()}
    return {**buffers, _RATIO: _ratio(buffers[_POSITIVE], buffers[_NEGATIVE])}


def _straighten(weights: dict[str, Tensor]) -> str:
    """Put the class head's channels in anchor-outermost order, if they are not; returns a line that says what was found.

    Between 2022-05-10 and its last commit United-Perception read its maps class-outermost. The biases of a class are
    alike for both anchors, so that under the right reading those of one anchor correlate with those of the other.
    """
    anchors, classes = num_anchors(weights), num_classes(weights)
    if anchors == 1 or classes == 1:
        return "class head: one anchor or one class, both layouts are the same"
    bias = weights["head.logits.bias"].double()
    anchor_outermost = _correlation(bias.view(anchors, classes))
    class_outermost = _correlation(bias.view(classes, anchors).T)
    found = f"correlation of the biases of anchors {anchor_outermost:.3f}, read class-outermost {class_outermost:.3f}"
    clear = _CLEAR / classes**0.5
    if class_outermost > max(anchor_outermost, 0) + clear:
        for key in ("head.logits.weight", "head.logits.bias"):
            weights[key] = reorder(weights[key], (classes, anchors), (1, 0))
        return f"class head: class-outermost ({found}); re-ordered to anchor-outermost"
    if anchor_outermost > max(class_outermost, 0) + clear:
        return f"class head: anchor-outermost ({found})"
    return f"warning: class head: the biases do not tell its layout ({found}); taken as anchor-outermost"


def _correlation(rows: Tensor) -> float:
    """Mean correlation between the rows (A, K); 0 where a row is constant."""
    pairs = torch.corrcoef(rows).triu(diagonal=1).nan_to_num()
    return float(pairs.sum() / (len(rows) * (len(rows) - 1) / 2))


def _ratio(positive: Tensor, negative: Tensor) -> Tensor:
    """The official ratio, which is 1 until the first update."""
    ratio = (positive / (negative + 1e-10)).clamp(0, 1)
    return ratio if (positive + negative).any() else torch.ones_like(ratio)
