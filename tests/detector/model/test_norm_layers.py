import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from longshot.detector.model.backbone import NORMS, group_norm


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(2048, 32), (256, 32), (96, 32), (64, 32), (48, 16), (32, 16), (16, 8), (6, 2), (7, 1), (1, 1)],
)
def test_group_norm_has_32_groups_or_as_many_as_leave_two_channels_in_each(channels, groups):
    assert group_norm(channels).num_groups == groups


@pytest.fixture
def frozen_stats():
    """A layer of two channels as it is built, with statistics and affine parameters of its own."""
    norm = NORMS["frozen_stats"](2)
    values = {"running_mean": [1.0, -2.0], "running_var": [4.0, 0.25], "weight": [3.0, -1.0], "bias": [0.5, 1.0]}
    norm.load_state_dict({key: torch.tensor(value) for key, value in values.items()}, strict=False)
    return norm


def test_frozen_statistics_normalize_in_training_too_and_never_move(frozen_stats):
    images = torch.randn(2, 2, 3, 4)
    expected = FrozenBatchNorm2d(2)
    expected.load_state_dict({k: v for k, v in frozen_stats.state_dict().items() if k != "num_batches_tracked"})
    before = {key: value.clone() for key, value in frozen_stats.named_buffers()}
    for _ in range(2):  # as built, then after the call of a training loop
        assert not frozen_stats.training
        torch.testing.assert_close(frozen_stats(images), expected(images))
        nn.Sequential(frozen_stats).train()
    assert all(torch.equal(value, before[key]) for key, value in frozen_stats.named_buffers())


def test_the_affine_part_of_frozen_statistics_is_trained(frozen_stats):
    # (5 - 1) / sqrt(4) = 2 and (-1 + 2) / sqrt(0.25) = 2, in each of two pixels
    images = torch.tensor([5.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2).requires_grad_()
    outputs = frozen_stats(images)
    outputs.sum().backward()
    torch.testing.assert_close(outputs[0, :, 0, 0], torch.tensor([6.5, -1]), rtol=1e-4, atol=0)
    torch.testing.assert_close(frozen_stats.weight.grad, torch.tensor([4.0, 4]), rtol=1e-4, atol=0)
    assert frozen_stats.bias.grad.tolist() == [2, 2]
