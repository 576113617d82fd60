"""What a classification loss asks of a GPU, which depends on how many operators it has more than on their arithmetic."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longshot.losses import BACKGROUND, DenseLoss
from longshot.losses.kernel import CHUNK


class Work(NamedTuple):
    """Of forward and backward."""

    kernels: float  # operators that read or write tensors
    traffic: float  # bytes that they read and write


class _Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.kernels = self.traffic = 0

    def __torch_dispatch__(self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        if not func.is_view:
            touched = [leaf for leaf in tree_leaves((args, kwargs, returned)) if isinstance(leaf, Tensor)]
            self.kernels += 1
            self.traffic += sum(tensor.numel() * tensor.element_size() for tensor in touched)
        return returned


def loss_work(loss: DenseLoss, *, num_rows: int, dtype: torch.dtype) -> Work:
    """The work of `num_rows` rows of logits of `dtype`, from the operators that two samples take on a CPU."""
    rows = max(1, CHUNK // loss.num_classes)
    small, large = (_count(loss, rows * factor, dtype) for factor in (1, 2))
    return Work(*((more - less) * num_rows / rows for more, less in zip(large, small, strict=True)))


def _count(loss: DenseLoss, rows: int, dtype: torch.dtype) -> Work:
    logits = torch.zeros(1, rows, loss.num_classes, dtype=dtype, requires_grad=True)
    labels = torch.full((1, rows), BACKGROUND)
    quality = [torch.zeros(1, rows)] if loss.uses_quality else []
    with _Counting() as counted:
        loss.level_sum(logits, labels, *quality).backward()
    return Work(counted.kernels, counted.traffic)
