"""Losses that are driven by the gradients which each class has gathered so far."""

import logging
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .stepwise import StepwiseLoss

_log = logging.getLogger(__name__)

CHECK_EVERY = 200  # steps between two looks at the state, each of which costs a synchronization with the device


class GradientGuidedLoss(StepwiseLoss):
    """A dense loss that collects the positive and negative gradient of each class and is steered by their ratio.

    On each pyramid level's classification output that the loss is given it registers a gradient hook, `gradient_hook`:
    `level_sum` hands it to `focal_sum`, whose backward calls it with the sums of what it sends to these logits. A hook
    belongs to one call: that needs no module path and no number or order of levels or anchors, and is not misled by
    activation checkpointing. For every optimizer step: `begin_step()`; any number of passes of forward and backward;
    `after_backward(...)`.

    Plain tensor hooks, `logits.register_hook`, would see the same sums in float32 (a test compares them), but gradients
    that are already rounded in half types, and would cost a second pass over a tensor as large as the logits.

    A warning tells, once, that no gradients have arrived, and that no class is treated differently.

    Args:
        num_classes: K.
        weight: factor of the whole loss, above 0.

    Attributes:
        positive_gradient, negative_gradient: (K,) float64, sums of |d loss / d logit| over all steps so far, of the
            global loss: independent of the loss scale and of the number of ranks and passes. Saved in checkpoints.
        pending: (2, K) float64, this rank's share of the step in work; row 0: of positives, row 1: of negatives.
    """

    neutral_form = "focal loss"  # what the loss is while no class is treated differently

    def __init__(self, num_classes: int, *, weight: float):
        super().__init__(num_classes, weight=weight, sums=("positive_gradient", "negative_gradient"))
        # For the warning alone, of this process: passes since the last step, steps, the total when last looked at.
        self._passes, self._steps, self._seen, self._warned = 0, 0, 0.0, False

    @property
    def gradient_ratio(self) -> Tensor:
        """(K,) float64 in [0, 1]: positive over negative gradient; 1 for every class until the first update."""
        ratio = (self.positive_gradient / (self.negative_gradient + 1e-10)).clamp(0, 1)
        return torch.where(self._updated(), ratio, 1.0)

    def is_neutral(self) -> Tensor:
        """Bool scalar: whether no class is treated differently, as in the first step."""
        return (self.gradient_ratio >= 1).all()

    def gradient_hook(self, sums: Tensor) -> None:
        """The hook on one level's classification output: adds its (2, K) sums of |gradient| to `pending`."""
        self.pending += sums

    def forward(self, logits: Sequence[Tensor], *targets: Sequence[Tensor]) -> Tensor:
        """See DenseLoss.forward."""
        if self.training and torch.is_grad_enabled():
            self._passes += 1
            if self._passes == CHECK_EVERY:
                self._warn(
                    f"after_backward() was not called in {CHECK_EVERY} passes. Its state changes by that call alone, which "
                    "belongs after the last backward() of every step"
                )
        return super().forward(logits, *targets)

    def after_backward(self, *, gradient_scale: float = 1.0, step_taken: bool = True) -> None:
        """See StepwiseLoss.after_backward."""
        super().after_backward(gradient_scale=gradient_scale, step_taken=step_taken)
        self._passes = 0
        self._steps += 1
        if self._steps % CHECK_EVERY == 0 and not self._warned:
            self._check()

    def _updated(self) -> Tensor:
        return (self.positive_gradient + self.negative_gradient).sum() > 0

    def _check(self) -> None:
        gathered = (self.positive_gradient.sum() + self.negative_gradient.sum()).item()
        if gathered == self._seen:
            self._warn(
                f"no gradient has arrived in {CHECK_EVERY} steps; are the logits detached, was after_backward() called "
                "before backward(), or was every step skipped?"
            )
        elif self.is_neutral():
            self._warn(
                f"it is plain {self.neutral_form} after {self._steps} steps: in every class positives outweigh negatives. "
                "The prior of the scores, or the number of anchors per positive, is too small for negatives to matter"
            )
        self._seen = gathered

    def _warn(self, what: str) -> None:
        if not self._warned and not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
            _log.warning("%s: %s", type(self).__name__, what)
        self._warned = True
