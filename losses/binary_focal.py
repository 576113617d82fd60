"""Binary focal loss, for two-class problems and dense masks with one logit per sample or pixel."""

import torch
from torch import Tensor, nn

from .dense import alpha_weights
from .kernel import computing_dtype
from .softmax_focal import Gamma, check_options, check_target, focal_of_log_odds, reduce_losses


def binary_focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: Gamma,
    alpha: float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-alpha_t (1 - p_t)^gamma log p_t of the sigmoid (Lin et al. 2017, arXiv:1708.02002, eq. 5).

    p_t = sigmoid(z) where the target is 1, sigmoid(-z) where it is 0.

    Args:
        logits: any shape, any float type; half types are computed in float32.
        target: the same shape, any type: 0, 1, or ignore_index (contributes nothing, whatever the logits are there).
            Another value is an error on a CPU and makes the loss nan elsewhere.
        gamma: focusing exponent, at least 0; at 0 this is binary cross entropy. Or a function of p_t, such as
            `flsd_gamma`; what it returns is a constant in backward.
        alpha: weight of target 1, in (0, 1); target 0 gets 1 - alpha. None: weight 1 for both.
        ignore_index: value of target that marks what to leave out.
        reduction: "mean" over what is not ignored (0 where that is nothing; not divided by weights), "sum" or "none".

    Returns:
        Scalar, or the shape of target for "none"; float32 (float64 for float64 logits).
    """
    check_options(alpha=alpha, gamma=gamma, reduction=reduction)
    if logits.shape != target.shape:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, target {tuple(target.shape)}; expected the same")
    counted, is_positive = target != ignore_index, target == 1
    allowed = ~counted | is_positive | (target == 0)
    check_target(target, allowed, f"0, 1 or ignore_index {ignore_index}")
    logits = torch.where(counted, logits, 0.0).to(computing_dtype(logits))
    log_odds = torch.where(is_positive, logits, -logits)
    # On another device a mask of 0 and 255 would pass for one of zeros.
    losses = focal_of_log_odds(torch.where(allowed, log_odds, torch.nan), gamma)
    positive, negative = alpha_weights(alpha)
    return reduce_losses(torch.where(is_positive, positive * losses, negative * losses), counted, reduction)


class BinaryFocalLoss(nn.Module):
    """Binary focal loss, see `binary_focal_loss`.

    Args:
        gamma: focusing exponent, at least 0, or a function of p_t.
        alpha: weight of target 1, in (0, 1); target 0 gets 1 - alpha. None: weight 1 for both.
        ignore_index: value of target that marks what to leave out.
        reduction: "mean" over what is not ignored, "sum" or "none".
    """

    def __init__(
        self, *, gamma: Gamma = 2.0, alpha: float | None = None, ignore_index: int = -100, reduction: str = "mean"
    ):
        super().__init__()
        check_options(alpha=alpha, gamma=gamma, reduction=reduction)
        self.gamma = gamma
        self.alpha = alpha
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar, or the shape of target for "none"; logits and target have the same shape."""
        return binary_focal_loss(
            logits,
            target,
            gamma=self.gamma,
            alpha=self.alpha,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
