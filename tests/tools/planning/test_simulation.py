"""The simulated step beside the real one, on a CPU: bytes of tensors, and FLOPs by a formula of their own."""

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from longshot.datasets.loading.batches import Batch
from longshot.datasets.loading.dataset import Targets
from longshot.detector.build import build_criterion, build_network
from longshot.detector.config.schema import parse_config
from longshot.detector.config.yaml_files import merge
from longshot.detector.training.optim import build_optimizer
from longshot.detector.training.state import Run
from longshot.detector.training.step import optimize
from longshot.tools.planning import meter, stand_in
from longshot.tools.planning.ledger import Ledger
from longshot.tools.planning.plan import simulate

K, SIZE = 200, (96, 128)
SMALL = {"fpn": {"channels": 32}, "head": {"width": 32, "num_convs": 2}}
MODELS = {
    "frozen_bn": {"backbone": {"name": "thin"}},
    "bn": {"backbone": {"name": "thin", "norm": "bn", "frozen_stages": 2}, "head": {"norm": "gn"}},
    "resnet18": {"backbone": {"name": "resnet18", "norm": "gn"}},
    "recompute": {"backbone": {"name": "thin"}, "head": {"recompute": True}},
    "distribution": {
        "backbone": {"name": "thin", "norm": "gn"},
        "anchors": {"base_size": 8.0, "ratios": [1.0], "scales": [1.0]},
        "head": {"box": "distribution", "quality": "iou", "level_scales": True},
    },
}


def config_of(model, **sections):
    loss = {"classification": {"name": "equalized_focal"}, "box": {"name": "giou"}}
    return parse_config(
        {"model": merge(SMALL, MODELS[model]), "matching": {"matcher": {"name": "atss"}}, "loss": loss, **sections}
    )


def simulated(config, **options):
    return simulate(config, num_classes=K, image_size=SIZE, **{"on_gpu": False} | options)


def network_of(config):
    torch.manual_seed(0)
    return build_network(config.model, K, pretrained=False).train()


@pytest.mark.parametrize(
    ("model", "precision"),
    [("frozen_bn", "fp32"), ("frozen_bn", "bf16"), ("bn", "fp32"), ("resnet18", "bf16"), ("distribution", "bf16")],
)
def test_bytes_kept_for_backward_are_those_that_autograd_saves(model, precision):
    config = config_of(model)
    network, saved = network_of(config), {}
    pixels = network.preprocess([torch.zeros(3, *SIZE, dtype=torch.uint8)] * 2, SIZE)

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saving, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        outputs = network(pixels)
    for level in [*outputs.logits, *outputs.deltas, *(outputs.quality or [])]:
        keep(level)
    for other in [pixels, *network.parameters(), *network.buffers()]:
        saved.pop(other.untyped_storage().data_ptr(), None)
    measured = sum(storage.nbytes() for storage in saved.values())
    planned = simulated(config, num_images=2, precision=precision).kept.total()
    assert planned == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(
    ("model", "precision", "passes"),
    [("frozen_bn", "fp32", 1), ("bn", "bf16", 1), ("recompute", "bf16", 2), ("distribution", "fp32", 2)],
)
def test_peak_is_that_of_a_real_step(model, precision, passes, cpu, monkeypatch):
    monkeypatch.setattr("longshot.losses.kernel.CHUNK", 2**14)  # else its 8 MB would be most of the memory
    monkeypatch.setattr(stand_in, "CHUNK", 2**14)
    config = config_of(model)
    network = network_of(config)
    run = Run(
        network,
        build_criterion(config, [1] * K, 1),
        build_optimizer(network, name="sgd", lr=1e-9),
        GradScaler(enabled=False),
    )
    images, box = (
        [torch.zeros(3, *SIZE, dtype=torch.uint8) for _ in range(2 * passes)],
        torch.tensor([[10.0, 20, 70, 80]]),
    )
    targets = [Targets(box, torch.tensor([3]), torch.zeros(0, 4))] * len(images)
    batch = Batch(images, targets, [0] * len(images), [0] * len(images), [SIZE] * len(images), [SIZE] * len(images))

    def step():
        optimize(run, network, batch, cpu, images_per_pass=2, precision=precision, clip_norm=None)

    step()
    run.optimizer.zero_grad()
    ledger = Ledger("step", "")
    ledger.book([*network.parameters(), *network.buffers()], "weights")
    ledger.book((state["momentum_buffer"] for state in run.optimizer.state.values()), "momentum")
    ledger.book([*images[:2], *network.anchors(SIZE)], "images of a pass, anchors")
    with ledger:
        step()
    planned = simulated(config, num_images=2, precision=precision, passes=passes)
    assert planned.peak.total() == pytest.approx(ledger.peak.total(), rel=0.01)


def test_flops_are_those_of_the_convolutions():
    config = config_of("frozen_bn")
    network, flops = network_of(config), {}

    def count(conv, inputs, output):
        per_entry = 2 * conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
        flops[conv] = flops.get(conv, 0) + per_entry * output.numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    network(torch.zeros(2, 3, *SIZE))
    planned = simulated(config, num_images=2)
    forward = sum(flops.values())
    assert planned.forward_flops == forward
    # Backward: as much for inputs and for weights, but nobody asks for the gradient of the pixels.
    assert planned.flops.total() == 3 * forward - flops[network.backbone.conv1]
    assert planned.flops[meter.LOGITS] == 3 * flops[network.head.logits]
    towers = [*network.head.class_tower.modules(), *network.head.box_tower.modules()]
    assert planned.flops[meter.TOWERS] == 3 * sum(flops.get(module, 0) for module in towers)
    pyramid = sum(flops.get(module, 0) for module in network.fpn.modules())
    assert planned.flops[meter.FPN] == 3 * pyramid


