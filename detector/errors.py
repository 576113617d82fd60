"""Errors that a user can cause, told in a line instead of a traceback."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from datasets import DataError

from .checkpoint import CheckpointError
from .evaluation.results import ResultsError
from .yaml_files import ConfigError

_BAD_PATH = (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_BAD_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@contextmanager
def readable_errors() -> Iterator[None]:
    """End the program with exit code 1 and `error: …` for what a user can cause; anything else keeps its traceback."""
    rank = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""
    try:
        yield
    except (ConfigError, DataError, CheckpointError, ResultsError, FloatingPointError) as error:
        sys.exit(f"{rank}error: {error}")
    except OSError as error:
        if not isinstance(error, _BAD_PATH) and error.errno not in _BAD_DISK:
            raise
        sys.exit(f"{rank}error: {error.filename}: {error.strerror}")
