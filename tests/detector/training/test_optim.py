import math

import pytest
import torch
from torch import nn

from longshot.detector.training.optim import build_optimizer, learning_rate, moving_average, set_learning_rate


def rates(steps, **options):
    return [learning_rate(step, **{"lr": 0.1, "total_steps": 100, "name": "multi_step", **options}) for step in steps]


def test_warmup_is_linear_and_meets_the_schedule_without_a_jump():
    options = {"warmup_steps": 4, "warmup_factor": 0.2}
    assert rates([0, 1, 2, 3, 4, 5], **options) == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert rates([0, 1], warmup_steps=0) == [0.1, 0.1]


def test_milestones_multiply_once_each_from_their_step_on():
    found = rates([59, 60, 79, 80, 99], milestones=(60, 80), factor=0.1)
    assert found == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001])


def test_warmup_multiplies_a_milestone_inside_it():
    found = rates([0, 5, 10], milestones=(5,), factor=0.5, warmup_steps=10, warmup_factor=0)
    assert found == pytest.approx([0, 0.1 * 0.5 * 0.5, 0.05])


def test_cosine_goes_from_the_rate_to_the_final_factor():
    options = {"name": "cosine", "final_factor": 0.2}
    assert rates([0, 50, 100], **options) == pytest.approx([0.1, 0.06, 0.02])
    assert rates([25], **options) == pytest.approx([0.1 * (0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5)))])
    assert rates([0, 50, 100], name="cosine") == pytest.approx([0.1, 0.05, 0])
    last = rates([99], name="cosine")[0]  # the last step that is taken still moves the weights
    assert 0 < last < 0.1 * 0.001


def test_every_group_gets_the_same_rate():
    optimizer = build_optimizer(network(), name="sgd", lr=1.0, decay_norm_and_bias=False)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 1, bias=False))


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_weight_decay_leaves_vectors_alone_if_asked_to(name, kind):
    for decays, of_vectors in ((True, 0.3), (False, 0.0)):
        optimizer = build_optimizer(network(), name=name, lr=1.0, weight_decay=0.3, decay_norm_and_bias=decays)
        assert type(optimizer) is kind
        decay = {p.ndim > 1: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert decay == {True: 0.3, False: of_vectors}
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 5


def test_frozen_parameters_are_left_out():
    net = network()
    net[0].requires_grad_(False)
    net[1].requires_grad_(False)
    optimizer = build_optimizer(net, name="sgd", lr=1.0, momentum=0.7)
    assert [group["params"] for group in optimizer.param_groups] == [[net[2].weight]]
    assert optimizer.param_groups[0]["momentum"] == 0.7


def test_a_moving_average_forgets_its_first_weights_sooner_than_its_decay_says():
    old, new = torch.tensor([0.0]), torch.tensor([1.0])
    assert moving_average(old, new, torch.tensor(0), decay=0.9998).item() == pytest.approx(0.9)  # 1 - 1 / 10
    assert moving_average(old, new, torch.tensor(90), decay=0.9998).item() == pytest.approx(0.09)  # 1 - 91 / 100
    assert moving_average(old, new, torch.tensor(10**6), decay=0.9998).item() == pytest.approx(0.0002, rel=1e-3)
