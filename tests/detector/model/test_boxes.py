import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from longshot.detector.model.boxes import clip, decode, encode
from longshot.detector.model.legacy import clip_to_pixels


def random_boxes(n: int, seed: int) -> torch.Tensor:
    corners = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 100 - 20
    sides = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) * 50 + 0.5
    return torch.cat((corners, corners + sides), dim=1)


def test_encode_gives_shift_in_anchor_sides_and_log_growth():
    anchor = torch.tensor([[10.0, 20.0, 14.0, 30.0]])  # center (12, 25), 4 wide, 10 high
    box = torch.tensor([[13.0, 15.0, 21.0, 20.0]])  # center (17, 17.5), 8 wide, 5 high
    expected = torch.tensor([[5 / 4, -7.5 / 10, math.log(2), math.log(0.5)]])
    torch.testing.assert_close(encode(box, anchor), expected)


def test_decode_moves_and_grows_the_anchor():
    anchor = torch.tensor([[10.0, 20.0, 14.0, 30.0]])
    deltas = torch.tensor([[1.25, -0.75, math.log(2), math.log(0.5)]])
    torch.testing.assert_close(decode(deltas, anchor), torch.tensor([[13.0, 15.0, 21.0, 20.0]]))


def test_decode_undoes_encode():
    boxes, anchors = random_boxes(200, seed=0), random_boxes(200, seed=2)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes)


def test_boxes_and_anchors_broadcast_over_leading_dimensions():
    boxes, anchors = random_boxes(6, seed=0).view(2, 3, 4), random_boxes(3, seed=2)
    torch.testing.assert_close(encode(boxes, anchors)[1], encode(boxes[1], anchors))


def test_growth_is_limited_to_1000_over_16_and_shrinking_is_not():
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    left, top, right, bottom = decode(torch.tensor([[0.0, 0.0, 50.0, -5.0]]), anchor)[0].tolist()
    assert right - left == pytest.approx(1000, rel=1e-5)
    assert bottom - top == pytest.approx(16 * math.exp(-5), rel=1e-4)


def test_deltas_of_a_degenerate_network_decode_to_finite_boxes():
    anchor = torch.tensor([[0.0, 0.0, 512.0, 512.0]])
    assert decode(torch.full((1, 4), 1e4), anchor).isfinite().all()


def test_encode_and_decode_agree_with_torchvision():
    boxes, anchors = random_boxes(50, seed=0).float(), random_boxes(50, seed=2).float()
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    deltas = encode(boxes, anchors)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors), rtol=1e-6, atol=1e-6)
    assert torch.equal(decode(deltas * 3, anchors), coder.decode_single(deltas * 3, anchors))


def test_clip_uses_height_for_y_and_width_for_x():
    boxes = torch.tensor([[-5.0, -6.0, 500.0, 600.0], [10.0, 20.0, 30.0, 40.0], [210.0, 120.0, 230.0, 130.0]])
    expected = torch.tensor([[0.0, 0.0, 200.0, 100.0], [10.0, 20.0, 30.0, 40.0], [200.0, 100.0, 200.0, 100.0]])
    assert torch.equal(clip(boxes, (100, 200)), expected)


def test_clip_to_pixels_leaves_a_box_beyond_the_image_a_pixel_of_it():
    boxes = torch.tensor([[-9.0, -6.0, -5.0, 600.0], [10.0, 20.0, 30.0, 40.0], [210.0, 120.0, 230.0, 130.0]])
    expected = torch.tensor([[0.0, 0.0, 1.0, 100.0], [10.0, 20.0, 30.0, 40.0], [199.0, 99.0, 200.0, 100.0]])
    assert torch.equal(clip_to_pixels(boxes, (100, 200)), expected)
