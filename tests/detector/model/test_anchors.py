import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen

from longshot.detector.model.anchors import CACHED_SIZES, AnchorGenerator

STRIDES = (8, 16, 32, 64, 128)


def test_anchors_of_a_cell_by_hand():
    generator = AnchorGenerator(strides=(8,), base_size=4, ratios=(0.25, 1), scales=(1, 2))
    anchors = generator((8, 8))[0]
    # Middle of the cell (4, 4); ratio = height / width, outer; scale inner.
    expected = [(-28, -4, 36, 12), (-60, -12, 68, 20), (-12, -12, 20, 20), (-28, -28, 36, 36)]
    assert anchors.tolist() == [list(map(float, box)) for box in expected]


def test_rows_are_cells_in_reading_order_then_anchors():
    generator = AnchorGenerator(strides=(8, 16), ratios=(0.5, 1, 2), scales=(1, 1.5))
    level = generator((32, 48))[1]  # a map of 2 x 3 cells
    assert level.shape == (2 * 3 * 6, 4)
    y, x, a = 1, 2, 4
    left, top, right, bottom = level[(y * 3 + x) * 6 + a].tolist()
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((2.5 * 16, 1.5 * 16))
    assert (bottom - top) / (right - left) == pytest.approx(2)  # a = 4: ratio 2, scale 1
    assert (bottom - top) * (right - left) == pytest.approx(64**2)


def test_area_depends_on_scale_and_stride_but_not_on_ratio():
    generator = AnchorGenerator(strides=STRIDES)
    for stride, level in zip(STRIDES, generator((128, 128)), strict=True):
        areas = ((level[:9, 2:] - level[:9, :2]).prod(dim=1)).view(3, 3)
        expected = torch.tensor([(4 * stride * 2 ** (i / 3)) ** 2 for i in range(3)]).expand(3, 3)
        torch.testing.assert_close(areas, expected)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_first_anchor_is_centered_at_the_offset(offset):
    level = AnchorGenerator(strides=(16,), ratios=(1.0,), scales=(1.0,), offset=offset)((32, 32))[0]
    assert ((level[0, :2] + level[0, 2:]) / 2).tolist() == [16 * offset, 16 * offset]


def test_map_sizes_are_rounded_up():
    levels = AnchorGenerator(strides=STRIDES)((100, 260))
    assert [len(level) for level in levels] == [9 * math.ceil(100 / s) * math.ceil(260 / s) for s in STRIDES]


@pytest.mark.parametrize("padded_size", [(800, 1344), (1344, 800), (96, 160), (800, 800)])
def test_torchvision_style_equals_torchvision(padded_size):
    theirs = _default_anchorgen()
    assert isinstance(theirs, TorchvisionAnchorGenerator)
    maps = [torch.zeros(1, 1, -(-padded_size[0] // s), -(-padded_size[1] // s)) for s in STRIDES]
    expected = theirs(ImageList(torch.zeros(1, 3, *padded_size), [padded_size]), maps)[0]
    ours = AnchorGenerator(strides=STRIDES, offset=0, style="torchvision")(padded_size)
    assert torch.equal(torch.cat(ours), expected)


def test_legacy_style_rounds_the_sides_of_one_stride():
    anchors = AnchorGenerator(strides=(8, 16), scales=(1.0, 1.5), style="legacy")((16, 16))
    sides = [(level[:6, 2:] - level[:6, :2]).tolist() for level in anchors]
    # Stride 8: 11 x 6, 8 x 8, 6 x 12; stride 16: 23 x 12, 16 x 16, 11 x 22. Four times that, and half as much again.
    assert sides[0] == [[44, 24], [66, 36], [32, 32], [48, 48], [24, 48], [36, 72]]
    assert sides[1] == [[92, 48], [138, 72], [64, 64], [96, 96], [44, 88], [66, 132]]


def test_legacy_anchors_are_those_of_the_official_code():
    # United-Perception 52aaeb9 on a CPU; inclusive corners, the anchors of the first cell.
    with np.load(Path(__file__).parents[2] / "fixtures" / "assign_maxiou_9anchors_offset1.npz") as official:
        expected = [torch.from_numpy(official[f"base_anchors_l{i}"]) + torch.tensor([0, 0, 1, 1]) for i in range(5)]
    ours = AnchorGenerator(strides=STRIDES, scales=[2 ** (i / 3) for i in range(3)], style="legacy")((128, 128))
    for level, base in zip(ours, expected, strict=True):
        torch.testing.assert_close(level[:9], base.float(), rtol=1e-5, atol=1e-3)


def test_anchors_made_in_inference_mode_can_be_used_in_training():
    generator = AnchorGenerator(strides=(8,))
    with torch.inference_mode():
        generator((16, 16))
    anchors = generator((16, 16))[0]
    weight = torch.ones(4, requires_grad=True)
    (weight * anchors).sum().backward()  # saves the anchors for the backward pass
    assert torch.equal(weight.grad, anchors.sum(dim=0))


def test_anchors_are_remembered_for_a_limited_number_of_sizes():
    generator = AnchorGenerator(strides=(8,))
    first = generator((8, 8))[0]
    assert generator((8, 8))[0] is first
    for i in range(CACHED_SIZES):
        generator((8, 16 + 8 * i))
    assert generator((8, 8))[0] is not first
    assert len(generator._cache) == CACHED_SIZES


def test_changing_the_returned_list_does_not_change_the_generator():
    generator = AnchorGenerator(strides=(8, 16))
    generator((16, 16)).pop()
    assert len(generator((16, 16))) == 2
