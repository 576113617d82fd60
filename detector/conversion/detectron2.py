"""RetinaNets of detectron2's model zoo.

Facts from its code: modeling/meta_arch/retinanet.py, modeling/anchor_generator.py, modeling/backbone/resnet.py and fpn.py,
configs/Base-RetinaNet.yaml.
"""

from collections.abc import Collection, Sequence

from ..config.yaml_files import merge
from .caffe import CAFFE_MEAN, CAFFE_STD, fit_to_our_pixels
from .foreign_files import ForeignFile
from .keys import Converted, check_num_classes, convert, num_anchors, num_classes, reorder

RATIOS, SCALES = 3, 3
SETTINGS = {
    "model": {
        "backbone": {"frozen_stages": 2, "norm": "frozen_bn", "stride_in_1x1": True},
        "anchors": {"offset": 0.0},
    }
}
_BLOCK = {
    **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
    **{f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)},
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}
_STAGES, _MOST_BLOCKS = range(1, 5), 23
_PIXELS = ("pixel_mean", "pixel_std")  # buffers in old files


def recognizes(keys: Collection[str]) -> bool:
    """Whether these are the keys of a RetinaNet of detectron2."""
    return "head.cls_score.weight" in keys and "backbone.bottom_up.stem.conv1.weight" in keys


def modules(keys: Collection[str]) -> dict[str, str]:
    """Their module for each of ours."""
    period = 3 if "head.cls_subnet.1.weight" in keys else 2  # a Sequential: convolution, perhaps norm, ReLU
    return {
        "backbone.conv1": "backbone.bottom_up.stem.conv1",
        "backbone.bn1": "backbone.bottom_up.stem.conv1.norm",
        **{
            f"backbone.layer{stage}.{block}.{ours}": f"backbone.bottom_up.res{stage + 1}.{block}.{theirs}"
            for stage in _STAGES
            for block in range(_MOST_BLOCKS)
            for ours, theirs in _BLOCK.items()
        },
        **{f"fpn.lateral.c{i}": f"backbone.fpn_lateral{i}" for i in (3, 4, 5)},
        **{f"fpn.output.p{i}": f"backbone.fpn_output{i}" for i in (3, 4, 5)},
        **{f"fpn.p{i}": f"backbone.top_block.p{i}" for i in (6, 7)},
        **{f"head.class_tower.{i}.conv": f"head.cls_subnet.{period * i}" for i in range(4)},
        **{f"head.class_tower.{i}.norm": f"head.cls_subnet.{period * i + 1}" for i in range(4)},
        **{f"head.box_tower.{i}.conv": f"head.bbox_subnet.{period * i}" for i in range(4)},
        **{f"head.box_tower.{i}.norm": f"head.bbox_subnet.{period * i + 1}" for i in range(4)},
        "head.logits": "head.cls_score",
        "head.deltas": "head.bbox_pred",
    }


def to_ours(file: ForeignFile, category_ids: Sequence[int]) -> Converted:
    """A RetinaNet of detectron2: for RGB images, with the anchors of a location in our order."""
    converted = convert(file.tensors, modules(file.tensors.keys()))
    weights = converted.weights
    check_num_classes(weights, category_ids)
    mean, std = (file.tensors[key].flatten().tolist() if key in file.tensors else None for key in _PIXELS)
    weights["backbone.conv1.weight"] = fit_to_our_pixels(
        weights["backbone.conv1.weight"], mean=mean or CAFFE_MEAN, std=std or CAFFE_STD
    )
    notes = [
        f"pixels: {'as the file says' if mean else 'taken for BGR in 0 … 255, as in the model zoo'}; the first convolution "
        "now takes our normalized RGB",
        "strides: taken to be in the 1x1 convolutions (STRIDE_IN_1X1 of MSRA's ResNets), as in the model zoo",
    ]
    if num_anchors(weights) == RATIOS * SCALES:
        _reorder_anchors(weights)
        notes.append("anchors: theirs are ordered by scale, then ratio; re-ordered by ratio, then scale")
    return converted._replace(settings=merge(converted.settings, SETTINGS), notes=notes)


def _reorder_anchors(weights: dict) -> None:
    for layer, depth in (("logits", num_classes(weights)), ("deltas", 4)):
        for kind in ("weight", "bias"):
            key = f"head.{layer}.{kind}"
            weights[key] = reorder(weights[key], (SCALES, RATIOS, depth), (1, 0, 2))
