"""Errors that a user can cause, and how a program shows them: a line instead of a traceback."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..datasets.errors import DataError

_BAD_PATH = (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_BAD_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class ConfigError(ValueError):
    """A configuration says something that the program does not understand."""


class CheckpointError(ValueError):
    """A checkpoint file that cannot be used or written, and why."""


class ResultsError(ValueError):
    """A file of detections that cannot be read or written, and why."""


@contextmanager
def config_errors(where: str) -> Iterator[None]:
    """Tell which part of the configuration the ValueError of a constructor is about."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


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


def brief(text: str, length: int = 100) -> str:
    """The text, or its beginning if it is long."""
    return text if len(text) <= length else f"{text[:length]}…"