def test_recomputed_towers_are_not_kept_and_cost_another_forward():
    plain, again = simulated(config_of("frozen_bn")), simulated(config_of("recompute"))
    assert plain.kept[meter.TOWERS] > 0
    assert again.kept[meter.TOWERS] == 0
    assert again.flops[meter.TOWERS] * 3 == plain.flops[meter.TOWERS] * 4
    assert again.flops[meter.TRUNK] == plain.flops[meter.TRUNK]


@pytest.mark.parametrize("model", ["frozen_bn", "recompute"])
def test_backward_ends_in_the_trunk_and_books_gradients(model):
    network, ledger = network_of(config_of(model)), Ledger(meter.PIXELS, meter.FORWARD)
    watching = meter.Meter(ledger, meter.Flops())
    meter.watch(network, watching)
    outputs = network(torch.zeros(1, 3, *SIZE))
    assert (ledger.phase, watching.modules_in_work) == (meter.FORWARD, 0)
    sum(level.sum() for level in [*outputs.logits, *outputs.deltas]).backward()
    assert (ledger.phase, watching.component) == (meter.BACKWARD, meter.TRUNK)
    assert ledger.account == meter.FEATURES_GRADIENT


def test_half_types_have_the_gradient_of_one_level_after_the_other():
    planned = simulated(config_of("frozen_bn"), num_images=2, precision="bf16")
    # When the finest level, the last one, gets its gradient, the logits of the others are gone; the layer's weights stay.
    entries, weights = 2 * K * planned.rows[0], 2 * 9 * K * 32 * 9
    assert planned.peak[meter.LOGITS] == pytest.approx(2 * entries + weights, rel=0.01)
    assert planned.peak[meter.LOGITS_GRADIENT] == 2 * 2 * K * sum(planned.rows)


def test_gradients_wait_through_a_second_pass():
    one, two = (simulated(config_of("frozen_bn"), passes=passes) for passes in (1, 2))
    trained = sum(p.nbytes for p in network_of(config_of("frozen_bn")).parameters() if p.requires_grad)
    assert two.peak[meter.GRADIENTS] == trained
    assert one.peak_phase == two.peak_phase == meter.LOSSES
    assert one.peak[meter.GRADIENTS] == 0
    assert two.flops == one.flops


def test_copies_of_the_network_by_account():
    config = config_of("bn", train={"ema_decay": 0.9}, optimizer={"name": "adamw"})
    network = network_of(config)
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    whole = sum(t.nbytes for t in [*network.parameters(), *network.buffers()])
    peak = simulated(config, parallel=True).peak
    assert trained < sum(p.nbytes for p in network.parameters())
    assert (peak[meter.WEIGHTS], peak[meter.AVERAGE], peak[meter.BUCKETS]) == (whole, whole, trained)
    counters = 4 * sum(1 for p in network.parameters() if p.requires_grad)  # AdamW's, of steps
    assert peak[meter.OPTIMIZER] == 2 * trained + counters


def test_logits_and_their_gradient_have_their_size_and_the_loss_its_chunk():
    planned = simulated(config_of("frozen_bn"), num_images=2)
    logits = 4 * 2 * sum(planned.rows) * K
    assert planned.rows == (12 * 16 * 9, 6 * 8 * 9, 3 * 4 * 9, 2 * 2 * 9, 1 * 1 * 9)
    assert planned.peak[meter.LOGITS] == planned.peak[meter.LOGITS_GRADIENT] == logits
    assert planned.peak[meter.CHUNK_OF_LOSS] == pytest.approx(8 * 2**20, abs=8)  # and a scalar


def test_half_types_keep_what_gpus_compute_in_float32():
    config = config_of("bn")  # whose towers have two convolutions of 32 channels, each with GroupNorm and ReLU
    on_cpu, on_gpu = (simulated(config, precision="bf16", on_gpu=there).kept for there in (False, True))
    cells = 32 * sum(rows // 9 for rows in simulated(config).rows)
    # For backward, GroupNorm keeps what comes in, ReLU what goes out, and all convolutions but the first one that again, in
    # bf16. On a GPU the first two are float32, and each convolution has a copy of its own: that of the outputs, too.
    towers, copies = 2 * 2 * cells, 2 * cells
    assert on_gpu[meter.TOWERS] - on_cpu[meter.TOWERS] == pytest.approx(towers * (4 + 4 - 2 - 2) + 2 * copies, rel=0.03)
    for outputs in (meter.LOGITS, meter.BOXES):
        assert on_gpu[outputs] - on_cpu[outputs] == copies
    assert on_gpu[meter.TRUNK] == on_cpu[meter.TRUNK]
    full = [simulated(config, on_gpu=there).kept for there in (False, True)]
    assert full[0] == full[1]


def test_what_gpus_compute_in_float32_can_be_computed_anew():
    again = parse_config({"model": merge(merge(SMALL, MODELS["bn"]), {"head": {"recompute": True}})})
    assert simulated(again, precision="bf16", on_gpu=True).kept[meter.TOWERS] == 0


def test_simulation_draws_no_random_numbers():
    before = torch.get_rng_state()
    simulated(config_of("recompute"))
    assert torch.equal(torch.get_rng_state(), before)
