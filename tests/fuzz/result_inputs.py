"""Files of detections: the JSON of COCO results, and .npz."""

import io
import math
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, refused, run_tool
from mutations import Raw, Zeros, changed, damaged, dumped, replaced, zipped
from specimens import plain_json, write_dataset

from longshot.datasets.annotations.annotations import read_annotations
from longshot.detector.results.files import DetectionColumns, read_results, write_results
from longshot.tools import eval as eval_tool

_IMAGES, _CATEGORIES, _LABELS = [3, 3, 7, 11, 7], [90, 7, 12, 3, 90], [3, 1, 2, 0, 3]
_BOXES = [[4, 5.5, 20.25, 30], [10, 10, 12, 12], [30, 30, 15, 4], [0, 0, 64, 48], [1, 2, 8, 9]]
_SCORES = [0.5, 0.25, 0.875, 1.0, 0.0]


class _Results:
    """What both formats share: the annotations, and the way to the evaluator."""

    path: Path

    def __init__(self, folder: Path):
        self.annotations = write_dataset(folder)
        self.known = read_annotations(self.annotations)
        self.ids = {
            "image_ids": self.known.image_ids, "category_ids": self.known.category_ids, "class_names": self.known.class_names
        }  # fmt: skip

    def to_case(self, what: str, content: bytes, check: Callable, number: int) -> Case:
        """Through the function, or each seventh through tools/eval.py."""
        self.path.write_bytes(content)
        if number % 7 == 6:
            return Case(f"{what} (eval)", self.path, self.evaluate, lambda told: _has_table(told))
        return Case(what, self.path, lambda: (content, read_results(self.path, **self.ids)), check)

    def evaluate(self) -> str:
        """What the tool prints."""
        return run_tool(eval_tool.main, "--annotations", self.annotations, "--results", self.path)


class JsonResults(_Results):
    """Results as JSON."""

    inputs = 100

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.path = folder / "results.json"

    def case(self, number: int, rng: random.Random) -> Case:
        """The named ones first, then random ones."""
        if number < len(NAMED_JSON):
            what, make, check = NAMED_JSON[number]
            return self.to_case(what, make(), check, number)
        if rng.random() < 0.4:
            what, content = damaged(dumped(_records()), rng)
        else:
            what, tree = changed(_records(), rng)
            content = dumped(tree)
        return self.to_case(what, content, is_what_json_says, number)


class NpzResults(_Results):
    """Results as .npz."""

    inputs = 100

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.path, good = folder / "results.npz", folder / "good.npz"
        columns = DetectionColumns(
            self.known.image_ids.searchsorted(_IMAGES), np.array(_LABELS), np.array(_BOXES, np.float32),
            np.array(_SCORES, np.float32),
        )  # fmt: skip
        write_results(good, columns, **self.ids)
        self.content = good.read_bytes()
        self.arrays = dict(np.load(good))

    def case(self, number: int, rng: random.Random) -> Case:
        """The named ones first, then random ones."""
        if number < len(NAMED_NPZ):
            what, make, check = NAMED_NPZ[number]
            return self.to_case(what, make(self), check, number)
        if rng.random() < 0.5:
            what, content = damaged(self.content, rng)
            return self.to_case(what, content, self.is_specimen, number)
        what, arrays = _changed_arrays(self.arrays, rng)
        return self.to_case(what, packed(arrays), is_what_numpy_says, number)

    def is_specimen(self, result: tuple[bytes, DetectionColumns]) -> None:
        """Each array is protected by its checksum: what is read from a damaged file is what was written."""
        found = result[1]
        assert self.known.image_ids[found.image_index].tolist() == _IMAGES, "image ids"
        assert found.labels.tolist() == _LABELS, "labels"
        assert found.boxes_xywh.tolist() == _BOXES, "boxes"
        assert found.scores.tolist() == _SCORES, "scores"


def _has_table(told: str) -> None:
    assert "AP50" in told, f"no table: {told[:200]}"


def _records() -> list[dict[str, Any]]:
    rows = zip(_IMAGES, _CATEGORIES, _BOXES, _SCORES, strict=True)
    return [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in rows]


def is_what_json_says(result: tuple[bytes, DetectionColumns]) -> None:
    """Raise AssertionError unless Python's own parser finds the same detections."""
    content, found = result
    records = plain_json(content)
    assert np.array_equal([r["image_id"] for r in records], np.array([3, 7, 11])[found.image_index]), "image ids"
    labels = {3: 0, 7: 1, 12: 2, 90: 3}
    assert [labels.get(r["category_id"], -1) for r in records] == found.labels.tolist(), "labels"
    assert [[float(x) for x in r["bbox"]] for r in records] == found.boxes_xywh.tolist(), "boxes"
    assert [float(r["score"]) for r in records] == found.scores.tolist(), "scores"
    assert np.isfinite(found.boxes_xywh).all(), "boxes that are not finite"
    assert np.isfinite(found.scores).all(), "scores that are not finite"


def is_what_numpy_says(result: tuple[bytes, DetectionColumns]) -> None:
    """Raise AssertionError unless numpy finds the same arrays, and they fit together."""
    content, found = result
    arrays = np.load(io.BytesIO(content), allow_pickle=False)
    ids, categories = arrays["image_ids"], arrays["category_ids"]
    assert sorted(ids.tolist()) == [3, 7, 11], "images"
    assert np.array_equal(np.array([3, 7, 11])[found.image_index], ids[arrays["image_index"]]), "image ids"
    known = np.array([3, 7, 12, 90, -1])
    assert np.array_equal(known[found.labels], np.where(found.labels < 0, -1, categories[arrays["labels"]])), "labels"
    assert np.array_equal(found.boxes_xywh, arrays["boxes_xywh"]), "boxes"
    assert np.array_equal(found.scores, arrays["scores"]), "scores"
    assert np.isfinite(found.scores).all(), "scores that are not finite"
    assert len(found.image_index) == len(found.labels) == len(found.scores) == len(found.boxes_xywh), "lengths"


