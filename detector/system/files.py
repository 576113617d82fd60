"""Files that are there whole or not at all, whenever the program or the machine stops."""

import errno
import os
from pathlib import Path

# What file systems say that cannot sync a folder; they have their own way of keeping names.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def rename(temporary: Path, path: Path) -> None:
    """Give a file that is written and synced its final name, in place of the file that has it; the name is synced too."""
    os.replace(temporary, path)
    if os.name == "nt":  # Windows opens no folders
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file: to a temporary name, synced, then renamed, so that a reader never sees half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # which file is full, say, Python tells only of those it opens
        raise
    finally:
        temporary.unlink(missing_ok=True)


def append_text(path: Path, text: str) -> None:
    """Append to a text file. Raises OSError, with the file as it was, if that fails."""
    with open(path, "ab", buffering=0) as file:
        size, content = file.tell(), text.encode()
        try:
            written = file.write(content)
            if written < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(size)
            raise
