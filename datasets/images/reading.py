"""Images of every kind as RGB arrays."""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..annotations.annotations import Annotations
from ..errors import DataError

# What Pillow's decoders raise for damaged files of one format or another.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, OverflowError, RuntimeError, struct.error, zlib.error)
_LARGE = 89_478_485  # pixels, from which on Pillow warns: read, they take a gigabyte
_MOST_PER_BYTE = 200  # pixels: what a camera takes has two or less, a blank page three hundred
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path | str, expected_size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The image as (H, W, 3) RGB, upright: its EXIF orientation is applied.

    Gray, palette, CMYK and 16-bit images become 8-bit RGB; transparency is dropped; of an animation comes the first frame.

    Args:
        expected_size: (height, width) that the annotations give. Some datasets were annotated on images as they are
            stored: where the stored size agrees with the annotations and the upright one does not, the image stays.

    Raises:
        DataError: the file is missing, damaged, of a kind that is not understood, of another size than expected, or
            of more than 179 million pixels (Pillow's limit), both of which are found out before pixels take memory.
    """
    try:
        content = open(path, "rb")  # noqa: SIM115, used as a context below
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        missing = isinstance(error, FileNotFoundError)
        why = "no such image" if missing else f"cannot be opened: {getattr(error, 'strerror', None) or error}"
        raise DataError(f"{path}: {why}") from error
    with content, _damage_as_data_error(content, path), Image.open(content) as file:
        stored = file.height, file.width
        # Before the pixels take memory: a few bytes can claim gigabytes of them.
        if expected_size is not None and sorted(stored) != sorted(expected_size):
            raise _other_size(path, stored, expected_size)
        _check_no_bomb(file.width * file.height, os.fstat(content.fileno()).st_size)
        orientation = _orientation(file)
        image = to_rgb(file)
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    sizes = [(candidate.height, candidate.width) for candidate in (upright, image)]
    if expected_size is None or sizes[0] == tuple(expected_size):
        return np.asarray(upright)
    if sizes[1] == tuple(expected_size):
        return np.asarray(image)
    raise _other_size(path, sizes[0], expected_size)


@contextmanager
def _damage_as_data_error(content: BinaryIO, path: Path | str) -> Iterator[None]:
    """Turn what Pillow raises for the content of a file into DataError."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        empty = os.fstat(content.fileno()).st_size == 0
        why = "the file is empty" if empty else "its content is that of no image format"
        raise DataError(f"{path}: cannot be decoded as an image: {why}") from error
    except MemoryError as error:
        raise DataError(f"{path}: cannot be decoded as an image: there is not enough memory") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded as an image: {error}") from error


def _check_no_bomb(pixels: int, size: int) -> None:
    """Raise ValueError for so many pixels in so few bytes that there can be no picture in them."""
    if pixels > _LARGE and pixels > _MOST_PER_BYTE * size:
        raise ValueError(f"{size:,} bytes say that they hold {pixels:,} pixels; is it a decompression bomb?")


def _other_size(path: Path | str, found: tuple[int, int], expected: tuple[int, int]) -> DataError:
    return DataError(
        f"{path}: has height {found[0]} and width {found[1]}, but its annotations say height {expected[0]} and "
        f"width {expected[1]}; was it resized after annotating, or is it the image of another dataset?"
    )


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except _DAMAGED:
        return 1  # damaged metadata leave the pixels as good as they are


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB; the image itself if it is that. Raises ValueError for floating-point pixels."""
    image.load()
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip at 255
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert it to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def check_images(annotations: Annotations, folder: Path | str, *, allow_missing: bool = False) -> None:
    """Raise DataError if the folder, or any of the first and last 50 images in it, is missing.

    Args:
        allow_missing: half of them must be missing, as in a folder of other images.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # false also for what can be no path; Path.is_dir raises OSError then
        raise DataError(f"{folder}: no such folder of images (for {annotations.path})")
    names = annotations.file_names
    looked_at = names if len(names) <= 100 else np.concatenate([names[:50], names[-50:]])
    # isfile is false also for what can be no path.
    missing = [str(name) for name in looked_at if not os.path.isfile(folder / str(name))]
    if not missing or (allow_missing and len(missing) < len(looked_at) / 2):
        return
    hint = ""
    if annotations.is_lvis or any("2017/" in name for name in missing):
        hint = "; LVIS val uses images of train2017 too: put train2017 and val2017 of COCO into one folder and name that"
    raise DataError(
        f"{folder}: {len(missing)} of the {len(looked_at)} images looked at are missing, for example {missing[0][:200]}; it "
        f"must be the folder which the file names in {annotations.path} are relative to{hint}"
    )
