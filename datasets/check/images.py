"""Images that are missing, damaged, of another size than annotated, or twice there under different names."""

import hashlib
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import DataError
from ..images.reading import read_image
from .findings import Finding, found
from .records import Records

_BLOCK = 8192  # images that are waited for at once

Progress = Callable[[Iterable, int], Iterable]


class _File(NamedTuple):
    """An image to be looked at."""

    split: str
    called: str
    path: Path
    size: tuple[int, int] | None  # height, width that it should have


class _Seen(NamedTuple):
    """What came out: nothing of interest, or the kind of problem and what there is to say of it."""

    problem: Literal["missing", "damaged", "size", "stored"] | None
    detail: str = ""
    digest: bytes = b""  # of the file; empty if it was not read


_KINDS = {
    "missing": ("error", "images that are missing"),
    "damaged": ("error", "images that cannot be decoded"),
    "size": ("error", "images of another size than annotated"),
    "stored": ("note", "images annotated as stored, without their EXIF orientation"),
}


def check_images(
    splits: Sequence[tuple[Records, Path]], *, read: bool, workers: int, progress: Progress
) -> list[Finding]:
    """Look at all images of the splits, which are given with their folders.

    Args:
        read: decode them all, in `workers` processes; else only see whether they are there.
        progress: gets an iterable and its length, and gives what it iterates over.
    """
    findings, files = [], []
    for records, folder in splits:
        if folder.is_dir():
            files += _files(records, folder)
        else:
            findings += found(records.split, "error", "the folder of images is missing", [str(folder)])
    seen = _read_all(files, workers) if read else map(_look_for, files)
    outcomes = list(zip(files, progress(seen, len(files)), strict=True)) if files else []
    for split in dict.fromkeys(file.split for file in files):
        for kind, (severity, what) in _KINDS.items():
            shown = [f"{file.called}{outcome.detail}" for file, outcome in outcomes
                     if file.split == split and outcome.problem == kind]  # fmt: skip
            findings += found(split, severity, what, shown)
    return findings + _equal_files(outcomes)


def default_workers() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _files(records: Records, folder: Path) -> list[_File]:
    sized = records.heights.usable & records.widths.usable
    sizes = zip(records.heights.values.tolist(), records.widths.values.tolist(), strict=True)
    return [
        _File(records.split, records.image(i), folder / name, size if sized[i] else None)
        for i, (name, size) in enumerate(zip(records.file_names, sizes, strict=True))
        if name
    ]


def _equal_files(outcomes: Iterable[tuple[_File, _Seen]]) -> list[Finding]:
    """Files of the same content under different paths: within a split, or of train in val."""
    first: dict[bytes, _File] = {}
    within: dict[str, list[str]] = {}
    across = []
    for file, outcome in outcomes:  # train before val
        other = first.setdefault(outcome.digest, file) if outcome.digest else file
        if other.path != file.path:
            pairs = across if other.split != file.split else within.setdefault(file.split, [])
            pairs.append(f"{file.called} is {other.called} of {other.split}")
    repeats = [
        f for split, pairs in within.items() for f in found(split, "warning", "image files that repeat another", pairs)
    ]
    return repeats + found("both", "error", "image files of val that train has under another path", across)


def _look_for(file: _File) -> _Seen:
    return _Seen(None) if os.path.isfile(file.path) else _Seen("missing")


def _read(file: _File) -> _Seen:
    if not os.path.isfile(file.path):
        return _Seen("missing")
    try:
        with open(file.path, "rb") as content:
            digest = hashlib.file_digest(content, "blake2b").digest()
        size = read_image(file.path).shape[:2]
    except MemoryError:
        return _Seen("damaged", ": not enough memory")
    except (DataError, OSError) as error:
        return _Seen("damaged", f": {str(error).removeprefix(f'{file.path}: cannot be decoded as an image: ')}")
    if file.size is None or size == file.size:
        return _Seen(None, digest=digest)
    try:
        read_image(file.path, file.size)
    except DataError:
        return _Seen("size", f": {size[1]} x {size[0]}, annotated {file.size[1]} x {file.size[0]}", digest)
    return _Seen("stored", digest=digest)


def _read_all(files: Sequence[_File], workers: int) -> Iterator[_Seen]:
    """What is seen of each file, in order, whatever happens to the processes.

    A decoder can crash, and an image can take more memory than there is; the process that reads it is gone then, and with
    it the pool. The images in question are read again, each in a process that may die of it.
    """
    position = 0
    while position < len(files):
        pool = _pool(workers)
        try:
            for seen in pool.map(_read, files[position : position + _BLOCK]):
                position += 1
                yield seen
        except BrokenProcessPool:
            # More than were begun at once. Should the culprit come later, as results are in order, it breaks the next pool.
            for file in files[position : position + 2 * workers]:
                position += 1
                yield _read_alone(file)
        finally:
            pool.shutdown(cancel_futures=True)


def _read_alone(file: _File) -> _Seen:
    with _pool(1) as pool:
        try:
            return pool.submit(_read, file).result()
        except BrokenProcessPool:
            return _Seen("damaged", ": the process that decoded it was killed; does it need too much memory?")


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, initializer=_quiet)


def _quiet() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends the work
    warnings.simplefilter("ignore")  # of Pillow, through the progress bar
