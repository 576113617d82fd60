"""The processes of one run. `torchrun` is the engine: it starts them and tells them who they are by environment variables."""

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from ..errors import ConfigError

# Rank 0 scores LVIS for minutes while the other ranks wait in the next collective.
_TIMEOUT = timedelta(hours=2)
_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Process(NamedTuple):
    """This process among `world_size` of them, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device


@contextmanager
def process_group(device: str = "auto") -> Iterator[Process]:
    """This process, with the group of all processes open while the block runs.

    Args:
        device: "cpu", "cuda", or "auto" for cuda where there is one.

    Raises:
        ConfigError: RANK and WORLD_SIZE are set, but not all of torchrun's variables; or "cuda" without a GPU for this
            process.
    """
    here = {name: os.environ.get(name) for name in _TORCHRUN_VARIABLES}
    missing = [name for name, value in here.items() if value is None]
    # A stray RANK or MASTER_ADDR of a batch system must not make a process wait for company that never comes.
    if missing and here["RANK"] is not None and here["WORLD_SIZE"] is not None:
        raise ConfigError(
            f"RANK and WORLD_SIZE are set, but {', '.join(missing)} not: start with `torchrun`, or unset them"
        )
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    local_rank = 0 if missing else int(here["LOCAL_RANK"])
    if use_cuda and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"device: cuda, but process {local_rank} of this machine finds {torch.cuda.device_count()} GPUs"
        )
    where = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(where)
    if missing:
        yield Process(0, 1, where)
        return
    store, rank, world_size = next(rendezvous("env://", timeout=_TIMEOUT))
    store = _fresh(store, rank, world_size)
    backend = "nccl" if use_cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    if rank > 0:
        _warn_with_rank(rank)
    yield Process(dist.get_rank(), dist.get_world_size(), where)
    # Not after an error: the others may be waiting in a collective, NCCL would wait for them in turn, and torchrun would
    # never learn that this process has failed.
    dist.destroy_process_group()


def _warn_with_rank(rank: int) -> None:
    """Show in the terminal what this process alone can warn of: images that it could not read. Rank 0 has the log."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"process {rank}: warning: %(message)s"))
    logging.getLogger("longshot.datasets").addHandler(handler)


def _fresh(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """A corner of the store that holds nothing of processes which were killed before.

    torchrun (2.14, and others that share its store) gives the processes of every restart the same store, with the
    addresses of dead processes in it: who reads such an address before the new one is written waits forever. Here rank 0
    makes up a name for the corner, and tells it to whoever shows a word that was made up just now.
    """
    if rank > 0:
        word = uuid.uuid4().hex
        store.set(f"word of {rank}", word)
        name = store.get(f"name for {word}").decode()  # waits for it
        store.set(f"{name}: {rank} knows", "")
        return dist.PrefixStore(name, store)
    name, unaware = uuid.uuid4().hex, set(range(1, world_size))
    end = time.monotonic() + _TIMEOUT.total_seconds()
    while unaware:
        for other in unaware:
            if store.check([f"word of {other}"]):  # of now, or of a dead process that will not listen
                store.set(f"name for {store.get(f'word of {other}').decode()}", name)
        unaware = {other for other in unaware if not store.check([f"{name}: {other} knows"])}
        if time.monotonic() > end:
            raise RuntimeError(f"{len(unaware)} of {world_size} processes have not come within {_TIMEOUT}")
        time.sleep(0.01)
    return dist.PrefixStore(name, store)


def all_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, in place; `tensor` itself if there is one process."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def share_buffers(module: nn.Module) -> None:
    """Give every process rank 0's buffers: BatchNorm has gathered its statistics in each process on its own."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def barrier() -> None:
    """Return when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def columns_of_others(columns: Sequence[NDArray], device: torch.device) -> Iterator[list[NDArray]]:
    """On rank 0 the `columns` of every other rank that has rows, rank by rank; nothing on the other ranks.

    Every rank iterates over it, to the end. Only one rank's columns are on their way at a time: rank 0 needs memory, on
    its device too, for these and for what it keeps.

    Args:
        columns: (D, …) each; their types and further sides are those of every rank, D is this one's.
        device: of this process.
    """
    if not dist.is_initialized():
        return
    own, rank = [torch.from_numpy(column) for column in columns], dist.get_rank()
    rows = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    rows[rank] = len(own[0])
    for other, count in enumerate(all_sum(rows).tolist()):
        if other == 0 or count == 0:
            continue
        if rank == other:
            _exchange(dist.isend, [column.to(device) for column in own], 0)
        elif rank == 0:
            received = [column.new_empty((count, *column.shape[1:]), device=device) for column in own]
            _exchange(dist.irecv, received, other)
            yield [column.cpu().numpy() for column in received]


def _exchange(call: Callable, tensors: Sequence[Tensor], rank: int) -> None:
    # As a batch, NCCL uses the communicator that it has; else it would make one, with buffers, for each pair of ranks.
    for work in dist.batch_isend_irecv([dist.P2POp(call, tensor, rank) for tensor in tensors]):
        work.wait()


def from_rank_zero(value: object) -> object:
    """Rank 0's `value`, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def on_rank_zero(process: Process, compute: Callable[[], object]) -> object:
    """What `compute` returns on rank 0, on every rank; the ValueError that it raises there is raised on every rank."""
    value = error = None
    if process.rank == 0:
        try:
            value = compute()
        except ValueError as failure:  # else the others would wait, and then report that rank 0 is gone
            error = failure
    value, error = from_rank_zero((value, error))
    if error is not None:
        raise error
    return value
