"""Kinds of arguments that several tools take."""

import argparse
import re


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return number


def size(text: str) -> tuple[int, int]:
    """(height, width) in pixels."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected height x width such as 800x1333, found {text!r}")
    return int(match[1]), int(match[2])


def by(pixels: tuple[int, int]) -> str:
    """A size as people write it: 800x1333."""
    return "x".join(map(str, pixels))


def add_config(parser: argparse.ArgumentParser, *, required: bool = True, help: str = "") -> None:
    """`--config`, and overrides of its keys after all other arguments."""
    what = help or "YAML file, or the name of a packaged configuration such as quickstart"
    parser.add_argument("--config", required=required, metavar="FILE", help=what)
