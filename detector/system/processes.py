"""Which machine and process this is, so that another one can tell whether it still runs."""

import os
import socket
from pathlib import Path


def host() -> str:
    """The name of this machine, for people."""
    return socket.gethostname()


def machine() -> str:
    """What tells this machine, its boot and its space of process ids from others: two containers share neither of them."""
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    known = [boot.read_text().strip(), os.readlink(processes)] if boot.exists() and processes.exists() else []
    return " ".join([host(), *known])


def birth(pid: int) -> str:
    """What tells a process of this machine from later ones with its id: the tick it was started at; "" if it is gone.

    Where the system does not tell the time, "alive".
    """
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from the third on, the state
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if fields[0] in "ZX" else fields[19]  # a zombie is only waiting for its parent
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # of somebody else
        pass
    return "alive"
