import pytest
import torch
from torch import nn

from longshot.detector.model.head import DenseHead, flatten_level


def test_flatten_level_keeps_anchor_and_class_apart():
    # A=1, K=A or H=W would hide a swapped layout; so would the last channel, a fixed point of the swap
    maps = torch.arange(2 * 3 * 5 * 2 * 4.0).view(2, 3 * 5, 2, 4)  # N=2, A=3, K=5, H=2, W=4
    flat = flatten_level(maps, 5)
    assert flat.shape == (2, 2 * 4 * 3, 5)
    n, a, k, y, x = 1, 2, 1, 1, 3
    assert flat[n, (y * 4 + x) * 3 + a, k] == maps[n, a * 5 + k, y, x]


def test_flatten_level_of_channels_last_maps_is_the_same_and_no_copy():
    maps = torch.rand(2, 3 * 5, 2, 4)
    channels_last = maps.contiguous(memory_format=torch.channels_last)
    flat = flatten_level(channels_last, 5)
    assert torch.equal(flat, flatten_level(maps, 5))
    assert flat.data_ptr() == channels_last.data_ptr()


def make_head(**options) -> DenseHead:
    return DenseHead(8, **{"num_classes": 5, "num_anchors": 3, "num_convs": 2, "width": 16, **options})


def test_outputs_have_one_row_per_anchor_of_each_level():
    outputs = make_head()([torch.rand(2, 8, 4, 6), torch.rand(2, 8, 2, 3)])
    assert [tuple(level.shape) for level in outputs.logits] == [(2, 72, 5), (2, 18, 5)]
    assert [tuple(level.shape) for level in outputs.deltas] == [(2, 72, 4), (2, 18, 4)]


def test_scores_start_at_the_prior():
    head = make_head(prior=0.02)
    assert torch.allclose(head.logits.bias.sigmoid(), torch.tensor(0.02))
    assert torch.count_nonzero(head.deltas.bias) == 0
    scores = head([torch.rand(1, 8, 4, 4)]).logits[0].sigmoid()
    assert (scores - 0.02).abs().max() < 0.005


def test_convolutions_start_with_standard_deviation_of_a_hundredth():
    head = DenseHead(64, num_classes=80, num_anchors=9, num_convs=1, width=64)
    for conv in (head.class_tower[0].conv, head.box_tower[0].conv, head.logits):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_towers_are_separate():
    head = make_head()
    outputs = head([torch.rand(1, 8, 4, 4)])
    outputs.logits[0].sum().backward()
    assert all(p.grad is not None for p in head.class_tower.parameters())
    assert all(p.grad is None for p in head.box_tower.parameters())
    assert head.deltas.weight.grad is None


def test_the_head_is_the_same_on_every_level():
    head = make_head(norm="gn")
    level = torch.rand(1, 8, 4, 4)
    outputs = head([level, torch.rand(1, 8, 2, 2), level])
    assert torch.equal(outputs.logits[0], outputs.logits[2])
    assert torch.equal(outputs.deltas[0], outputs.deltas[2])


def test_group_norm_follows_each_convolution_which_then_has_no_bias():
    head = make_head(norm="gn", width=64)
    assert [type(layer) for layer in head.class_tower[1]] == [nn.Conv2d, nn.GroupNorm, nn.ReLU]
    assert head.class_tower[1].norm.num_groups == 32
    assert head.class_tower[1].conv.bias is None
    assert [type(layer) for layer in make_head().class_tower[1]] == [nn.Conv2d, nn.ReLU]
    assert make_head().class_tower[1].conv.bias is not None


def test_a_head_without_towers_predicts_from_the_pyramid():
    outputs = make_head(num_convs=0)([torch.rand(1, 8, 2, 2)])
    assert outputs.logits[0].shape == (1, 12, 5)


def test_keys_are_readable():
    keys = set(make_head(norm="gn").state_dict())
    assert {"class_tower.0.conv.weight", "box_tower.1.norm.bias", "logits.weight", "deltas.bias"} <= keys
    more = set(make_head(norm="gn", quality=True, scaled_levels=2).state_dict())
    assert more - keys == {"quality.weight", "quality.bias", "level_scales"}


# ---------------------------------------------------------------------------------- boxes of any depth, quality, scales


def pyramid() -> list[torch.Tensor]:
    """Two levels of two images."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 8, height, width, generator=generator) for height, width in [(4, 6), (2, 3)]]


def test_an_anchor_has_as_many_box_outputs_as_its_coding_needs():
    head, levels = make_head(box_depth=20), pyramid()
    outputs = head(levels)
    assert [tuple(level.shape) for level in outputs.deltas] == [(2, 72, 20), (2, 18, 20)]
    maps = head.deltas(head.box_tower(levels[0]))
    n, a, d, y, x = 1, 2, 7, 3, 1
    assert outputs.deltas[0][n, (y * 6 + x) * 3 + a, d] == maps[n, a * 20 + d, y, x]


def test_quality_is_a_logit_per_anchor_from_the_box_tower():
    head, levels = make_head(quality=True), pyramid()
    outputs = head(levels)
    assert [tuple(level.shape) for level in outputs.quality] == [(2, 72), (2, 18)]
    maps = head.quality(head.box_tower(levels[0]))
    n, a, y, x = 1, 2, 3, 1
    assert outputs.quality[0][n, (y * 6 + x) * 3 + a] == maps[n, a, y, x]
    assert torch.count_nonzero(head.quality.bias) == 0
    assert 0.005 < head.quality.weight.std() < 0.015
    assert make_head()(levels).quality is None


def test_each_level_scales_its_own_box_outputs_and_nothing_else():
    head, levels = make_head(scaled_levels=2, quality=True), pyramid()
    before = head(levels)
    with torch.no_grad():
        assert head.level_scales.tolist() == [1.0, 1.0]
        head.level_scales.copy_(torch.tensor([2.0, 0.5]))
    after = head(levels)
    for i, factor in enumerate([2.0, 0.5]):
        assert torch.equal(after.deltas[i], factor * before.deltas[i])
        assert torch.equal(after.logits[i], before.logits[i])
        assert torch.equal(after.quality[i], before.quality[i])
    (gradient,) = torch.autograd.grad(sum(level.sum() for level in after.deltas), head.level_scales)
    torch.testing.assert_close(gradient, torch.stack([level.detach().sum() for level in before.deltas]))


def test_scales_leave_the_type_of_box_outputs_alone():
    with torch.autocast("cpu", torch.bfloat16):
        outputs = make_head(scaled_levels=2, quality=True)(pyramid())
    assert {level.dtype for maps in outputs for level in maps} == {torch.bfloat16}


@pytest.mark.parametrize("norm", ["none", "gn"])
def test_recomputing_changes_no_bit_of_outputs_and_gradients(norm):
    levels, seen = pyramid(), []
    for recompute in (False, True):
        torch.manual_seed(0)
        head = make_head(norm=norm, quality=True, scaled_levels=2, box_depth=20, recompute=recompute)
        inputs = [level.clone().requires_grad_() for level in levels]
        outputs = head(inputs)
        # Of each map another function, so that each has its own gradient.
        loss = sum((i + 1) * level.square().sum() for i, maps in enumerate(outputs) for level in maps)
        loss.backward()
        assert all(p.grad is not None for p in head.parameters())
        gradients = [tensor.grad for tensor in (*inputs, *head.parameters())]
        seen.append([*(level for maps in outputs for level in maps), *gradients])
    assert all(map(torch.equal, *seen))
