from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from longshot.tools.planning.ledger import Ledger


@pytest.fixture(params=[nullcontext, FakeTensorMode], ids=["real", "fake"])
def ledger(request):
    with request.param():
        yield Ledger("a", "first")


def test_storage_is_booked_once_and_until_its_last_view_is_gone(ledger):
    with ledger:
        whole = torch.empty(1000)
        part = whole[:5]
        assert ledger.live == {"a": 4000}
        del whole
        assert ledger.live == {"a": 4000}
        del part
    assert ledger.live == {"a": 0}


def test_peak_is_what_was_live_when_most_was(ledger):
    with ledger:
        first = torch.empty(100)
        ledger.account, ledger.phase = "b", "second"
        second = torch.empty(300)
        del first
        ledger.phase = "third"
        torch.empty(50)  # 1400 bytes, where there were 1600
    assert (ledger.peak, ledger.peak_phase) == ({"a": 400, "b": 1200}, "second")
    assert second.nbytes == ledger.live["b"]


def test_booked_tensor_moves_to_its_new_account(ledger):
    before = torch.empty(10)
    ledger.book([before], "weights")
    with ledger:
        moved = torch.empty(20)
        ledger.book([moved, before], "gradients")
    assert ledger.live == {"weights": 0, "a": 0, "gradients": 120}
    del moved
    assert ledger.live["gradients"] == 40


def test_gradient_and_what_backward_keeps_are_booked(ledger):
    weight = torch.empty(100, requires_grad=True)
    with ledger:
        output = (weight * weight).relu()  # the product is gone: relu keeps its result, the product its factors
        assert ledger.live == {"a": 400}
        output.sum().backward()
        del output
    assert ledger.live == {"a": 400}
    assert weight.grad.nbytes == 400
