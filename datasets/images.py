"""Images of every kind as RGB arrays."""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .annotations import Annotations
from .errors import DataError

# What Pillow's decoders raise for damaged files of one format or another.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, OverflowError, RuntimeError, struct.error, zlib.error)
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
        DataError: the file is missing, damaged, of a kind that is not understood, or of another size than expected.
    """
    try:
        with Image.open(path) as file:
            orientation = _orientation(file)
            image = to_rgb(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded as an image: {error}") from error
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    sizes = [(candidate.height, candidate.width) for candidate in (upright, image)]
    if expected_size is None or sizes[0] == tuple(expected_size):
        return np.asarray(upright)
    if sizes[1] == tuple(expected_size):
        return np.asarray(image)
    raise DataError(
        f"{path}: has height {sizes[0][0]} and width {sizes[0][1]}, but its annotations say height {expected_size[0]} and "
        f"width {expected_size[1]}; was it resized after annotating, or is it the image of another dataset?"
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


def check_images(annotations: Annotations, folder: Path | str) -> None:
    """Raise DataError if the folder, or any of the first and last 50 images in it, is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images (for {annotations.path})")
    names = annotations.file_names
    looked_at = names if len(names) <= 100 else np.concatenate([names[:50], names[-50:]])
    missing = [str(name) for name in looked_at if not (folder / str(name)).is_file()]
    if not missing:
        return
    hint = ""
    if annotations.is_lvis or any("2017/" in name for name in missing):
        hint = (
            "; LVIS val uses images of train2017 too: put train2017 and val2017 of COCO into one folder and name that"
        )
    raise DataError(
        f"{folder}: {len(missing)} of the {len(looked_at)} images looked at are missing, for example {missing[0]}; it must be "
        f"the folder which the file names in {annotations.path} are relative to{hint}"
    )
