"""Distribution focal loss: a box side as a distribution over the integers 0..B-1, in units of the stride."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernel import computing_dtype


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """(l + 1 - t) CE(l) + (t - l) CE(l + 1) of every target t, l = floor(t) (Li et al. 2020, arXiv:2006.04388, eq. 6).

    CE(i) is the softmax cross entropy with bin i. The loss is least where only the two bins beside t have probability,
    l + 1 - t and t - l; it is not 0 there, unless t is an integer.

    Args:
        logits: (..., B), any float type; half types are computed in float32.
        target: (...,) in bins, within [0, B - 1]; a constant in backward.

    Returns:
        (...,) float32 (float64 for float64 logits). Not summed, since its users weight each box by its score and average
        over the four sides.
    """
    bins = logits.shape[-1]
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and target {tuple(target.shape)}; expected (..., B) and (...,)"
        )
    # On another device the check would wait for it; a target out of range fails there by its index.
    if target.device.type == "cpu" and not ((target >= 0) & (target <= bins - 1)).all():
        raise ValueError(
            f"target lies in [{target.min():g}, {target.max():g}]; expected [0, {bins - 1}], a distance in bins: "
            "divide by the stride and clamp"
        )
    log_p = F.log_softmax(logits.to(computing_dtype(logits)), dim=-1)
    target = target.detach().to(log_p.dtype)
    left = target.floor()
    right_share = target - left
    # The last integer has nothing on its right, and no share there.
    neighbors = torch.stack([left, (left + 1).clamp(max=bins - 1)], dim=-1).long()
    left_log_p, right_log_p = log_p.gather(-1, neighbors).unbind(-1)
    return -((1 - right_share) * left_log_p + right_share * right_log_p)


def expected_value(logits: Tensor) -> Tensor:
    """(...,) the mean of each distribution, sum over i of i * softmax_i: the predicted distance, in bins.

    Args:
        logits: (..., B), any float type; half types are computed in float32.
    """
    p = logits.to(computing_dtype(logits)).softmax(-1)
    # A product and a sum: autocast would compute a matrix product in half.
    return (p * torch.arange(p.shape[-1], dtype=p.dtype, device=p.device)).sum(-1)
