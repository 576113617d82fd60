"""What the numbers of a run may depend on besides its configuration."""

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision


def environment(device: torch.device) -> dict[str, str | int | bool | None]:
    """What the run's numbers may depend on besides its configuration: versions, machine, the commit of the code."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or the code lies in no checkout
        commit, changes = None, ""
    return {
        "command": " ".join(sys.argv),
        "commit": commit,
        "uncommitted_changes": bool(changes.strip()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }
