"""Time and memory of scoring detections of LVIS's size, and of the official package on as many as it can finish."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from longshot.detector.evaluation.columnar import ColumnarEvaluator, Curves
from longshot.detector.evaluation.ground_truth import GroundTruth
from longshot.detector.results.columns import DetectionColumns
from longshot.detector.results.files import read_results
from longshot.detector.system.environment import progress_bar
from longshot.tools.benchmarks import memory
from longshot.tools.benchmarks.evaluation_data import ANNOTATIONS, FOUND, load_objects, save, synthetic
from longshot.tools.benchmarks.harness import verdict
from longshot.tools.checks.official import load_lvis, score_with_lvis

SECONDS_FROM_ARRAYS, SECONDS_FROM_JSON, MEMORY_FROM_ARRAYS = 15, 60, 800e6  # at most

_ROOT = Path(__file__).resolve().parents[2]

# A way prepares, which does not count, and returns what is measured: from a folder of `evaluation_data.save` to the
# precision and recall.
Way = Callable[[Path], Callable[[], tuple]]


class Cost(NamedTuple):
    """Of one way to a score, in a process of its own."""

    num_images: int
    num_detections: int
    seconds: float
    cpu_seconds: float
    peak: int | None  # bytes resident, Python and all that is loaded included; None: not measured
    percent: float  # AP


class Measured(NamedTuple):
    """Costs by name, and whether the scores agree."""

    costs: dict[str, Cost]
    same_bits: bool  # of our ways on all images
    official: tuple[float, float] | None  # largest differences of precision and of recall; None: not measured


def measure(num_images: int, *, num_classes: int, detections_per_image: int, subset: int) -> Measured:
    """The costs on made-up data with the federated annotation of LVIS.

    Args:
        subset: images that the official package scores too; 0: none. It needs a gigabyte for 1,000.

    Raises ResultsError: the official package is asked for, and not installed.
    """
    if subset:
        load_lvis()
    sizes = {"num_classes": num_classes, "detections_per_image": detections_per_image}
    costs, curves, official = {}, {}, None
    with TemporaryDirectory() as folder, progress_bar(total=3 + 2 * bool(subset), desc="evaluation", unit="run") as bar:

        def run(way: str, images: int) -> None:
            costs[f"{way}, {images} images"], curves[way, images] = _in_new_process(way, Path(folder) / str(images))
            bar.update()

        _save(Path(folder) / str(num_images), num_images, annotations=False, **sizes)
        for way in OURS:
            run(way, num_images)
        if subset:
            _save(Path(folder) / str(subset), subset, annotations=True, **sizes)
            for way in ("ours from JSON", OFFICIAL):
                run(way, subset)
            official = _difference(curves["ours from JSON", subset], curves[OFFICIAL, subset])
    first, *others = (curves[way, num_images] for way in OURS)
    return Measured(costs, all(_difference(first, other) == (0, 0) for other in others), official)


def _save(folder: Path, num_images: int, *, annotations: bool, **sizes: int) -> None:
    folder.mkdir(exist_ok=True)  # the subset may be everything
    save(*synthetic(num_images, **sizes), folder, annotations=annotations)


def _in_new_process(way: str, folder: Path) -> tuple[Cost, tuple]:
    command = [sys.executable, "-m", __spec__.name, way, str(folder)]
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measured {way!r} has failed with code {done.returncode}: out of memory?")
    with np.load(folder / "curves.npz") as arrays:
        return Cost(*json.loads(done.stdout)), (arrays["precision"], arrays["recall"])


def _from_arrays(folder: Path) -> Callable[[], tuple]:
    objects = load_objects(folder)
    with np.load(folder / f"{FOUND}.npz") as arrays:
        detections = DetectionColumns(*(arrays[name] for name in DetectionColumns._fields))
    return lambda: _score(objects.ground_truth, detections)


def _from_npz(folder: Path) -> Callable[[], tuple]:
    objects = load_objects(folder)
    return lambda: _score(objects.ground_truth, read_results(folder / f"{FOUND}.npz", **objects.ids))


def _from_json(folder: Path) -> Callable[[], tuple]:
    objects = load_objects(folder)
    return lambda: _score(objects.ground_truth, read_results(folder / f"{FOUND}.json", **objects.ids))


def _official_from_json(folder: Path) -> Callable[[], tuple]:
    load_lvis()

    def score() -> tuple:
        contents = (json.loads((folder / name).read_bytes()) for name in (ANNOTATIONS, f"{FOUND}.json"))
        official = score_with_lvis(*contents)
        return official.precision, official.recall

    return score


OURS: dict[str, Way] = {"ours from arrays": _from_arrays, "ours from .npz": _from_npz, "ours from JSON": _from_json}
OFFICIAL = "lvis from JSON"
_WAYS = OURS | {OFFICIAL: _official_from_json}


def _score(truth: GroundTruth, detections: DetectionColumns) -> tuple:
    evaluator = ColumnarEvaluator(truth)
    evaluator.add(*detections)
    curves: Curves = evaluator.accumulate()
    return curves.precision, curves.recall


def _difference(ours: tuple, theirs: tuple) -> tuple[float, float]:
    return tuple(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def _measure_here(way: str, folder: Path) -> Cost:
    score = _WAYS[way](folder)
    wall, cpu = time.perf_counter(), time.process_time()
    precision, recall = score()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = memory.peak_resident() if memory.is_measurable() else None
    np.savez(folder / "curves.npz", precision=precision, recall=recall)
    objects, overall = load_objects(folder), precision[:, :, :, 0, -1]
    with np.load(folder / f"{FOUND}.npz") as arrays:
        count = len(arrays["scores"])
    return Cost(objects.num_images, count, wall, cpu, peak, 100 * float(overall[overall > -1].mean()))


def table(costs: Mapping[str, Cost]) -> str:
    """A line for each way: images, detections, wall and CPU seconds, memory, AP."""
    lines = [f"{'':30}{'detections':>12}{'seconds':>10}{'CPU s':>10}{'peak MB':>10}{'AP':>9}"]
    for name, cost in costs.items():
        peak = "-" if cost.peak is None else f"{cost.peak / memory.MB:.0f}"
        numbers = f"{cost.num_detections:>12,}{cost.seconds:>10.2f}{cost.cpu_seconds:>10.2f}{peak:>10}"
        lines.append(f"{name:30}{numbers}{cost.percent:>9.4f}")
    return "\n".join(lines)


def findings(measured: Measured) -> str:
    """Whether the ways agree, and whether the largest evaluation keeps to what it may cost."""
    arrays, _, from_json = list(measured.costs.values())[: len(OURS)]
    lines = [f"our ways give the same bits: {'yes' if measured.same_bits else 'NO'}"]
    if measured.official is not None:
        precision, recall = measured.official
        lines.append(f"largest difference between lvis and ours: {precision:g} in precision, {recall:g} in recall")
    lines += [
        verdict("CPU seconds from arrays", arrays.cpu_seconds, SECONDS_FROM_ARRAYS, digits=".1f"),
        verdict("CPU seconds from JSON", from_json.cpu_seconds, SECONDS_FROM_JSON, digits=".1f"),
    ]
    if arrays.peak is not None:
        lines.append(verdict("MB (1e6 bytes) from arrays", arrays.peak / 1e6, MEMORY_FROM_ARRAYS / 1e6, digits=".1f"))
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(_measure_here(sys.argv[1], Path(sys.argv[2]))))
