"""What the tests of Equalized Focal Loss share."""

from collections.abc import Callable

import pytest
from torch import Tensor

from longshot.losses import EqualizedFocalLoss


@pytest.fixture
def run_step() -> Callable[..., float]:
    """(loss, logits, labels, normalizer) -> the normalized loss of one optimizer step of a single pass."""

    def run(loss: EqualizedFocalLoss, logits: list[Tensor], labels: list[Tensor], normalizer: float = 1.0) -> float:
        logits = [level.clone().requires_grad_() for level in logits]
        loss.begin_step()
        value = loss(logits, labels) / normalizer
        value.backward()
        loss.after_backward()
        return value.item()

    return run
