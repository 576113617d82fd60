"""Annotation files, and what was kept of them in caches."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, refused, run_tool
from mutations import Raw, changed, damaged, dumped, replaced
from specimens import annotations, plain_json, write_dataset

from longshot.datasets.annotations.annotations import Annotations, read_annotations
from longshot.datasets.annotations.cache import cache_path
from longshot.datasets.classes import Classes
from longshot.datasets.images.reading import usable_objects
from longshot.datasets.loading.batches import BatchLoader, EvaluationBatches
from longshot.datasets.loading.dataset import DetectionDataset
from longshot.datasets.loading.samplers import TrainingStream, repeat_factors
from longshot.detector.evaluation.columnar import ColumnarEvaluator
from longshot.detector.evaluation.ground_truth import GroundTruth, choose_protocol
from longshot.tools import check_dataset

_LAYOUTS = ({}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False})


class AnnotationFiles:
    """Annotation files, as far as the images, the evaluator and tools/check_dataset.py."""

    inputs = 220

    def __init__(self, folder: Path):
        self.folder = folder
        write_dataset(folder)
        self.path = folder / "instances.json"

    def case(self, number: int, rng: random.Random) -> Case:
        """The named ones first, then random ones."""
        check = is_what_json_says
        if number < len(NAMED):
            what, make, check = NAMED[number]
            content = make()
        elif rng.random() < 0.4:
            what, content = damaged(dumped(annotations(), **rng.choice(_LAYOUTS)), rng)
        else:
            what, tree = changed(annotations(), rng)
            content = dumped(tree, **rng.choice(_LAYOUTS))
        self.path.write_bytes(content)
        if number % 10 == 9:
            return Case(f"{what} (check_dataset)", self.path, self.check_dataset, lambda _: None)
        return Case(what, self.path, self.read, check)

    def read(self) -> tuple[bytes, Annotations]:
        """All that happens to an annotation file before training, once parsed and once from the cache."""
        cache = cache_path(self.path)
        cache.unlink(missing_ok=True)
        known, again = read_annotations(self.path), read_annotations(self.path)
        assert known.cached, "it was not cached"
        assert same(known, again), "the cache says something else"
        usable_objects(known)
        Classes.from_annotations(known)
        ColumnarEvaluator(GroundTruth.from_annotations(known, choose_protocol("auto", known))).accumulate()
        dataset = DetectionDataset(known, self.folder)
        factors = repeat_factors(*dataset.learned_objects(), num_images=len(dataset), threshold=0.1)
        TrainingStream(len(dataset), batch_size=2, seed=0, factors=factors)
        options = {"short_side": 32, "long_side": 64, "pad_multiple": 32, "batch_size": 8}
        batches = EvaluationBatches(dataset, **options)
        for batch in BatchLoader(batches, range(len(batches))):
            assert all(targets.boxes.isfinite().all() for targets in batch.targets), "boxes that are not finite"
        return self.path.read_bytes(), known

    def check_dataset(self) -> str:
        """What the tool finds; a dataset with errors in it is what it is there for."""
        return run_tool(
            check_dataset.main, "--annotations", self.path, "--images", self.folder, "--no-images", "--workers", 1,
            codes=(0, 1),
        )  # fmt: skip


class Caches:
    """Damaged caches of a good annotation file: they are made anew, and never believed."""

    inputs = 50

    def __init__(self, folder: Path):
        self.path = write_dataset(folder)
        self.expected = read_annotations(self.path)
        self.cache = self.expected.cached.file
        self.content = self.cache.read_bytes()

    def case(self, number: int, rng: random.Random) -> Case:
        """A damaged cache."""
        what, content = damaged(self.content, rng)
        self.cache.unlink(missing_ok=True)  # rather than to write into what is mapped
        self.cache.write_bytes(content)
        return Case(what, self.path, lambda: read_annotations(self.path), self.check)

    def check(self, found: Annotations) -> None:
        """The content is that of the file, and the cache is whole again."""
        assert same(found, self.expected), "the content of a damaged cache"
        assert self.cache.read_bytes()[:8] == self.content[:8], "the cache was left as it is"


def same(one: Annotations, other: Annotations) -> bool:
    """Whether two readings say the same; NaN is NaN."""
    names = [name for name in vars(one) if name not in ("cached", "path", "file_names")]
    return list(one.file_names) == list(other.file_names) and all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") if isinstance(a, np.ndarray) else a == b
        for a, b in ((getattr(one, name), getattr(other, name)) for name in names)
    )


def is_what_json_says(result: tuple[bytes, Annotations]) -> None:
    """Raise AssertionError unless Python's own parser finds the same in the bytes, object by object."""
    content, known = result
    file = plain_json(content)
    images = {_whole(i["id"]): i for i in file["images"]}
    assert len(images) == len(file["images"]), "image ids that come twice"
    categories = {_whole(c["id"]): c["name"] for c in file["categories"]}
    assert len(categories) == len(file["categories"]), "category ids that come twice"
    assert known.image_ids.tolist() == sorted(images), "image ids"
    assert known.category_ids.tolist() == sorted(categories), "category ids"
    assert list(known.class_names) == [categories[i] for i in sorted(categories)], "class names"
    sizes = [[_whole(images[i]["height"]), _whole(images[i]["width"])] for i in sorted(images)]
    assert known.image_sizes.tolist() == sizes, "image sizes"
    assert np.min(sizes) > 0, "image sizes"
    names = [images[i].get("file_name") or "/".join(images[i]["coco_url"].split("/")[-2:]) for i in sorted(images)]
    assert list(known.file_names) == names, "file names"
    assert all(names), "file names"
    found = zip(known.annotation_ids.tolist(), known.image_ids[known.object_images].tolist(),
                known.category_ids[known.labels].tolist(), known.boxes_xywh.tolist(), known.areas.tolist(),
                known.crowd.tolist(), known.ignore.tolist(), strict=True)  # fmt: skip
    wanted = sorted((_object(a) for a in file["annotations"]), key=lambda a: a[1])
    assert [repr(a) for a in found] == [repr(a) for a in wanted], f"objects: {wanted}"


