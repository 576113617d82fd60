import itertools
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from longshot.detector.conversion import detectron2
from longshot.detector.conversion.foreign_files import ForeignFile, read_foreign
from longshot.detector.conversion.importing import import_checkpoint
from longshot.detector.errors import CheckpointError
from longshot.detector.inference import load_model

K, WIDTH = 4, 32
SIZES, RATIOS = [1.0, 2 ** (1 / 3), 2 ** (2 / 3)], [0.5, 1.0, 2.0]
NAMES = {
    **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)}, **{f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)},
    "shortcut": "shortcut", "shortcut_bn": "shortcut.norm",
}  # fmt: skip
STEM = ("backbone.bottom_up.stem.conv1", "backbone.bottom_up.stem.conv1.norm")


def layer(stage: int, block: int) -> str:
    return f"backbone.bottom_up.res{stage + 1}.{block}"


@pytest.fixture(scope="module")
def retinanet(foreign) -> dict[str, Tensor]:
    """The keys of the model zoo's retinanet_R_50_FPN, its pyramid and head 32 wide, for four classes; random weights."""
    made = foreign.RandomState()
    made.trunk(50, stem=STEM, layer=layer, names=NAMES, counter=False, pixels=60.0)
    for i, channels in zip((3, 4, 5), foreign.CHANNELS[50][1:], strict=True):
        made.conv(f"backbone.fpn_lateral{i}", WIDTH, channels, 1, bias=True, gain=0.7)
        made.conv(f"backbone.fpn_output{i}", WIDTH, WIDTH, 3, bias=True)
    made.conv("backbone.top_block.p6", WIDTH, 2048, 3, bias=True)
    made.conv("backbone.top_block.p7", WIDTH, WIDTH, 3, bias=True)
    for tower in ("cls", "bbox"):
        for i in range(4):
            made.conv(f"head.{tower}_subnet.{2 * i}", WIDTH, WIDTH, 3, bias=True)
    made.conv("head.cls_score", 9 * K, WIDTH, 3, bias=True, gain=5.0)
    made.conv("head.bbox_pred", 9 * 4, WIDTH, 3, bias=True)
    return made.state


@pytest.fixture
def saved(retinanet, tmp_path) -> Path:
    """The file as the model zoo has it."""
    path = tmp_path / "model_final.pkl"
    arrays = {key: value.numpy() for key, value in retinanet.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    return path


def their_anchors(height: int, width: int, stride: int) -> Tensor:
    """Of modeling/anchor_generator.py: centers at whole strides; by size, then by ratio."""
    boxes = []
    for y, x, size, ratio in itertools.product(range(height), range(width), SIZES, RATIOS):
        w = math.sqrt((4 * stride * size) ** 2 / ratio)
        cx, cy, h = x * stride, y * stride, ratio * w
        boxes.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return torch.tensor(boxes)


@torch.no_grad()
def their_levels(net, pixels: Tensor, counts) -> list[Tensor]:
    """P3 … P7 of (1, 3, H, W) BGR pixels in 0 … 255 without their mean."""
    features = net.trunk(pixels, stem=STEM, layer=layer, names=NAMES, counts=counts, strides_in_first=True)
    levels, _ = net.pyramid(
        features, lateral=lambda i: f"backbone.fpn_lateral{i}", output=lambda i: f"backbone.fpn_output{i}"
    )
    levels.append(net.conv("backbone.top_block.p6", features[2], stride=2))
    levels.append(net.conv("backbone.top_block.p7", levels[-1].relu(), stride=2))
    return levels


@torch.no_grad()
def test_our_network_computes_what_theirs_does(retinanet, saved, annotations, tmp_path, foreign, picture):
    done = import_checkpoint(saved, tmp_path / "ours.pt", annotations=annotations(K))
    assert done.source == "detectron2"
    assert {row.status for row in done.rows} == {"matched"}
    model = load_model(tmp_path / "ours.pt")
    ours, anchors = model.network(model.network.preprocess([picture], (64, 96))), model.network.anchors((64, 96))
    net = foreign.Reference(retinanet)
    pixels = picture.flip(0).float() - torch.tensor([103.53, 116.28, 123.675])[:, None, None]
    for i, level in enumerate(their_levels(net, pixels[None], foreign.COUNTS[50])):
        rows = {}
        for tower, last in (("cls", "cls_score"), ("bbox", "bbox_pred")):
            x = level
            for j in range(4):
                x = net.conv(f"head.{tower}_subnet.{2 * j}", x).relu()
            rows[last] = foreign.as_rows(net.conv(f"head.{last}", x), K if tower == "cls" else 4)
        their_boxes = their_anchors(*level.shape[2:], stride=8 * 2**i)
        # The same boxes in another order: row r of theirs is row place[r] of ours.
        distance = (their_boxes[:, None] - anchors[i][None]).abs().amax(dim=-1)
        place = distance.argmin(dim=1)
        assert distance.amin(dim=1).max() < 1e-3
        assert sorted(place.tolist()) == list(range(len(place)))
        assert rows["cls_score"].std() > 0.1
        torch.testing.assert_close(ours.logits[i][0][place], rows["cls_score"], rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(ours.deltas[i][0][place], rows["bbox_pred"], rtol=1e-4, atol=2e-4)


def test_pixels_are_those_that_the_file_names(retinanet):
    # RGB with a deviation, as torchvision's weights want them: the first convolution stays as it is, up to rounding.
    pixels = {
        "pixel_mean": torch.tensor([123.675, 116.28, 103.53])[:, None, None],
        "pixel_std": torch.tensor([58.395, 57.12, 57.375])[:, None, None],
    }
    converted = detectron2.to_ours(ForeignFile(retinanet | pixels, {}), range(K))
    torch.testing.assert_close(converted.weights["backbone.conv1.weight"], retinanet[f"{STEM[0]}.weight"])
    assert converted.unused.keys() == pixels.keys()
    assert converted.notes[0].startswith("pixels: as the file says")


def test_other_pixel_means_are_refused(retinanet):
    pixels = {"pixel_mean": torch.tensor([127.5, 127.5, 127.5]), "pixel_std": torch.ones(3)}
    with pytest.raises(CheckpointError, match=r"pixel means \[127\.5, 127\.5, 127\.5\]; only ImageNet's"):
        detectron2.to_ours(ForeignFile(retinanet | pixels, {}), range(K))


def test_towers_with_norms_are_told_from_towers_without(retinanet, foreign):
    state = {key: value for key, value in retinanet.items() if "_subnet" not in key}
    made = foreign.RandomState()
    for tower, i in itertools.product(("cls", "bbox"), range(4)):
        made.conv(f"head.{tower}_subnet.{3 * i}", WIDTH, WIDTH, 3, bias=True)
        made.norm(f"head.{tower}_subnet.{3 * i + 1}", WIDTH, statistics=False)
    converted = detectron2.to_ours(ForeignFile(state | made.state, {}), range(K))
    assert converted.settings["model"]["head"]["norm"] == "gn"
    assert torch.equal(converted.weights["head.box_tower.2.norm.bias"], made.state["head.bbox_subnet.7.bias"])
    assert not converted.unused


def test_arrays_are_read_whatever_pickled_them(retinanet, tmp_path):
    arrays = {key: value.numpy() for key, value in list(retinanet.items())[:3]} | {"scalar": np.float32(2.5)}
    for protocol in range(2, 6):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps({"model": arrays}, protocol=protocol))
        tensors = read_foreign(path).tensors
        assert tensors.keys() == arrays.keys()
        for key, value in arrays.items():
            assert torch.equal(tensors[key], torch.as_tensor(value))
