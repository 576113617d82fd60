"""Classification losses whose cost is compared, the inputs that they all get, and whether they are the same function.

R anchors, K classes. A contender is a function from Inputs to the loss, summed over all rows that are not ignored.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from longshot.losses import BACKGROUND, IGNORE, EqualizedFocalLoss, sigmoid_focal_loss
from longshot.losses.kernel import computing_dtype

ALPHA, GAMMA, SCALE = 0.25, 2.0, 8.0
ANCHORS_PER_POSITIVE = 22_300 // 200  # LVIS: one 800x1333 image, one anchor per location


class Inputs(NamedTuple):
    """What all contenders are given."""

    logits: Tensor  # (R, K), a leaf
    labels: Tensor  # (R,)
    equalized_focal: EqualizedFocalLoss  # in a state in which the exponents of the classes differ


class Case(NamedTuple):
    """Which inputs, and where."""

    rows: int  # R
    classes: int  # K
    dtype: torch.dtype
    device: str
    threads: int

    def inputs(self) -> Inputs:
        """The same on every call and every device."""
        random = torch.Generator().manual_seed(0)
        logits = torch.randn(self.rows, self.classes, generator=random).mul_(1.5).sub_(5).to(self.device, self.dtype)
        some = -(-self.rows // ANCHORS_PER_POSITIVE)
        positive, ignored = torch.randperm(self.rows, generator=random)[: 2 * some].tensor_split(2)
        labels = torch.full((self.rows,), BACKGROUND)
        labels[positive] = torch.randint(self.classes, (len(positive),), generator=random)
        labels[ignored] = IGNORE
        loss = EqualizedFocalLoss(self.classes, alpha=ALPHA, gamma=GAMMA, scale=SCALE)
        # Sums that one more step does not change to speak of.
        loss.positive_gradient.copy_(1e6 * torch.rand(self.classes, generator=random))
        loss.negative_gradient.fill_(1e6)
        return Inputs(logits.requires_grad_(), labels.to(self.device), loss.to(self.device))


Contender = Callable[[Inputs], Tensor]


def ours_equalized_focal(inputs: Inputs) -> Tensor:
    """The module, over one level."""
    return inputs.equalized_focal([inputs.logits[None]], [inputs.labels[None]])


def ours_focal(inputs: Inputs) -> Tensor:
    """The pure function."""
    return sigmoid_focal_loss(inputs.logits, inputs.labels, alpha=ALPHA, gamma=GAMMA)


def direct_equalized_focal(inputs: Inputs) -> Tensor:
    """The formula as the paper has it (Li et al. 2022, arXiv:2201.02593, eq. 6); collects no gradients."""
    logits, target = _in_full_precision(inputs)
    gamma = (GAMMA + SCALE * (1 - inputs.equalized_focal.gradient_ratio)).to(logits)
    p = logits.sigmoid()
    p_t = p * target + (1 - p) * (1 - target)
    alpha_t = ALPHA * target + (1 - ALPHA) * (1 - target)
    return _sum(alpha_t * (gamma / GAMMA) * (1 - p_t) ** gamma * -p_t.log(), inputs)


def torch_cross_entropy(inputs: Inputs) -> Tensor:
    """F.binary_cross_entropy_with_logits."""
    return _sum(F.binary_cross_entropy_with_logits(*_in_full_precision(inputs), reduction="none"), inputs)


def torchvision_focal(inputs: Inputs) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss."""
    return _sum(torchvision.ops.sigmoid_focal_loss(*_in_full_precision(inputs), alpha=ALPHA, gamma=GAMMA), inputs)


def _in_full_precision(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Logits and one-hot target, in float32 for half types: half sums and small entries would be another function."""
    logits = inputs.logits.to(computing_dtype(inputs.logits))
    target = torch.zeros_like(logits)
    (rows,) = (inputs.labels >= 0).nonzero(as_tuple=True)
    target[rows, inputs.labels[rows]] = 1
    return logits, target


def _sum(entries: Tensor, inputs: Inputs) -> Tensor:
    # Row by row costs no more than reduction="sum", and leaves out ignored rows.
    return (entries.sum(1) * (inputs.labels != IGNORE)).sum()


CONTENDERS: dict[str, Contender] = {
    "ours: equalized focal": ours_equalized_focal,
    "ours: focal": ours_focal,
    "direct equalized focal": direct_equalized_focal,
    "torch cross entropy": torch_cross_entropy,
    "torchvision focal": torchvision_focal,
}


def one_pass(contender: Contender, inputs: Inputs) -> Tensor:
    """Forward and backward, and for Equalized Focal Loss the collection of its gradients; returns the loss."""
    inputs.logits.grad = None
    inputs.equalized_focal.begin_step()
    loss = contender(inputs)
    loss.backward()
    if contender is ours_equalized_focal:
        inputs.equalized_focal.after_backward()
    return loss.detach()


class Difference(NamedTuple):
    """Of two contenders that should be the same function; the largest relative ones."""

    ours: str
    other: str
    loss: float
    gradient: float  # of an entry


def differences(case: Case, *, max_rows: int = 1000) -> list[Difference]:
    """Our losses, on the first rows, against other people's in float64. Raises RuntimeError for another function."""
    case = case._replace(rows=min(case.rows, max_rows))
    pairs = (ours_equalized_focal, direct_equalized_focal), (ours_focal, torchvision_focal)
    found = [_difference(case, *pair) for pair in pairs]
    rounding = torch.finfo(case.dtype).eps
    for difference in found:
        if not (difference.loss < 1e-4 and difference.gradient < max(1e-4, rounding)):
            raise RuntimeError(
                f"{difference.ours} and {difference.other} are not the same function, so their costs cannot be compared: "
                f"losses differ by {difference.loss:.1e}, gradients by {difference.gradient:.1e} (relative)"
            )
    return found


def _difference(case: Case, ours: Contender, other: Contender) -> Difference:
    inputs = case.inputs()
    exact = inputs._replace(logits=inputs.logits.detach().double().requires_grad_())
    expected = one_pass(other, exact).item()  # first: a pass of ours moves the state
    loss = one_pass(ours, inputs).item()
    smallest = torch.finfo(case.dtype).tiny  # of a normal number; below it there are fewer digits
    error = (inputs.logits.grad - exact.logits.grad).abs() / exact.logits.grad.abs().clamp(min=smallest)
    return Difference(ours.__name__, other.__name__, abs(loss - expected) / abs(expected), error.max().item())