def _object(a: dict[str, Any]) -> tuple:
    box = a.get("bbox")
    good = isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box)
    box = [float(x) for x in box] if good else [math.nan] * 4
    area = box[2] * box[3] if a.get("area") is None else float(a["area"])
    crowd, ignore = (bool(int(a.get(key) or 0)) for key in ("iscrowd", "ignore"))
    return _whole(a["id"]), _whole(a["image_id"]), _whole(a["category_id"]), box, area, crowd, ignore


def _whole(value: Any) -> int:
    assert type(value) in (int, float), f"{value!r} for a whole number"
    assert value == int(value), f"{value!r} for a whole number"
    return int(value)


def _with(*place: Any, value: Any) -> Callable[[], bytes]:
    return lambda: dumped(replaced(annotations(), place, value))


def _with_records(key: str, records: Callable[[], list]) -> Callable[[], bytes]:
    return lambda: dumped(annotations() | {key: records()})


def _sized(height: Any, width: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        tree = annotations()
        for image in tree["images"]:
            image |= {"height": height, "width": width}
        return dumped(tree)

    return make


def _categories(number: int) -> list[dict]:
    return [{"id": i, "name": f"c{i}"} for i in range(number)]


_TWICE = '{"images": [], ' + json.dumps(annotations())[1:]
# What was done, the file, and what may be made of it.
NAMED: list[tuple[str, Callable[[], bytes], Callable]] = [
    ("untouched", lambda: dumped(annotations()), is_what_json_says),
    ("a million categories", _with_records("categories", lambda: _categories(10**6)), refused("a million categories")),
    ("a hundred thousand classes to be absent", _with("images", 0, "neg_category_ids", value=[3] * 10**5), is_what_json_says),
    ("images of 10^9 x 10^9", _sized(10**9, 10**9), refused("an absurd size")),
    ("images of 2^31-1 x 1", _sized(2**31 - 1, 1), refused("an absurd size")),
    ("images of 2^31", _sized(2**31, 64), refused("an absurd size")),
    ("images of 0", _sized(0, 64), refused("no size")),
    ("images as text", _sized("64", "64"), refused("a size in quotes")),
    ("the list of images twice", lambda: _TWICE.encode(), is_what_json_says),
    ("polygons 10,000 deep", _with("annotations", 0, "segmentation", value=Raw("[" * 10**4 + "]" * 10**4)), is_what_json_says),
    ("polygons never closed", _with("annotations", 0, "segmentation", value=Raw("[" * 10**6)), refused("no JSON")),
    ("an id of 400 digits", _with("annotations", 0, "id", value=10**400), refused("an absurd id")),
    ("an id of 5,000 digits", _with("annotations", 0, "id", value=Raw("1" * 5000)), refused("an absurd id")),
    ("category_id 2^31 + 7", _with("annotations", 0, "category_id", value=2**31 + 7), refused("an unknown class")),
    ("category_id -1", _with("annotations", 0, "category_id", value=-1), refused("an unknown class")),
    ("no such image", _with("annotations", 0, "image_id", value=4), refused("an unknown image")),
    ("image ids near 2^63", _with("images", 2, "id", value=2**63 - 1), refused("objects of an unknown image")),
    ("a box of NaN", _with("annotations", 0, "bbox", value=[math.nan] * 4), is_what_json_says),
    ("a box of infinities", _with("annotations", 0, "bbox", value=[math.inf, 0, math.inf, 1]), is_what_json_says),
    ("a box of 1e308", _with("annotations", 0, "bbox", value=[-1e308, -1e308, 1e308, 1e308]), is_what_json_says),
    ("a box of 400 digits", _with("annotations", 0, "bbox", value=[0, 0, 10**400, 1]), refused("a number beyond all")),
    ("a box outside", _with("annotations", 0, "bbox", value=[1000, 1000, 5, 5]), is_what_json_says),
    ("a box of five numbers", _with("annotations", 0, "bbox", value=[1, 2, 3, 4, 5]), is_what_json_says),
    ("an area of NaN", _with("annotations", 0, "area", value=math.nan), is_what_json_says),
    ("no annotations", _with("annotations", value=[]), refused("nothing to learn")),
    ("no images", _with("images", value=[]), refused("nothing")),
    ("no categories", _with("categories", value=[]), refused("nothing")),
    ("an annotation id twice", _with("annotations", 1, "id", value=1), refused("an id twice")),
    ("an image id twice", _with("images", 1, "id", value=3), refused("an id twice")),
    ("a category id twice", _with("categories", 1, "id", value=90), refused("an id twice")),
    ("a file name with a zero", _with("images", 0, "file_name", value="a\0b.png"), refused("an impossible name")),
    ("a file name of 5,000 letters", _with("images", 0, "file_name", value="x" * 5000), refused("an impossible name")),
    ("half a surrogate pair", _with("images", 0, "file_name", value="\ud800.png"), refused("an impossible name")),
    ("a file name that is a folder", _with("images", 0, "file_name", value="."), refused("a folder for an image")),
    ("the root for an image", _with("images", 0, "file_name", value="/"), refused("a folder for an image")),
    ("a class name of a megabyte", _with("categories", 0, "name", value="x" * 2**20), is_what_json_says),
    ("all in a list", lambda: dumped([annotations()]), refused("a list")),
    ("a number alone", lambda: b"1", refused("a number")),
    ("lists 10,000 deep alone", lambda: b"[" * 10**4 + b"]" * 10**4, refused("a list")),
    ("a megabyte of [", lambda: b"[" * 2**20, refused("no JSON")),
]  # fmt: skip
