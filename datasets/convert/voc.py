"""Pascal VOC XML as COCO JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tqdm import tqdm

from ..errors import DataError
from .names import read_names, read_text
from .output import Annotation, Category, Image, boxes_xywh, write_annotations
from .problems import Problems

_EDGES = ("xmin", "ymin", "xmax", "ymax")


class _Object(NamedTuple):
    image_id: int
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


def convert_voc(
    out: Path, *, xml: Path, image_set: Path | None = None, classes: Path | None = None, progress: bool = True
) -> list[str]:
    """Write a folder of VOC XML as COCO JSON; lines of text come back that say what it holds.

    VOC counts pixels from 1, and a box holds its last row and column: (1, 1, 1, 1) is the first pixel. Ours are edges
    between pixels, so that x = xmin - 1, y = ymin - 1, width = xmax - xmin + 1, height = ymax - ymin + 1.

    `difficult` objects get `ignore` 1: training ignores their boxes. The lvis protocol ignores them too; the coco
    protocol does not know the field. `part`s of objects are left out. Image ids follow the order of the file names,
    category ids that of the classes, both from 1.

    Args:
        xml: the folder, "Annotations" in VOC.
        image_set: the images to take, a name without ending in each line (ImageSets/Main/trainval.txt); none: all.
        classes: the classes in their order, one a line; none: all that occur, by name.

    Raises:
        DataError: input is missing or malformed; it names the first places and counts them all.
    """
    problems = Problems()
    files = _files(xml, image_set, problems)
    images, objects, outside = [], [], 0
    for number, path in enumerate(tqdm(files, desc="voc", unit="image", disable=not progress), start=1):
        image, found = _read(path, number, problems)
        images.append(image)
        objects += found
        outside += sum(not _inside(o.corners, image) for o in found)
    names = read_names(classes) if classes else sorted({o.name for o in objects})
    _check_names(objects, names, [files[o.image_id - 1] for o in objects], problems)
    problems.check()
    if not objects:
        raise DataError(f"{xml}: {len(files)} XML files without an object")
    write_annotations(
        out,
        images=images,
        annotations=_annotations(objects, names),
        categories=[Category(k + 1, name) for k, name in enumerate(names)],
    )
    difficult = sum(o.difficult for o in objects)
    lines = [f"{out}: {len(images)} images, {len(objects)} boxes ({difficult} difficult) of {len(names)} classes"]
    if outside:
        lines.append(
            f"{outside} boxes are not within pixels 1 to width and 1 to height, and are kept as they are; do these "
            "files count from 0?"
        )
    return lines


def _files(xml: Path, image_set: Path | None, problems: Problems) -> list[Path]:
    if not xml.is_dir():
        raise DataError(f"{xml}: no such folder of XML files")
    files = _listed(xml, image_set, problems) if image_set else sorted(xml.glob("*.xml"))
    if not files:
        raise DataError(f"{image_set}: names no image" if image_set else f"{xml}: holds no XML file")
    return files


def _listed(xml: Path, image_set: Path, problems: Problems) -> list[Path]:
    files = set()
    for line, name in enumerate(map(str.strip, read_text(image_set).splitlines()), start=1):
        path = xml / f"{name}.xml"
        if name and not path.is_file():
            problems.add(image_set, line, f"{name!r} has no {path}; expected the name of one image, without ending")
        elif name and path in files:
            problems.add(image_set, line, f"{name!r} comes twice")
        elif name:
            files.add(path)
    problems.check()
    return sorted(files)


def _read(path: Path, number: int, problems: Problems) -> tuple[Image, list[_Object]]:
    """The image and its objects, without those that are noted as malformed."""
    nothing = Image(number, 1, 1, path.name)
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two for strange encodings
        problems.add(path, None, f"not XML: {error}")
        return nothing, []
    except OSError as error:
        problems.add(path, None, f"cannot read it: {error.strerror}")
        return nothing, []
    try:
        width, height = (_side(root, f"size/{side}") for side in ("width", "height"))
        image = Image(number, width, height, _text(root, "filename"))
    except ValueError as error:
        problems.add(path, None, str(error))
        image = nothing
    objects = []
    for place, element in enumerate(root.findall("object"), start=1):
        try:
            objects.append(_object(element, number))
        except ValueError as error:
            problems.add(path, None, f"object {place}: {error}")
    return image, objects


def _object(element: ElementTree.Element, image_id: int) -> _Object:
    """Raises ValueError for a malformed one."""
    corners = tuple(_number(element, f"bndbox/{edge}") for edge in _EDGES)
    if not (corners[0] <= corners[2] and corners[1] <= corners[3]):
        raise ValueError(f"box {', '.join(f'{value:g}' for value in corners)}: expected xmin <= xmax and ymin <= ymax")
    difficult = "0" if element.find("difficult") is None else _text(element, "difficult")
    if difficult not in ("0", "1"):
        raise ValueError(f"<difficult> is {difficult!r}; expected 0 or 1")
    return _Object(image_id, _text(element, "name"), corners, difficult == "1")


def _text(element: ElementTree.Element, tag: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise ValueError(f"has no <{tag}>")
    return text


def _number(element: ElementTree.Element, tag: str) -> float:
    text = _text(element, tag)
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise ValueError(f"<{tag}> is {text!r}; expected a number")
    return number


def _side(element: ElementTree.Element, tag: str) -> int:
    number = _number(element, tag)
    if number < 1 or not number.is_integer():
        raise ValueError(f"<{tag}> is {number:g}; expected a number of pixels")
    return int(number)


def _inside(corners: tuple[float, float, float, float], image: Image) -> bool:
    xmin, ymin, xmax, ymax = corners
    return xmin >= 1 and ymin >= 1 and xmax <= image.width and ymax <= image.height


def _check_names(objects: Sequence[_Object], names: Sequence[str], files: Sequence[Path], problems: Problems) -> None:
    known = set(names)
    for o, path in zip(objects, files, strict=True):
        if o.name not in known:
            problems.add(path, None, f"class {o.name!r} is not in the list of {len(names)} classes")


def _annotations(objects: Sequence[_Object], names: Sequence[str]) -> list[Annotation]:
    ids = {name: k + 1 for k, name in enumerate(names)}
    boxes = boxes_xywh([o.corners for o in objects])
    boxes += [-1, -1, 1, 1]
    return [
        Annotation(number, o.image_id, ids[o.name], box, box[2] * box[3], 0, int(o.difficult))
        for number, (o, box) in enumerate(zip(objects, boxes.tolist(), strict=True), start=1)
    ]
