"""Labels that are no class, and whether labels and qualities belong to their logits. Classes are 0..K-1."""

from torch import Tensor

# Both values are independent of K.
BACKGROUND = -1  # negative for every class
IGNORE = -2  # neither positive nor negative: contributes nothing


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
