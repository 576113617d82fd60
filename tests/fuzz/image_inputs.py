"""Images: damaged, mislabeled, of every format, and far larger than their files."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, refused, run_tool
from mutations import damaged
from PIL import Image
from specimens import write_dataset

from longshot.datasets.images.reading import read_image
from longshot.tools import check_dataset

HEIGHT, WIDTH = 64, 48  # of image 3
_PIXELS = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
_SMOOTH = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)


class Images:
    """Files called 3.png, whatever is in them."""

    inputs = 180

    def __init__(self, folder: Path):
        self.folder = folder
        self.annotations = write_dataset(folder)
        self.path = folder / "3.png"
        self.good = [(name, make()) for name, make in GOOD.items()]

    def case(self, number: int, rng: random.Random) -> Case:
        """The named ones first, with and without annotations, then damaged ones of every format."""
        expected_size = (HEIGHT, WIDTH) if number % 2 else None
        if number < 2 * len(NAMED):
            what, make, check = NAMED[number // 2]
            content = make()
        elif number < 2 * len(NAMED) + len(GOOD):
            (what, content), check, expected_size = self.good[number - 2 * len(NAMED)], is_image, (HEIGHT, WIDTH)
        else:
            (name, content), check = rng.choice(self.good), is_image
            what, content = damaged(content, rng)
            what = f"{name}: {what}"
        self.path.write_bytes(content)
        if number % 25 == 24:
            return Case(f"{what} (check_dataset)", self.path, self.check_dataset, lambda _: None)
        what = f"{what}{' (of known size)' if expected_size else ''}"
        return Case(what, self.path, lambda: (read_image(self.path, expected_size), expected_size), check)

    def check_dataset(self) -> str:
        """What tools/check_dataset.py finds, which reads in a process of its own."""
        return run_tool(
            check_dataset.main, "--annotations", self.annotations, "--images", self.folder, "--workers", 1, codes=(0, 1)
        )


def is_image(result: tuple[np.ndarray, tuple[int, int] | None]) -> None:
    """RGB, of the size that it should have."""
    image, expected_size = result
    assert image.dtype == np.uint8, image.dtype
    assert image.shape[2:] == (3,), image.shape
    assert expected_size in (None, image.shape[:2]), image.shape


def _is_specimen(result: tuple[np.ndarray, Any]) -> None:
    assert np.array_equal(result[0], _PIXELS), "other pixels"


def _saved(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    (image or Image.fromarray(_PIXELS)).save(out, kind, **options)
    return out.getvalue()


def _oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _saved("JPEG", exif=exif)


def _animated(kind: str) -> bytes:
    more = [Image.fromarray(_PIXELS[::-1]), Image.fromarray(_PIXELS[:, ::-1])]
    return _saved(kind, save_all=True, append_images=more)


GOOD: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: _saved("PNG"),
    "JPEG": lambda: _saved("JPEG"),
    "progressive JPEG": lambda: _saved("JPEG", progressive=True),
    "gray JPEG": lambda: _saved("JPEG", Image.fromarray(_SMOOTH)),
    "CMYK JPEG": lambda: _saved("JPEG", Image.fromarray(_PIXELS).convert("CMYK")),
    "upright JPEG": lambda: _oriented(1),
    "16-bit PNG": lambda: _saved("PNG", Image.fromarray(_SMOOTH.astype(np.uint16) * 257)),
    "PNG of one bit": lambda: _saved("PNG", Image.fromarray(_SMOOTH > 99)),
    "PNG with a palette": lambda: _saved("PNG", Image.fromarray(_PIXELS).quantize(16), transparency=3),
    "transparent PNG": lambda: _saved("PNG", Image.fromarray(_PIXELS).convert("RGBA")),
    "animated PNG": lambda: _animated("PNG"),
    "GIF": lambda: _saved("GIF"),
    "animated GIF": lambda: _animated("GIF"),
    "BMP": lambda: _saved("BMP"),
    "TIFF": lambda: _saved("TIFF"),
    "compressed TIFF": lambda: _saved("TIFF", compression="tiff_lzw"),
    "deflated TIFF": lambda: _saved("TIFF", compression="tiff_adobe_deflate"),
    "WebP": lambda: _saved("WEBP", lossless=True),
    "animated WebP": lambda: _animated("WEBP"),
    "JPEG 2000": lambda: _saved("JPEG2000"),
    "PPM": lambda: _saved("PPM"),
    "TGA": lambda: _saved("TGA"),
    "ICO": lambda: _saved("ICO", sizes=[(WIDTH, HEIGHT)]),
    "PCX": lambda: _saved("PCX"),
}


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, *more: bytes, depth: int = 8, color: int = 2, data: bytes | None = None) -> bytes:
    """A PNG that says any size; the pixels are those of the specimen unless `data` are given."""
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in _PIXELS)) if data is None else data
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [_chunk(b"IHDR", header), *more, _chunk(b"IDAT", data), _chunk(b"IEND", b"")]
    )


def _zeros(megabytes: int) -> bytes:
    """So many MiB of zeros as zlib writes them, but for the checksum."""
    squeeze = zlib.compressobj(9)
    first = squeeze.compress(bytes(2**20)) + squeeze.flush(zlib.Z_FULL_FLUSH)  # after which the stream begins anew
    again = squeeze.compress(bytes(2**20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return first + again * (megabytes - 1) + squeeze.flush()


def _jpeg(width: int, height: int) -> bytes:
    """The JPEG specimen with another size in its header."""
    content = bytearray(_saved("JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def _many_frames() -> bytes:
    frames = [Image.new("P", (1000, 1000), i % 256) for i in range(30)]
    return _saved("GIF", frames[0], save_all=True, append_images=frames[1:])


_TEXT_BOMB = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**26)))
_PROFILE_BOMB = _chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**26)))
# What was done, the file, and what may be made of it.
NAMED: list[tuple[str, Callable[[], bytes], Callable]] = [
    ("untouched", GOOD["PNG"], _is_specimen),
    ("nothing", lambda: b"", refused("nothing")),
    ("text", lambda: b"not an image\n" * 100, refused("text")),
    ("a PNG of 10^9 x 10^9", lambda: _png(10**9, 10**9), refused("an absurd size")),
    ("a PNG of 2^31 - 1 squared", lambda: _png(2**31 - 1, 2**31 - 1), refused("an absurd size")),
    ("a PNG of 2^32 - 1 squared", lambda: _png(2**32 - 1, 2**32 - 1), refused("an absurd size")),
    ("a PNG of 0 x 0", lambda: _png(0, 0), refused("no pixels")),
    ("a PNG of 0 x 64", lambda: _png(0, 64), refused("no pixels")),
    ("a PNG of 13,000 squared, in 170 kB", lambda: _png(13_000, 13_000, color=0, data=_zeros(162)), refused("a bomb")),
    ("a PNG of 30,000 squared, in 900 kB", lambda: _png(30_000, 30_000, color=0, data=_zeros(859)), refused("a bomb")),
    ("a PNG with too many pixels", lambda: _png(WIDTH, HEIGHT, data=_zeros(100)), is_image),
    ("a PNG with too few pixels", lambda: _png(WIDTH, HEIGHT, data=zlib.compress(b"\0" * 100)), refused("half an image")),
    ("a PNG with 64 MiB of text", lambda: _png(WIDTH, HEIGHT, _TEXT_BOMB), is_image),
    ("a PNG with 64 MiB of profile", lambda: _png(WIDTH, HEIGHT, _PROFILE_BOMB), is_image),
    ("a PNG of an unknown depth", lambda: _png(WIDTH, HEIGHT, depth=7), refused("an unknown depth")),
    ("a JPEG of 65,535 squared", lambda: _jpeg(65_535, 65_535), refused("an absurd size")),
    ("a JPEG of 0 squared", lambda: _jpeg(0, 0), refused("no pixels")),
    ("a JPEG of 10,000 squared", lambda: _jpeg(10_000, 10_000), refused("a bomb")),
    ("a GIF of 30 frames", _many_frames, lambda result: None),
    ("numbers with a fraction", lambda: _saved("TIFF", Image.fromarray(_SMOOTH.astype(np.float32))), refused("fractions")),
    ("PostScript", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 64\n%%EndComments\nshowpage\n", refused("a program")),
    ("SVG", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", refused("SVG")),
    ("a PDF", lambda: b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n", refused("a PDF")),
    ("a PPM of 10^9 x 10^9", lambda: b"P6\n1000000000 1000000000\n255\n" + bytes(100), refused("an absurd size")),
    ("a BMP of 2^31 - 1 squared", lambda: _bmp(2**31 - 1), refused("an absurd size")),
]  # fmt: skip


def _bmp(side: int) -> bytes:
    content = bytearray(_saved("BMP"))
    content[18:26] = struct.pack("<ii", side, side)
    return bytes(content)
