"""Sizes of many images, from the beginnings of their files."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from .problems import Problems

_BATCH = 4096  # an executor makes an object for each file that it is given
_ORIENTATION = 0x0112  # the EXIF tag
_SIDEWAYS = range(5, 9)


def read_sizes(
    paths: Sequence[Path], problems: Problems, *, upright: bool, progress: bool = True
) -> list[tuple[int, int]]:
    """(height, width) of each image; (1, 1) for those that are noted in `problems`, missing or not images.

    Args:
        upright: turn the images as their EXIF orientation says; else they are taken as they are stored.
    """
    with ThreadPoolExecutor() as pool, tqdm(total=len(paths), desc="sizes", unit="image", disable=not progress) as bar:
        found = []
        for size in _in_batches(pool, paths, upright):
            found.append(size)
            bar.update()
    for path, size in zip(paths, found, strict=True):
        if isinstance(size, str):
            problems.add(path, None, size)
    return [(1, 1) if isinstance(size, str) else size for size in found]


def _in_batches(pool: ThreadPoolExecutor, paths: Sequence[Path], upright: bool) -> Iterator[tuple[int, int] | str]:
    for start in range(0, len(paths), _BATCH):
        yield from pool.map(lambda path: _size(path, upright), paths[start : start + _BATCH])


def _size(path: Path, upright: bool) -> tuple[int, int] | str:
    """The size, or what is wrong."""
    try:
        with Image.open(path) as image:
            turned = upright and image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
            return (image.width, image.height) if turned else (image.height, image.width)
    except FileNotFoundError:
        return "no such image"
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"cannot be read as an image: {error}"
