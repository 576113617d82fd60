"""Where a run takes place: versions, machine, memory, terminal."""

import math
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

try:
    import resource
except ImportError:  # Windows
    resource = None

_CHECKOUT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str | bool | None]:
    """Versions, machine, the commit of the code; without importing any of the packages."""
    commit, changes = (_git("rev-parse", "HEAD"), _git("status", "--porcelain")) if _is_checkout() else (None, "")
    return {
        "command": " ".join(sys.argv),
        "commit": commit,
        "uncommitted_changes": bool(changes),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "numpy")},
        "platform": platform.platform(),
    }


def _is_checkout() -> bool:
    """Whether the code lies in a checkout of its own: installed, it may lie in somebody else's."""
    return (_CHECKOUT / ".git").exists()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", _CHECKOUT, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def peak_resident_gb() -> float:
    """The most memory that this process has had, in GiB; NaN where the system does not say."""
    if resource is None:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def progress_bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A tqdm bar; where nobody watches a terminal it prints a line every half minute instead of twice a second."""
    seconds = 0.5 if sys.stderr.isatty() else 30
    return tqdm(iterable, mininterval=seconds, maxinterval=seconds, dynamic_ncols=True, **options)
