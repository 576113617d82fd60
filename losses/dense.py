"""What all classification losses of dense detectors share: labels, and one call over the levels of a feature pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Labels that are no class; classes are 0..K-1. Both values are independent of K.
BACKGROUND = -1  # negative for every class
IGNORE = -2  # neither positive nor negative: contributes nothing


class DenseLoss(nn.Module):
    """Sum of `level_sum` over the levels of a feature pyramid, times `weight`; a subclass says what a level costs.

    For every optimizer step: `begin_step()`; any number of passes of forward and backward; `after_backward(...)`.

    Args:
        num_classes: K.
        weight: factor of the whole loss, above 0.
    """

    uses_quality = False  # whether forward wants the quality of the positives too

    def __init__(self, num_classes: int, *, weight: float):
        super().__init__()
        if weight <= 0:
            raise ValueError(f"weight is {weight}; expected a factor above 0")
        self.num_classes = num_classes
        self.weight = weight

    # A compiler finds nothing to fuse across chunks, and a loss that collects gradients has effects in backward.
    @torch.compiler.disable
    def forward(self, logits: Sequence[Tensor], *targets: Sequence[Tensor]) -> Tensor:
        """Scalar sum times `weight`. Not normalized: divide by the number of positives.

        Args:
            logits: (N, R_l, K) per level.
            targets: labels, (N, R_l) int64 per level: class, BACKGROUND or IGNORE; then, for a loss that `uses_quality`,
                the quality that the score of each positive should have, (N, R_l) per level in [0, 1].
        """
        for level, level_logits in enumerate(logits):
            if level_logits.shape[-1] != self.num_classes:
                raise ValueError(
                    f"logits of level {level} have shape {tuple(level_logits.shape)}, but this loss was built for "
                    f"{self.num_classes} classes; expected (N, R_l, {self.num_classes})"
                )
        return self.weight * sum(self.level_sum(*level) for level in zip(logits, *targets, strict=True))

    def level_sum(self, logits: Tensor, *targets: Tensor) -> Tensor:
        """Scalar sum over the (N, R_l, K) entries of one level."""
        raise NotImplementedError

    def begin_step(self) -> None:
        """Nothing, unless the loss has a state."""

    def after_backward(self, *, gradient_scale: float = 1.0, step_taken: bool = True) -> None:
        """Nothing, unless the loss has a state: once per optimizer step, after its last backward, on every rank.

        Args:
            gradient_scale: factor of the gradients over those of the global loss: the loss scale of mixed precision,
                times the number of ranks where their gradients are averaged.
            step_taken: False if the optimizer step was skipped.
        """


def alpha_weights(alpha: float | None) -> tuple[float, float]:
    """Weights of positives and negatives: alpha and 1 - alpha; 1 and 1 for None."""
    return (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)


def check_focal_options(*, alpha: float | None, gamma: float) -> None:
    """Raises ValueError for options that no focal loss can have."""
    if alpha is not None and not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; expected a value between 0 and 1, the weight of positives, or none")
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}; expected a focusing exponent of at least 0")


def check_shapes(logits: Tensor, labels: Tensor, quality: Tensor | None) -> None:
    """Raises ValueError unless there is one label, and one quality if any, for each row of logits (..., K)."""
    for name, values in (("labels", labels), ("quality", quality)):
        if values is not None and values.shape != logits.shape[:-1]:
            raise ValueError(
                f"logits have shape {tuple(logits.shape)} and {name} {tuple(values.shape)}; expected (..., K) and (...,): "
                "one row of K logits for each"
            )


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raises ValueError for a label that is none, on a CPU: elsewhere it would wait for the device."""
    if labels.device.type != "cpu" or not labels.numel():
        return
    lowest, highest = (value.item() for value in labels.aminmax())
    if lowest < IGNORE or highest >= num_classes:
        raise ValueError(
            f"labels hold {lowest if lowest < IGNORE else highest}; expected a class in [0, {num_classes}), BACKGROUND "
            f"({BACKGROUND}) or IGNORE ({IGNORE})"
        )


def check_quality(quality: Tensor) -> None:
    """Raises ValueError for a quality of a positive outside [0, 1], on a CPU: elsewhere it would wait likewise.

    NaN, what a box that is not finite makes of an IoU, passes: the loss is then NaN, which training loops look out for.
    """
    strange = quality[(quality < 0) | (quality > 1)] if quality.device.type == "cpu" else quality[:0]
    if len(strange):
        raise ValueError(f"quality of a positive is {strange[0]:.6g}; expected a value in [0, 1], such as an IoU")
