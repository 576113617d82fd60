"""What the benchmarks share: fresh processes, peaks of memory, verdicts on targets."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Literal

from longshot.tools.benchmarks import memory


def in_new_process(
    function: Callable, *arguments: Any, what: str, start: Literal["forkserver", "spawn"] = "forkserver"
) -> Any:
    """What the function returns in a process whose allocators have nothing left over.

    Args:
        what: is measured, for the message.
        start: "forkserver" forks one that has imported torchvision and done nothing else: as fresh as any, seconds earlier.
            The memory of "spawn" is its own from the start.

    Raises RuntimeError if the process was killed.
    """
    context = get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(["torchvision"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError(f"the process that measured {what} was killed: out of memory? Try less") from error


def peak_above(work: Callable[[], object]) -> int:
    """Bytes at the peak of some work above what there was before. Call it in a new process."""
    memory.return_free_blocks()
    memory.reset_peak()
    before = memory.resident()
    work()
    return memory.peak_resident() - before


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of some work in this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def verdict(what: str, value: float, limit: float, *, digits: str = ".3g") -> str:
    """Whether a target is met, in a line; `digits` is a format of the value."""
    return f"target: {what} at most {limit:.3g}: {value:{digits}}, {'met' if value <= limit else 'NOT met'}"
