"""What an entry costs and how steep that is, without loss of precision for any finite logit."""

import torch
import torch.nn.functional as F
from torch import Tensor


def power_and_softplus(z: Tensor, gamma_of_2: Tensor) -> tuple[Tensor, Tensor]:
    """p^gamma and -log(1 - p), accurate to float precision for every finite z.

    The cost of a negative entry is their product; its derivative p^gamma * (p + gamma (1 - p) * -log(1 - p)) has positive
    terms only: nothing cancels.
    """
    smaller = z.abs().neg_().sigmoid_()  # of p and 1 - p
    larger = smaller.neg_().log1p_()  # log of the other
    softplus = z.clamp(min=0).sub_(larger)
    log_p = z.clamp(max=0).add_(larger)
    # On some processors PyTorch's exp takes four times as long as exp2.
    return log_p.mul_(gamma_of_2).exp2_(), softplus


def cost_and_slope(z: Tensor, quality: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """|q - p|^gamma * BCE(z, q) and its derivative, of (P,) entries; float64, as q - p may cancel.

    -(gamma |q - p|^(gamma - 1) sign(q - p) p (1 - p) BCE + |q - p|^gamma (q - p))
    """
    p, rest = torch.sigmoid(z), torch.sigmoid(-z)
    cross_entropy = -(quality * F.logsigmoid(z) + (1 - quality) * F.logsigmoid(-z))
    distance = quality * rest - (1 - quality) * p  # q - p, exact also where p is nearly q = 1
    # At distance 0 the power has a pole for gamma below 1.
    size = distance.abs().clamp(min=torch.finfo(z.dtype).tiny)
    power = size.pow(gamma)
    turn = gamma * size.pow(gamma - 1) * distance.sign() * p * rest * cross_entropy
    return power * cross_entropy, -(turn + power * distance)
