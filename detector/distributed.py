"""The processes of one run. `torchrun` is the engine: it starts them and tells them who they are by environment variables."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .yaml_files import ConfigError

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
    # Rank 0 scores LVIS for minutes while the other ranks wait in the next collective.
    dist.init_process_group("nccl" if use_cuda else "gloo", timeout=timedelta(hours=2))
    yield Process(dist.get_rank(), dist.get_world_size(), where)
    # Not after an error: the others may be waiting in a collective, NCCL would wait for them in turn, and torchrun would
    # never learn that this process has failed.
    dist.destroy_process_group()


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


def gather_on_rank_zero(value: object) -> list | None:
    """On rank 0 the list of every rank's `value`, in the order of ranks; None elsewhere."""
    if not dist.is_initialized():
        return [value]
    gathered = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered


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
