"""Show everything that is wrong with a dataset: files, images, boxes, classes, and what training and validation share."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from longshot.tools.arguments import positive

if TYPE_CHECKING:
    from longshot.datasets.check import Checked, SplitFiles

_USAGE = """
  %(prog)s --annotations FILE --images DIR [--val-annotations FILE --val-images DIR]
           [--no-images] [--workers N] [--json FILE]
  %(prog)s --config FILE [--no-images] [--workers N] [--json FILE] [section.key=value ...]"""
_CODES = "exit code: 0 without errors, whatever the warnings and notes; 1 with errors; 2 if the arguments are wrong"


def main() -> None:
    parser = _parser()
    arguments = parser.parse_intermixed_args()
    from longshot.datasets.check import check_dataset, table, verdict
    from longshot.detector.errors import readable_errors

    with readable_errors():
        train, val = _configured(parser, arguments) if arguments.config else _named(parser, arguments)
        _check_folders(parser, arguments, train, val)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)  # before the work
        checked = check_dataset(
            train, val, read_images=not arguments.no_images, workers=arguments.workers, progress=_progress
        )
        rows = table(checked.findings)
        print("\n".join(filter(None, [*checked.summary, rows, verdict(checked.findings)])))
        if arguments.json:
            arguments.json.write_text(_json(checked), encoding="utf-8")
    sys.exit(any(finding.severity == "error" for finding in checked.findings))


def _progress(iterable: Iterable, length: int) -> Iterable:
    from longshot.detector.system.environment import progress_bar

    return progress_bar(iterable, total=length, desc="images", unit="image", leave=False)


def _json(checked: "Checked") -> str:
    from longshot.datasets.check import verdict

    findings = [finding._asdict() for finding in checked.findings]
    content = {"verdict": verdict(checked.findings), "splits": checked.summary, "findings": findings}
    return json.dumps(content, indent=1) + "\n"


def _named(parser: argparse.ArgumentParser, given: argparse.Namespace) -> "tuple[SplitFiles, SplitFiles | None]":
    """Train and val as the arguments name them; ends with a usage error if they are not complete."""
    from longshot.datasets.check import SplitFiles

    if not given.annotations:
        parser.error("give --annotations or --config")
    if given.overrides:
        parser.error(f"{given.overrides[0]}: only together with --config")
    if given.val_images and not given.val_annotations:
        parser.error("--val-images: needs --val-annotations too")
    val = SplitFiles(given.val_annotations, given.val_images) if given.val_annotations else None
    return SplitFiles(given.annotations, given.images), val


def _configured(parser: argparse.ArgumentParser, given: argparse.Namespace) -> "tuple[SplitFiles, SplitFiles | None]":
    """Train and val of a configuration, which may have no val; a drawn dataset is drawn first."""
    from longshot.datasets.check import SplitFiles
    from longshot.detector.build_data import draw
    from longshot.detector.config.schema import load_config

    named = ("annotations", "images", "val_annotations", "val_images")
    others = [f"--{name.replace('_', '-')}" for name in named if getattr(given, name)]
    if others:
        parser.error(f"{', '.join(others)} cannot be used together with --config")
    data = load_config(given.config, given.overrides).data
    if data.generate:
        try:
            files = draw(data.generate)
        except ValueError as error:
            parser.error(f"{given.config}: data.generate: {error}")
        return SplitFiles(files.train, files.images), SplitFiles(files.val, files.images)
    if not data.train.annotations:
        parser.error(f"{given.config}: data.train.annotations is not set")
    train, val = (
        SplitFiles(Path(split.annotations), Path(split.images) if split.images else None) if split.annotations else None
        for split in (data.train, data.val)
    )
    return train, val


def _check_folders(parser: argparse.ArgumentParser, given: argparse.Namespace, *splits: "SplitFiles | None") -> None:
    for name, files in zip(("train", "val"), splits, strict=True):
        if files and not files.images and not given.no_images:
            parser.error(f"{name}: the folder of images is not named; name it, or do without with --no-images")
    if given.json and given.json.is_dir():
        parser.error(f"--json: {given.json} is a folder; name a file")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage=_USAGE, description=__doc__, epilog=_CODES)
    for split, word in (("", "training"), ("val-", "validation")):
        parser.add_argument(f"--{split}annotations", type=Path, metavar="FILE", help=f"{word} set, COCO or LVIS JSON")
        parser.add_argument(f"--{split}images", type=Path, metavar="DIR", help=f"folder of the {word} images")
    parser.add_argument("--config", metavar="FILE", help="YAML file or name: check its data.train and data.val")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for instance data.val.images=DIR")
    parser.add_argument(
        "--no-images", action="store_true", help="do not read the images, only look whether they are there"
    )
    parser.add_argument(
        "--workers", type=positive, metavar="N",
        help="processes that read images (one for each processor)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings here too")
    return parser


if __name__ == "__main__":
    main()
