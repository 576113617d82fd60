"""Write the annotations of Open Images, Pascal VOC or YOLO as the LVIS-style JSON that all other tools read."""

import argparse
from pathlib import Path

from longshot.datasets.annotations.annotations import read_annotations
from longshot.datasets.convert import convert_open_images, convert_voc, convert_yolo
from longshot.datasets.images.transforms import usable_objects
from longshot.detector.errors import readable_errors


def main() -> None:
    arguments = vars(_arguments())
    convert, out = arguments.pop("convert"), arguments.pop("out")
    with readable_errors():
        lines = convert(out, **arguments)
        # Not before it has been read as training reads it is it any good; and the next tool finds it in the cache.
        _, left_out = usable_objects(read_annotations(out))
    print("\n".join(filter(None, [*lines, left_out])))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    formats = parser.add_subparsers(required=True, metavar="FORMAT")
    open_images = _add_format(formats, "open-images", convert_open_images, "Open Images V5, V6, challenge 2019")
    _add_files(
        open_images,
        ("--classes", "FILE", True, "CSV of LabelName and DisplayName; other classes are left out"),
        ("--boxes", "FILE", True, "CSV of boxes"),
        ("--image-labels", "FILE", False, "CSV of human-verified labels; needed for evaluation"),
        ("--images", "DIR", False, "folder of the images, ImageID.jpg, whose sizes are read; or"),
        ("--sizes", "FILE", False, "CSV with the columns ImageID, Width, Height"),
        ("--hierarchy", "FILE", False, "JSON: add the classes above those of the boxes; for evaluation"),
    )
    open_images.add_argument(
        "--groups-as-objects", action="store_true",
        help="group-of boxes are objects like all others, as in the code of EQL v2; for training only",
    )  # fmt: skip
    _add_files(
        _add_format(formats, "voc", convert_voc, "Pascal VOC"),
        ("--xml", "DIR", True, "folder of XML files"),
        ("--image-set", "FILE", False, "the images to take, a name in each line; default: all"),
        (
            "--classes",
            "FILE",
            False,
            "the classes in their order, one in each line; default: those that occur, by name",
        ),
    )
    _add_files(
        _add_format(formats, "yolo", convert_yolo, "YOLO"),
        ("--images", "DIR", True, "folder of the images"),
        ("--labels", "DIR", True, "folder of the text files"),
        ("--names", "FILE", True, "data.yaml, or a text file with a class in each line"),
    )
    return parser.parse_args()


def _add_format(formats: argparse._SubParsersAction, name: str, convert, what: str) -> argparse.ArgumentParser:
    parser = formats.add_parser(name, help=what, description=f"{what} as LVIS-style JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help="the JSON file to write")
    parser.set_defaults(convert=convert)
    return parser


def _add_files(parser: argparse.ArgumentParser, *files: tuple[str, str, bool, str]) -> None:
    for option, metavar, required, text in files:
        parser.add_argument(option, type=Path, metavar=metavar, required=required, help=text)


if __name__ == "__main__":
    main()
