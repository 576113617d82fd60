"""Resident memory of this process, as Linux counts it (proc(5)), in bytes."""

import ctypes
from pathlib import Path

MB = 2**20

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def is_measurable() -> bool:
    """Whether this system has what the functions below read."""
    return _CLEAR_REFS.exists()


def resident() -> int:
    """Memory that is resident now."""
    return _status("VmRSS")


def peak_resident() -> int:
    """The most that has been resident at once since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Let `peak_resident` start again from what is resident now."""
    _CLEAR_REFS.write_text("5")


def return_free_blocks() -> None:
    """Hand back what the C library keeps of freed memory: what is measured next would find it there, at no cost."""
    ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