def packed(arrays: dict[str, Any], save: Callable = np.savez) -> bytes:
    """The arrays as .npz; bytes stand for a member that is no array."""
    out = io.BytesIO()
    save(out, **{name: array for name, array in arrays.items() if not isinstance(array, bytes)})
    with zipfile.ZipFile(out, "a") as archive:
        for name, content in arrays.items():
            if isinstance(content, bytes):
                archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def npy(header: str, content: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """A .npy file with any text for a header."""
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text + content


def _declared(dtype: str, shape: str) -> bytes:
    return npy(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}", bytes(64))


def _changed_arrays(arrays: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    arrays, name = dict(arrays), rng.choice(list(arrays))
    array = arrays[name]
    match rng.randrange(8):
        case 0:
            return f"without {name}", {key: value for key, value in arrays.items() if key != name}
        case 1:
            arrays[name] = array[:-1]
        case 2:
            arrays[name] = np.concatenate([array, array])
        case 3:
            dtypes = ["f8", "f2", "c16", "i1", "u8", "?", "U3", "S3", "M8[s]", "V8", ">f4"]
            arrays[name] = np.zeros(array.shape, rng.choice(dtypes))
        case 4:
            arrays[name] = rng.choice(
                [array[None], array.T, array[:0], np.zeros((), array.dtype), array.repeat(300, 0)]
            )
        case 5:
            header = rng.choice(["", "{}", "1", "[" * 5000, "{'descr': '|O', 'fortran_order': False, 'shape': (5,)}"])
            arrays[name] = npy(header, rng.randbytes(40))
        case 6:
            shape = rng.choice(
                ["(-1,)", "(10**12,)", "(1000000000000,)", "(0, 0)", "(2,) * 99", "(2.5,)", "(True,)", "5"]
            )
            arrays[name] = _declared(rng.choice(["<f4", "<i8", "<U100", "|V999999999"]), shape)
        case _:
            array = arrays[name] = array.copy()
            odd = [math.nan, math.inf, -1, 1e30] if array.dtype.kind == "f" else [-1, -(2**31), 2**31 - 1, 3, 4, 5]
            array.flat[rng.randrange(array.size)] = value = rng.choice(odd)
            return f"a value of {name} = {value}", arrays
    return f"{name} is {arrays[name] if isinstance(arrays[name], bytes) else repr(arrays[name])}"[:200], arrays


def _with(*place: Any, value: Any) -> Callable[[], bytes]:
    return lambda: dumped(replaced(_records(), place, value))


NAMED_JSON: list[tuple[str, Callable[[], bytes], Callable]] = [
    ("untouched", lambda: dumped(_records()), is_what_json_says),
    ("no detection", lambda: b"[]", is_what_json_says),
    ("a score of NaN", _with(0, "score", value=math.nan), refused("NaN")),
    ("a score of infinity", _with(0, "score", value=math.inf), refused("infinity")),
    ("a score of 400 digits", _with(0, "score", value=10**400), refused("a number beyond all")),
    ("a box of NaN", _with(0, "bbox", value=[math.nan] * 4), refused("NaN")),
    ("an unknown image", _with(0, "image_id", value=4), refused("an unknown image")),
    ("an image id of 400 digits", _with(0, "image_id", value=10**400), refused("an absurd id")),
    ("an unknown class", _with(0, "category_id", value=2**31 + 7), is_what_json_says),
    ("lists 10,000 deep in a field", _with(0, "segmentation", value=Raw("[" * 10**4 + "]" * 10**4)), is_what_json_says),
    ("a million [ in a field", _with(0, "segmentation", value=Raw("[" * 10**6)), refused("no JSON")),
    ("lists 10,000 deep", lambda: b"[" * 10**4 + b"]" * 10**4, refused("lists")),
    ("an object", lambda: dumped({"annotations": _records()}), refused("an object")),
    ("two million empty objects", lambda: b"[" + b",".join([b"{}"] * 2 * 10**6) + b"]", refused("nothing")),
    ("two million numbers", lambda: b"[" + b",".join([b"1"] * 2 * 10**6) + b"]", refused("numbers")),
]  # fmt: skip


def _bomb(entry: str) -> Callable[[NpzResults], bytes]:
    header = npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1536 * 2**18},), }}")
    return lambda results: zipped({entry: Zeros(header, 1536)})


NAMED_NPZ: list[tuple[str, Callable[[NpzResults], bytes], Callable]] = [
    ("untouched", lambda results: results.content, is_what_numpy_says),
    ("1.5 GiB of zeros in 1.6 MB", _bomb("image_index.npy"), refused("a bomb")),
    ("arrays of objects", lambda results: packed(results.arrays | {"scores": np.array([{}] * 5)}), refused("a pickle")),
    ("a shape of 10^12", lambda results: packed({**results.arrays, "scores": _declared("<f4", "(10**12,)")}), refused("code")),
    ("a shape of a million million",
     lambda results: packed({**results.arrays, "scores": _declared("<f4", "(1000000000000,)")}), refused("an absurd shape")),
    ("texts of 10^9 letters",
     lambda results: packed({**results.arrays, "class_names": _declared("<U500000000", "(4,)")}), refused("an absurd shape")),
    ("a header of 10,000 parentheses",
     lambda results: packed({**results.arrays, "scores": npy("(" * 9000)}), refused("an absurd header")),
]  # fmt: skip
