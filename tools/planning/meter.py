"""Which part of the network is in work, and what it takes."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from longshot.detector.model.head import HeadOutputs
from longshot.detector.model.retinanet import RetinaNet
from longshot.tools.planning.ledger import Ledger

TRUNK, FPN, TOWERS, LOGITS, BOXES = "trunk", "FPN", "towers", "logits", "box outputs"
COMPONENTS = (TRUNK, FPN, TOWERS, LOGITS, BOXES)

WEIGHTS, AVERAGE, OPTIMIZER, BUCKETS = "weights and buffers", "averaged weights", "optimizer state", "DDP's buckets"
GRADIENTS, TEMPORARY = "gradients of weights", "temporary copies of gradients"
PIXELS, TARGETS, CHUNK_OF_LOSS = "pixels", "anchors and labels", "chunk of the loss"
LOGITS_GRADIENT, FEATURES_GRADIENT = "gradient of logits", "gradients of features"
ACCOUNTS = (
    WEIGHTS, AVERAGE, OPTIMIZER, BUCKETS, GRADIENTS, TEMPORARY, PIXELS, TARGETS, *COMPONENTS,
    LOGITS_GRADIENT, CHUNK_OF_LOSS, FEATURES_GRADIENT,
)  # fmt: skip

FORWARD, LOSSES, BACKWARD, UPDATE = "forward", "losses", "backward", "optimizer"


class Flops(TorchDispatchMode):
    """Adds up FLOPs. FlopCounterMode does so too, but keeps tensors that are computed anew until Python cleans up."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula:
            self.total += formula(*args, **(kwargs or {}), out_val=returned)
        return returned


class Meter:
    """Charges memory and FLOPs to the component in work."""

    def __init__(self, ledger: Ledger, counter: Flops):
        self.ledger = ledger
        self.flops: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.forward_flops = 0
        self.component = BOXES
        self.modules_in_work = 0
        self._counter = counter
        self._before = 0

    def end_forward(self) -> None:
        """Remembers what forward has cost and left."""
        self.forward_flops = self.flops.total()
        self.kept = Counter({name: self.ledger.live[name] for name in COMPONENTS})

    def enter(self, component: str) -> str:
        """Ends the component in work, which is returned, and begins another."""
        now, ended = self._counter.total, self.component
        self.flops[ended] += now - self._before
        self._before, self.component = now, component
        # Backward may go forward too, through layers whose activations are computed anew.
        going_back = self.ledger.phase == BACKWARD and not self.modules_in_work
        self.ledger.account = FEATURES_GRADIENT if going_back else component
        return ended


def watch(network: RetinaNet, meter: Meter) -> None:
    """Have the meter told which component is in work, in forward and in backward."""
    head = network.head
    parts = {network.backbone: TRUNK, network.fpn: FPN, head: BOXES, head.logits: LOGITS, head.deltas: BOXES}
    parts |= {head.class_tower: TOWERS, head.box_tower: TOWERS} | ({head.quality: BOXES} if head.quality else {})
    for module, component in parts.items():
        _watch_module(module, component, meter)


def _watch_module(module: nn.Module, component: str, meter: Meter) -> None:
    outside = []

    def begin(module: nn.Module, inputs: tuple) -> None:
        meter.modules_in_work += 1
        outside.append(meter.enter(component))

    def go_back(gradient: Tensor) -> None:  # the losses are done when the first gradient arrives
        meter.ledger.phase = BACKWARD
        meter.enter(component)

    def end(module: nn.Module, inputs: tuple, output: Any) -> None:
        meter.modules_in_work -= 1
        meter.enter(outside.pop())
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(go_back)

    module.register_forward_pre_hook(begin)
    # Whatever happens: computing anew ends by an exception as soon as all that is needed is there.
    module.register_forward_hook(end, always_call=True)


def _tensors(output: Any) -> list[Tensor]:
    if output is None or isinstance(output, HeadOutputs):  # their hooks are those of the layers that made them
        return []
    return [output] if isinstance(output, Tensor) else list(output)
