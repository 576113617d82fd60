from collections import OrderedDict

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from longshot.detector.model.retinanet import FPN

IN_CHANNELS = (6, 10, 14)


def features(height: int, width: int) -> list[torch.Tensor]:
    sizes = [(-(-height // s), -(-width // s)) for s in (8, 16, 32)]
    return [torch.randn(2, c, *size) for c, size in zip(IN_CHANNELS, sizes, strict=True)]


@pytest.mark.parametrize("size", [(96, 160), (160, 96), (100, 36)])
@pytest.mark.parametrize("p6_from", ["c5", "p5"])
def test_pyramid_equals_torchvision(size, p6_from):
    channels = 8
    theirs = FeaturePyramidNetwork(
        IN_CHANNELS, channels, extra_blocks=LastLevelP6P7(IN_CHANNELS[-1] if p6_from == "c5" else channels, channels)
    )
    ours = FPN(IN_CHANNELS, channels=channels, p6_from=p6_from)
    pairs = [(ours.lateral[f"c{i + 3}"], theirs.inner_blocks[i][0]) for i in range(3)]
    pairs += [(ours.output[f"p{i + 3}"], theirs.layer_blocks[i][0]) for i in range(3)]
    pairs += [(ours.p6, theirs.extra_blocks.p6), (ours.p7, theirs.extra_blocks.p7)]
    for our_conv, their_conv in pairs:
        torch.nn.init.normal_(their_conv.bias)
        our_conv.load_state_dict(their_conv.state_dict())
    maps = features(*size)
    expected = theirs(OrderedDict(zip("012", maps, strict=True)))
    for our_level, their_level in zip(ours(maps), expected.values(), strict=True):
        torch.testing.assert_close(our_level, their_level)


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_levels_have_their_strides_and_no_idle_parameters(levels):
    fpn = FPN(IN_CHANNELS, channels=8, levels=levels)
    pyramid = fpn(features(96, 224))
    assert fpn.strides == (8, 16, 32, 64, 128)[:levels]
    assert [tuple(p.shape) for p in pyramid] == [(2, 8, -(-96 // s), -(-224 // s)) for s in fpn.strides]
    sum(p.sum() for p in pyramid).backward()
    assert all(p.grad is not None for p in fpn.parameters())


@pytest.mark.parametrize("p7_relu", [True, False])
@pytest.mark.parametrize(("p6_from", "channels_in"), [("c5", 14), ("p5", 8), ("c5_lateral", 8)])
def test_p6_and_p7_are_made_of_what_is_asked_for(p6_from, channels_in, p7_relu):
    fpn, maps = FPN(IN_CHANNELS, channels=8, p6_from=p6_from, p7_relu=p7_relu), features(96, 160)
    for module in (fpn.p6, fpn.p7):
        torch.nn.init.normal_(module.bias)
    *_, p5, p6, p7 = fpn(maps)
    source = {"c5": maps[2], "p5": p5, "c5_lateral": fpn.lateral["c5"](maps[2])}[p6_from]
    assert fpn.p6.in_channels == channels_in
    assert torch.equal(p6, fpn.p6(source))
    assert (p6 < 0).any()
    assert torch.equal(p7, fpn.p7(p6.clamp(min=0) if p7_relu else p6))


@pytest.mark.parametrize(
    ("init", "deviation", "furthest"),
    [
        ("kaiming_uniform", (1 / 256) ** 0.5, 3**0.5),  # gain 1 by the 256 inputs; a flat distribution ends at sqrt(3)
        ("xavier_normal", (2 / (256 + 32)) ** 0.5, 5.0),  # by inputs and outputs
    ],
)
def test_weights_start_as_asked_for(init, deviation, furthest):
    torch.manual_seed(0)
    fpn = FPN((256, 10, 14), channels=32, init=init)
    weight = fpn.lateral["c3"].weight
    assert weight.std().item() == pytest.approx(deviation, rel=0.05)
    assert furthest / 2 * deviation < weight.abs().max() <= furthest * deviation
    assert all(not parameter.any() for name, parameter in fpn.named_parameters() if name.endswith("bias"))


def test_keys_are_readable():
    keys = set(FPN(IN_CHANNELS, channels=8).state_dict())
    assert {"lateral.c3.weight", "output.p5.bias", "p6.weight", "p7.bias"} <= keys
    assert len(keys) == 16


def test_other_numbers_of_levels_are_an_error():
    with pytest.raises(ValueError, match="levels is 6; expected 3"):
        FPN(IN_CHANNELS, levels=6)
