"""RetinaNet and ATSS of mmdetection 2 and 3.

Facts from the published packages mmdet 2.28.2 and 3.3.0: configs/_base_/models/retinanet_r50_fpn.py, configs/atss and
models.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.yaml_files import merge
from ..errors import CheckpointError
from .caffe import CAFFE_MEAN, CAFFE_STD, fit_to_our_pixels
from .foreign_files import ForeignFile
from .keys import Converted, check_num_classes, convert

LEVELS = range(5)
_SCALES = "bbox_head.scales.*.scale"  # the factors of all levels, one key in place of five
MODULES = {
    "backbone.conv1": "backbone.conv1",
    "backbone.bn1": "backbone.bn1",
    **{f"backbone.layer{i}": f"backbone.layer{i}" for i in range(1, 5)},
    **{f"fpn.lateral.c{i + 3}": f"neck.lateral_convs.{i}.conv" for i in range(3)},
    **{f"fpn.output.p{i + 3}": f"neck.fpn_convs.{i}.conv" for i in range(3)},
    "fpn.p6": "neck.fpn_convs.3.conv",
    "fpn.p7": "neck.fpn_convs.4.conv",
    **{f"head.class_tower.{i}.conv": f"bbox_head.cls_convs.{i}.conv" for i in range(4)},
    **{f"head.class_tower.{i}.norm": f"bbox_head.cls_convs.{i}.gn" for i in range(4)},
    **{f"head.box_tower.{i}.conv": f"bbox_head.reg_convs.{i}.conv" for i in range(4)},
    **{f"head.box_tower.{i}.norm": f"bbox_head.reg_convs.{i}.gn" for i in range(4)},
}
HEADS = {
    "retinanet": {"head.logits": "bbox_head.retina_cls", "head.deltas": "bbox_head.retina_reg"},
    "atss": {
        "head.logits": "bbox_head.atss_cls",
        "head.deltas": "bbox_head.atss_reg",
        "head.quality": "bbox_head.atss_centerness",
        "head.level_scales": _SCALES,
    },
}
SETTINGS = {
    "model": {
        "backbone": {"frozen_stages": 2, "norm": "frozen_stats"},
        "fpn": {"p7_relu": False},
        "anchors": {"offset": 0.0},
    },
    "data": {"antialias": False},  # OpenCV
}
ATSS_SETTINGS = {
    "model": {
        "head": {"quality": "centerness", "level_scales": True},
        "anchors": {"base_size": 8.0, "scales": [1.0], "ratios": [1.0]},
    },
    "test": {"nms_threshold": 0.6},
}
ATSS_STDS = (0.1, 0.1, 0.2, 0.2)  # its coder multiplies deltas by them


def recognizes(keys: Collection[str]) -> bool:
    """Whether these are the keys of a RetinaNet or an ATSS of mmdetection."""
    return "bbox_head.retina_cls.weight" in keys or "bbox_head.atss_cls.weight" in keys


def to_ours(file: ForeignFile, category_ids: Sequence[int]) -> Converted:
    """A RetinaNet or ATSS of mmdetection, with the deviations of ATSS's deltas in the last convolution."""
    _check_version(file.metadata)
    atss = "bbox_head.atss_cls.weight" in file.tensors
    converted = convert(_join_scales(file.tensors), MODULES | HEADS["atss" if atss else "retinanet"])
    settings, notes, weights = merge(converted.settings, SETTINGS), [], converted.weights
    check_num_classes(weights, category_ids)
    if _is_caffe(file.metadata):
        settings = merge(settings, {"model": {"backbone": {"stride_in_1x1": True}}})
        weights["backbone.conv1.weight"] = fit_to_our_pixels(
            weights["backbone.conv1.weight"], mean=CAFFE_MEAN, std=CAFFE_STD
        )
        notes.append("trunk: of caffe style by the file's own configuration; the first convolution now takes our RGB")
    else:
        notes.append("trunk: taken to be of pytorch style, as nothing in the file says caffe")
    notes.append("shrinking: mmdetection lets a box be no smaller than 1/62.5 of its anchor; ours may be")
    if atss:
        settings = merge(settings, ATSS_SETTINGS)
        stds = torch.tensor(ATSS_STDS)
        weights["head.deltas.weight"] = weights["head.deltas.weight"] * stds[:, None, None, None]
        weights["head.deltas.bias"] = weights["head.deltas.bias"] * stds
        notes.append("deltas: the coder's deviations 0.1, 0.1, 0.2, 0.2 are in the last convolution now")
        notes.append(
            "scores: mmdetection selects candidates by class score and multiplies by center-ness afterwards; ours are "
            "selected by the product, so that test.score_threshold applies to the product too"
        )
    return converted._replace(settings=settings, notes=notes)


def _check_version(metadata: Mapping[str, Any]) -> None:
    version = str(metadata.get("mmdet_version", "2"))
    if version.split(".")[0] in ("0", "1"):
        raise CheckpointError(
            f"a file of mmdetection {version}, whose boxes and anchors were others; convert it with mmdetection's own "
            "tools/model_converters/upgrade_model_version.py first"
        )


def _is_caffe(metadata: Mapping[str, Any]) -> bool:
    """Whether the text of the training configuration, which files of training runs hold, names a trunk of caffe style."""
    text = str(metadata.get("config", "")) + str(metadata.get("cfg", ""))
    return "style='caffe'" in text or 'style="caffe"' in text


def _join_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    keys = [f"bbox_head.scales.{level}.scale" for level in LEVELS]
    if not all(key in tensors for key in keys):
        return dict(tensors)
    rest = {key: value for key, value in tensors.items() if key not in keys}
    return {**rest, _SCALES: torch.stack([tensors[key] for key in keys])}
