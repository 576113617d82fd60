"""Memory of tensors, live and at the peak, by what it is for."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):
    """While it is entered, books the storage of every new tensor, real or fake, under `account`, and its end.

    Views share a storage, which is booked once. What an operator takes and gives back by itself (the workspace of a
    convolution) is not seen.

    Attributes:
        account: what the tensors made now are for.
        phase: what part of the step is in work.
        live: bytes by account.
        peak: `live` when most bytes were live at once.
        peak_phase: `phase` then.
    """

    def __init__(self, account: str, phase: str):
        super().__init__()
        self.account = account
        self.phase = phase
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.peak_phase = phase
        self._total = self._most = 0
        self._booked: dict[int, tuple[ref, str, int]] = {}  # by address: the storage, its account, bytes

    def __torch_dispatch__(self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None) -> Any:
        """What `func` returns, its new tensors booked."""
        returned = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(returned):
            if isinstance(leaf, Tensor):
                self._book(leaf.untyped_storage(), self.account)
        return returned

    def book(self, tensors: Iterable[Tensor], account: str) -> None:
        """Book tensors that were there before, or move them to another account."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata in self._booked:
                _, before, size = self._booked.pop(storage._cdata)
                self._add(before, -size)
            self._book(storage, account)

    def _book(self, storage: torch.UntypedStorage, account: str) -> None:
        address = storage._cdata
        if address not in self._booked:
            # Python's object of a storage lives as long as the storage does: its end is that of the memory.
            watched = ref(storage, lambda gone, address=address: self._end(address, gone))
            self._booked[address] = (watched, account, storage.nbytes())
            self._add(account, storage.nbytes())

    def _end(self, address: int, gone: ref) -> None:
        if address in self._booked and self._booked[address][0] is gone:
            _, account, size = self._booked.pop(address)
            self._add(account, -size)

    def _add(self, account: str, size: int) -> None:
        self.live[account] += size
        self._total += size
        if self._total > self._most:
            self._most, self.peak, self.peak_phase = self._total, self.live.copy(), self.phase
