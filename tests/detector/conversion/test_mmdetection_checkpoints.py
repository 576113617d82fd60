import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longshot.detector.conversion import mmdetection
from longshot.detector.conversion.foreign_files import ForeignFile
from longshot.detector.conversion.importing import import_checkpoint
from longshot.detector.errors import CheckpointError
from longshot.detector.inference import load_model

K, WIDTH = 4, 32
HEADS = {"retinanet": ("retina_cls", "retina_reg"), "atss": ("atss_cls", "atss_reg")}


@pytest.fixture(scope="module", params=["retinanet", "atss"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def state(kind, foreign) -> dict[str, Tensor]:
    """The keys of mmdetection's RetinaNet or ATSS on ResNet-18, its pyramid and head 32 wide; random weights."""
    made, atss = foreign.RandomState(), kind == "atss"
    made.trunk(
        18, stem=("backbone.conv1", "backbone.bn1"), layer=lambda s, b: f"backbone.layer{s}.{b}", names=foreign.RESNET
    )
    for i, channels in enumerate(foreign.CHANNELS[18][1:]):
        made.conv(f"neck.lateral_convs.{i}.conv", WIDTH, channels, 1, bias=True)
    for i in range(5):
        inputs = 512 if i == 3 and not atss else WIDTH  # P6 of RetinaNet: of C5; of ATSS: of P5
        made.conv(f"neck.fpn_convs.{i}.conv", WIDTH, inputs, 3, bias=True)
    for tower, i in itertools.product(("cls", "reg"), range(4)):
        made.conv(f"bbox_head.{tower}_convs.{i}.conv", WIDTH, WIDTH, 3, bias=not atss)
        if atss:
            made.norm(f"bbox_head.{tower}_convs.{i}.gn", WIDTH, statistics=False)
    anchors = 1 if atss else 9
    made.conv(f"bbox_head.{HEADS[kind][0]}", anchors * K, WIDTH, 3, bias=True)
    made.conv(f"bbox_head.{HEADS[kind][1]}", anchors * 4, WIDTH, 3, bias=True, gain=1.4 if atss else 0.08)
    if atss:
        made.conv("bbox_head.atss_centerness", 1, WIDTH, 3, bias=True)
        made.state |= {f"bbox_head.scales.{i}.scale": torch.tensor(0.8 + 0.1 * i) for i in range(5)}
    return made.state


@pytest.fixture
def saved(state, tmp_path) -> Path:
    path = tmp_path / "epoch_12.pth"
    torch.save({"meta": {"mmdet_version": "2.28.2", "CLASSES": ("a",)}, "state_dict": state}, path)
    return path


def their_boxes(kind: str, deltas: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Boxes of (R, 4) raw outputs: anchors centered at whole strides, by ratio, then scale; decoded by loops."""
    octaves = [8.0] if kind == "atss" else [4 * 2 ** (i / 3) for i in range(3)]
    ratios = [1.0] if kind == "atss" else [0.5, 1.0, 2.0]
    stds = (0.1, 0.1, 0.2, 0.2) if kind == "atss" else (1, 1, 1, 1)
    boxes = []
    for row, (y, x, ratio, scale) in enumerate(itertools.product(range(height), range(width), ratios, octaves)):
        w, h = stride * scale / math.sqrt(ratio), stride * scale * math.sqrt(ratio)
        dx, dy, dw, dh = (float(d) * std for d, std in zip(deltas[row], stds, strict=True))
        limit = abs(math.log(16 / 1000))
        w2, h2 = (side * math.exp(min(max(d, -limit), limit)) / 2 for side, d in ((w, dw), (h, dh)))
        cx, cy = x * stride + dx * w, y * stride + dy * h
        boxes.append([cx - w2, cy - h2, cx + w2, cy + h2])
    return torch.tensor(boxes, dtype=torch.float64)


@torch.no_grad()
def test_our_network_computes_what_theirs_does(kind, state, saved, annotations, tmp_path, foreign, picture):
    done = import_checkpoint(saved, tmp_path / "ours.pt", annotations=annotations(K))
    assert done.source == "mmdetection"
    assert {row.status for row in done.rows} == {"matched"}
    model = load_model(tmp_path / "ours.pt")
    net, atss = foreign.Reference({key: value.double() for key, value in state.items()}), kind == "atss"
    mean, std = torch.tensor([123.675, 116.28, 103.53]).double(), torch.tensor([58.395, 57.12, 57.375]).double()
    features = net.trunk(
        ((picture - mean[:, None, None]) / std[:, None, None])[None], stem=("backbone.conv1", "backbone.bn1"),
        layer=lambda s, b: f"backbone.layer{s}.{b}", names=foreign.RESNET, counts=(2, 2, 2, 2),
    )  # fmt: skip
    levels, _ = net.pyramid(
        features, lateral=lambda i: f"neck.lateral_convs.{i - 3}.conv", output=lambda i: f"neck.fpn_convs.{i - 3}.conv"
    )
    levels.append(net.conv("neck.fpn_convs.3.conv", levels[2] if atss else features[2], stride=2))
    levels.append(net.conv("neck.fpn_convs.4.conv", levels[3], stride=2))
    network = model.network
    # In double: GroupNorm over the single cell of P7 makes much of rounding.
    ours, anchors = network.double()(network.preprocess([picture], (64, 96)).double()), network.anchors((64, 96))
    for i, level in enumerate(levels):
        towers = {}
        for tower in ("cls", "reg"):
            x = level
            for j in range(4):
                x = net.conv(f"bbox_head.{tower}_convs.{j}.conv", x)
                if atss:
                    groups = network.head.class_tower[j].norm.num_groups
                    x = net.group_norm(f"bbox_head.{tower}_convs.{j}.gn", x, groups=groups)
                x = x.relu()
            towers[tower] = x
        logits = foreign.as_rows(net.conv(f"bbox_head.{HEADS[kind][0]}", towers["cls"]), K)
        assert logits.std() > 0.1
        torch.testing.assert_close(ours.logits[i][0], logits, rtol=0, atol=1e-4)
        raw = net.conv(f"bbox_head.{HEADS[kind][1]}", towers["reg"])
        raw = raw * net.state[f"bbox_head.scales.{i}.scale"] if atss else raw
        deltas = foreign.as_rows(raw, 4)
        assert 0.05 < deltas.std() < 3
        boxes = their_boxes(kind, deltas, *level.shape[2:], stride=8 * 2**i)
        ours_boxes = model.postprocess.coding.decode(ours.deltas[i][0], anchors[i])
        sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True).clamp(min=8 * 2**i)
        torch.testing.assert_close(ours_boxes / sides, boxes / sides, rtol=0, atol=1e-3)
        if atss:
            centerness = foreign.as_rows(net.conv("bbox_head.atss_centerness", towers["reg"]), 1)[:, 0]
            torch.testing.assert_close(ours.quality[i][0], centerness, rtol=0, atol=1e-4)


def test_resizing_and_post_processing_are_those_of_their_configurations(kind, state):
    settings = mmdetection.to_ours(ForeignFile(state, {}), range(K)).settings
    assert settings["data"] == {"antialias": False}
    assert settings.get("test", {}).get("nms_threshold", 0.5) == (0.6 if kind == "atss" else 0.5)


def test_a_trunk_of_caffe_style_is_told_by_the_configuration_in_the_file(state):
    weight = state["backbone.conv1.weight"]
    for key in ("config", "cfg"):
        converted = mmdetection.to_ours(ForeignFile(state, {key: "backbone=dict(\n  style='caffe')"}), range(K))
        assert converted.settings["model"]["backbone"]["stride_in_1x1"]
        expected = weight.flip(1) * torch.tensor([58.395, 57.12, 57.375])[:, None, None]
        torch.testing.assert_close(converted.weights["backbone.conv1.weight"], expected)
    plain = mmdetection.to_ours(ForeignFile(state, {"config": "style='pytorch'"}), range(K))
    assert torch.equal(plain.weights["backbone.conv1.weight"], weight)
    assert "stride_in_1x1" not in plain.settings["model"]["backbone"]


def test_files_of_version_1_are_refused(state):
    with pytest.raises(CheckpointError, match=r"mmdetection 1\.2\.0, whose boxes .*upgrade_model_version\.py first"):
        mmdetection.to_ours(ForeignFile(state, {"mmdet_version": "1.2.0"}), range(K))
