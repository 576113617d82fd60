"""What the plan says is sent, beside what a real step hands to torch.distributed."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from longshot.datasets.loading.batches import Batch
from longshot.datasets.loading.dataset import Targets
from longshot.detector.build import build_criterion, build_network
from longshot.detector.training.optim import build_optimizer
from longshot.detector.training.state import Run
from longshot.detector.training.step import optimize
from longshot.tools.planning.communication import Collective, collectives

K, SIZE = 50, (64, 64)


@pytest.fixture
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def handed_over(config, network, cpu, monkeypatch):
    """Bytes of the buckets of gradients, and of each all-reduce of a step in two passes."""
    run = Run(
        network,
        build_criterion(config, [1] * K, 1),
        build_optimizer(network, name="sgd", lr=1e-9),
        GradScaler(enabled=False),
    )
    buckets, reduced, all_reduce = [], [], dist.all_reduce

    def hook(state, bucket):
        buckets.append(bucket.buffer().nbytes)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def counted(tensor, *arguments, **options):
        reduced.append(tensor.nbytes)
        return all_reduce(tensor, *arguments, **options)

    model = DistributedDataParallel(network)
    model.register_comm_hook(None, hook)
    monkeypatch.setattr(dist, "all_reduce", counted)
    images, target = (
        [torch.zeros(3, *SIZE, dtype=torch.uint8)] * 2,
        Targets(torch.tensor([[5.0, 5, 40, 40]]), torch.tensor([3]), torch.zeros(0, 4)),
    )
    batch = Batch(images, [target] * 2, [0] * 2, [0] * 2, [SIZE] * 2, [SIZE] * 2)
    optimize(run, model, batch, cpu, images_per_pass=1, precision="fp32", clip_norm=1.0)
    return buckets, reduced, run.criterion


@pytest.mark.parametrize("weighted", [False, True])
def test_a_real_step_hands_over_what_is_planned(weighted, alone, make_config, cpu, monkeypatch):
    different = {"model": {"head": {"quality": "iou"}}, "loss": {"box_weighting": "quality"}} if weighted else {}
    config = make_config("nowhere", different)
    network = build_network(config.model, K, pretrained=False).train()
    buckets, reduced, criterion = handed_over(config, network, cpu, monkeypatch)
    planned = {message.name: message for message in collectives(network, criterion, passes=2)}
    gradients, sums, numbers = (
        planned.pop(name) for name in ("gradients", "sums per class (float64)", "counts, losses, norms")
    )
    assert list(planned) == ["buffers"]
    # A single process reduces every pass; two would accumulate the first one.
    assert sum(buckets) == 2 * gradients.size
    # In the first pass of all they come in one bucket; then DistributedDataParallel knows in which order they get ready.
    assert len(buckets) == 1 + gradients.count
    assert sums.size == 2 * K * 8
    reduced.remove(sums.size)
    assert (sum(reduced), len(reduced)) == (numbers.size, numbers.count)


def test_full_buckets_leave_and_the_last_one_as_it_is(make_config):
    criterion = build_criterion(make_config(), [1] * K, 1)
    layers = [nn.Linear(entries, 1, bias=False) for entries in (1, 26 * 2**18, 24 * 2**18, 2**18 - 1, 2)]
    # From the last layer on: 8 bytes and 4 less than 1 MiB; 24 and 26 MiB; 4 bytes.
    assert collectives(nn.Sequential(*layers), criterion, passes=1)[0].count == 3


@pytest.mark.parametrize(("norm", "calls"), [("frozen_bn", 1), ("bn", 2)])  # bn counts its batches, in int64
def test_buffers_are_sent_type_by_type(norm, calls, make_config):
    config = make_config("nowhere", {"model": {"backbone": {"norm": norm}}})
    network = build_network(config.model, K, pretrained=False)
    buffers = collectives(network, build_criterion(config, [1] * K, 1), passes=1)[1]
    assert (buffers.name, buffers.count) == ("buffers", calls)
    assert buffers.size == sum(buffer.nbytes for buffer in network.buffers())


def test_losses_without_sums_send_none(make_config):
    config = make_config("nowhere", {"loss": {"classification": {"name": "focal"}}})
    network = build_network(config.model, K, pretrained=False)
    names = [message.name for message in collectives(network, build_criterion(config, [1] * K, 1), passes=1)]
    assert names == ["gradients", "buffers", "counts, losses, norms"]


def test_frozen_weights_are_not_sent(make_config):
    config = make_config("nowhere", {"model": {"backbone": {"frozen_stages": 2}}})
    network = build_network(config.model, K, pretrained=False)
    sent = collectives(network, build_criterion(config, [1] * K, 1), passes=1)[0].size
    frozen = [
        *network.backbone.conv1.parameters(),
        *network.backbone.bn1.parameters(),
        *network.backbone.layer1.parameters(),
    ]
    assert sent == sum(p.nbytes for p in network.parameters()) - sum(p.nbytes for p in frozen)


def test_sync_bn_by_hand(make_config):
    network = nn.Sequential(nn.SyncBatchNorm(16), nn.SyncBatchNorm(64), nn.SyncBatchNorm(8).eval())
    forward, backward = collectives(network, build_criterion(make_config(), [1] * K, 1), passes=3)[-2:]
    # Mean and inverse deviation of 80 channels and two counts, float32; then two sums for each channel.
    assert (forward.size, forward.count) == (3 * 4 * (2 * 80 + 2), 6)
    assert (backward.size, backward.count) == (3 * 4 * 2 * 80, 6)
    assert (forward.kind, backward.kind) == ("all-gather", "all-reduce")


@pytest.mark.parametrize(("kind", "sent"), [("all-reduce", 1500), ("broadcast", 750), ("all-gather", 3000)])
def test_bytes_in_a_ring_of_four(kind, sent):
    assert Collective("x", kind, 1000, 1).sent(4) == sent
    assert Collective("x", kind, 1000, 1).sent(1) == 0
