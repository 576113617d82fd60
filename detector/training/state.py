"""What changes while training goes on."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ..model.retinanet import RetinaNet
from .criterion import Criterion


@dataclass
class Run:
    """Everything that changes while training goes on, and so everything that a checkpoint must hold."""

    network: RetinaNet
    criterion: Criterion
    optimizer: Optimizer
    scaler: GradScaler  # disabled unless precision is fp16
    ema: AveragedModel | None = None
    step: int = 0  # optimizer steps done, those left out among them
    skipped: int = 0  # steps left out since a number was not finite
    skipped_in_a_row: int = 0
    unreadable: int = 0  # images that another was shown for, over all steps and processes

    def state_dict(self) -> dict:
        """The state as tensors and plain values."""
        return {
            "step": self.step,
            "skipped": [self.skipped, self.skipped_in_a_row],
            "unreadable": self.unreadable,
            "model": self.network.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go back to a state which `state_dict` returned, of a run with the same model, loss and optimizer.

        The optimizer's settings (weight decay, momentum) stay those of this run; averaging and loss scaling begin here
        if the other run had none.
        """
        self.step = state["step"]
        self.skipped, self.skipped_in_a_row = state.get("skipped", (0, 0))  # older checkpoints count none
        self.unreadable = state.get("unreadable", 0)
        self.network.load_state_dict(state["model"])
        if self.ema and state["ema"]:
            self.ema.load_state_dict(state["ema"])
        elif self.ema:
            self.ema.module.load_state_dict(state["model"])
        self.criterion.load_state_dict(state["criterion"])
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])  # takes the other run's settings too
        for group, setting in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(setting)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Scalar: the norm of all that the next step goes on from; not finite if any number in it is not.

        Weights, statistics, averages, sums of the criterion, momentum, learning rate and loss scale. Only some of them
        show in a loss: momentum that is not finite spoils the weights after losses and gradients have been looked at.
        """
        momentum = [value for state in self.optimizer.state.values() for value in state.values()]
        averages = self.ema.parameters() if self.ema else ()
        norms = []
        for part in (self.network.parameters(), self.network.buffers(), averages, self.criterion.buffers(), momentum):
            # AdamW's counts of steps, without a dimension, are on the CPU.
            numbers = [t for t in part if isinstance(t, Tensor) and t.is_floating_point() and t.ndim > 0]
            norms += torch._foreach_norm(numbers) if numbers else ()
        rates = sum(group["lr"] for group in self.optimizer.param_groups)
        norms.append(norms[0].new_tensor(rates + self.scaler.get_scale()))
        return torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))

    @property
    def evaluated_network(self) -> RetinaNet:
        """The network to evaluate and to hand out: the averaged one, if there is one."""
        return self.ema.module if self.ema else self.network
