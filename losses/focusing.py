"""Focusing exponents that depend on the sample: gamma as a function of p, the probability of the true class."""

import torch
from torch import Tensor

# From a start at most 15 % above the root the fourth step changes a float64 by no more than rounding.
NEWTON_STEPS = 4


def flsd_gamma(p: Tensor) -> Tensor:
    """Exponents of FLSD-53: 5 where p is below 0.2, else 3 (Mukhoti et al. 2020, arXiv:2002.09437, section 5).

    Args:
        p: any shape, in [0, 1].

    Returns:
        Shape and type of p.
    """
    return torch.where(p < 0.2, 5.0, 3.0).to(p.dtype)


def adaptive_gamma(p: Tensor, *, lowest: float = 3.0, highest: float = 5.0) -> Tensor:
    """Exponents at which focal loss pulls as hard as cross entropy, kept between `lowest` and `highest`.

    FLSD-53 without its jump: `equal_gradient_gamma` falls from 5 at p = 0.197 to 3 at p = 0.253. Samples below that range
    get a larger gradient than from cross entropy, samples above it a smaller one. The bounds are what makes it a loss of
    its own: without them its gradient is that of cross entropy for every p.

    Args:
        p: any shape, in [0, 1].
        lowest, highest: bounds of the exponent, 0 <= lowest <= highest.

    Returns:
        Shape and type of p.
    """
    return equal_gradient_gamma(p).clamp(lowest, highest)


@torch.no_grad()
def equal_gradient_gamma(p: Tensor) -> Tensor:
    """The exponent gamma > 0 with g(p, gamma) = 1 (Mukhoti et al. 2020, arXiv:2002.09437).

    g(p, gamma) = (1 - p)^gamma - gamma p (1 - p)^(gamma - 1) log p is the gradient of focal loss over that of cross
    entropy (Proposition 1). It is 1 at gamma = 0. With r = (1 - p) log(1 - p) / (p log p), the other root is

        gamma = (r + W(-r exp(-r))) / log(1 - p),

    where W is the branch -1 of the Lambert W function: the paper's a/b + W(-a^(1 - a/b) log(a) / b) / log(a),
    a = 1 - p, b = p log p. It falls as p rises, from infinity at p = 0 to 0 at p = 1/2. Above 1/2 it would be negative
    (any gamma > 0 makes the gradient smaller): the result is 0 there.

    Args:
        p: any shape, in [0, 1].

    Returns:
        Shape and type of p, accurate to float64 before it is rounded to that type. A constant in backward.
    """
    q = p.double().clamp(torch.finfo(torch.float64).tiny, 0.5)
    r = (1 - q) * torch.log1p(-q) / (q * q.log())
    # W at -r exp(-r) = -exp(-1 - excess). That argument itself would lose half its digits where r is nearly 1.
    excess = r - 1 - r.log()
    gamma = (1 - r + _lambert_w_below_minus_one(excess)) / -torch.log1p(-q)
    return gamma.to(p.dtype)


def _lambert_w_below_minus_one(excess: Tensor) -> Tensor:
    """-1 - W(-exp(-1 - excess)) on branch -1 of the Lambert W function; excess >= 0 in float64.

    It is the v >= 0 with v - log(1 + v) = excess. The left side is convex, and sqrt(2 excess) + excess lies above the root
    (Chatzigeorgiou 2013, arXiv:1601.04895, theorem 1): from there Newton's method falls towards it and cannot overshoot.
    """
    excess = excess.clamp(min=0)  # the rounding of a logarithm could leave it below
    v = (2 * excess).sqrt() + excess
    for _ in range(NEWTON_STEPS):
        # At excess 0 the root is 0, and its slope too.
        v = v - (v - torch.log1p(v) - excess) * (1 + v) / v.clamp(min=torch.finfo(v.dtype).tiny)
    return v
