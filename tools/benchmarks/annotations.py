"""What reading annotations costs in time and memory, the first time and from the cache, beside dictionaries."""

import contextlib
import gc
import io
import re
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from longshot.datasets.annotations.annotations import Annotations, read_annotations
from longshot.datasets.annotations.cache import cache_path
from longshot.datasets.annotations.coco import CocoFile
from longshot.datasets.loading.dataset import DetectionDataset
from longshot.detector.system.environment import progress_bar
from longshot.tools.benchmarks import memory
from longshot.tools.benchmarks.annotation_file import write_annotations
from longshot.tools.benchmarks.harness import in_new_process, verdict

WORKERS = (0, 2, 8)
_REPEATS = 3  # the least counts, since other programs can only add to it


class Cost(NamedTuple):
    """Of one way to read a file."""

    name: str
    num_images: int
    cpu: float  # seconds, user and system
    wall: float  # seconds
    peak: int  # bytes, most at once above what there was
    shared: dict[int, int]  # number of workers: bytes that all processes have more than without annotations


class Reader(NamedTuple):
    """A way to read a file."""

    name: str
    read: Callable[[Path], Any]
    visit: Callable[[Any], None] | None = None  # use all that was read, as a worker does in the course of training


def measure(folder: Path, *, num_images: int, dictionary_images: int) -> list[Cost]:
    """The costs of all readers, on files made in `folder`, in processes of their own.

    Args:
        num_images: of the file that we read.
        dictionary_images: of the file that is read to dictionaries of Python, which takes far longer and far more memory.
    """
    large, small = folder / "large.json", folder / "small.json"
    write_annotations(large, num_images=num_images)
    write_annotations(small, num_images=dictionary_images)
    for path, count in ((large, num_images), (small, dictionary_images)):
        for i in {*range(min(50, count)), *range(max(0, count - 50), count)}:  # those that a dataset looks for
            image = path.with_suffix("") / f"train2017/{i:012d}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
    cases = [(reader, large, num_images) for reader in _OURS]
    cases += [(reader, small, dictionary_images) for reader in (*_OURS, *_dictionaries())]
    return [_cost(*case) for case in progress_bar(cases, desc="annotations", unit="reader")]


def _parse(path: Path) -> CocoFile:
    return msgspec.json.decode(path.read_bytes(), type=CocoFile)


def _read_first(path: Path) -> Annotations:
    cache_path(path).unlink(missing_ok=True)
    return read_annotations(path)


def _dataset(path: Path) -> DetectionDataset:
    return DetectionDataset(read_annotations(path), path.with_suffix(""))


def _visit_arrays(dataset: DetectionDataset) -> None:
    known = dataset.annotations
    for image in range(len(dataset)):
        objects = known.objects(image)
        _ = dataset.size(image), known.file_names[image], known.boxes_xywh[objects].sum(), known.labels[objects].sum()
    for column in (
        known.image_ids,
        known.annotation_ids,
        known.areas,
        known.crowd,
        known.ignore,
        known.negative_labels,
    ):
        column.sum()


def _coco(path: Path) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


def _visit_dictionaries(coco: Any) -> None:
    for image in coco.imgs:
        for annotation in coco.imgToAnns[image]:
            np.sum(annotation["bbox"]) + annotation["category_id"] + len(annotation["segmentation"][0])


_OURS = (
    Reader("parsing alone", _parse),
    Reader("ours, first", _read_first),
    Reader("ours, second", read_annotations),
    Reader("ours, dataset", _dataset, _visit_arrays),
)


def _dictionaries() -> tuple[Reader, ...]:
    if not find_spec("pycocotools"):
        return ()
    return (Reader("pycocotools.COCO", _coco, _visit_dictionaries),)


def _cost(reader: Reader, path: Path, num_images: int) -> Cost:
    measured = [
        in_new_process(_time_and_peak, reader.read, path, what="reading annotations", start="spawn")
        for _ in range(_REPEATS)
    ]
    cpu, wall, peak = (min(values) for values in zip(*measured, strict=True))
    shared = {}
    for workers in WORKERS if reader.visit else ():
        shared[workers] = in_new_process(
            _added_memory, reader, path, workers, what="reading annotations", start="spawn"
        )
    return Cost(reader.name, num_images, cpu, wall, peak, shared)


def _time_and_peak(read: Callable, path: Path) -> tuple[float, float, int]:
    memory.reset_peak()
    before, cpu, wall = memory.resident(), time.process_time(), time.perf_counter()
    kept = read(path)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    del kept
    return cpu, wall, memory.peak_resident() - before


def _added_memory(reader: Reader, path: Path, workers: int) -> int:
    """Bytes that this process and its workers together have more after they have used all that was read."""
    _clean_up()
    before = _together(_nothing, None, workers)
    content = reader.read(path)
    _clean_up()
    if workers == 0:
        reader.visit(content)
    return _together(reader.visit, content, workers) - before


def _clean_up() -> None:
    gc.collect()
    memory.return_free_blocks()


def _nothing(*_: Any) -> None:
    pass


def _together(visit: Callable, content: Any, workers: int) -> int:
    """The proportional set sizes of this process and of `workers` forked ones that have called `visit`, in sum."""
    context = get_context("fork")
    done, stop = context.Barrier(workers + 1), context.Event()
    processes = [context.Process(target=_work, args=(visit, content, done, stop)) for _ in range(workers)]
    for process in processes:
        process.start()
    done.wait()
    total = sum(_proportional_set_size(who) for who in ("self", *(process.pid for process in processes)))
    stop.set()
    for process in processes:
        process.join()
    return total


def _work(visit: Callable, content: Any, done: Any, stop: Any) -> None:
    visit(content)
    done.wait()
    stop.wait()


def _proportional_set_size(who: int | str) -> int:
    """Of what a process holds itself and of mapped caches; libraries are shared with whatever else the machine runs."""
    own = _sum_of_sizes(Path(f"/proc/{who}/smaps_rollup").read_text(), "Pss_Anon:", "Pss_Shmem:")
    # One block of lines for each mapping, the first of which ends with the name of the file.
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{who}/smaps").read_text(), flags=re.MULTILINE)
    return own + sum(_sum_of_sizes(m, "Pss:") for m in mappings if "/longshot/annotations/" in m.partition("\n")[0])


def _sum_of_sizes(text: str, *fields: str) -> int:
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(fields))


def table(costs: Sequence[Cost]) -> str:
    """A line for each reader and file."""
    heads = "".join(f"{f'+MB, {n} workers':>16}" for n in WORKERS)
    lines = [f"{'':18}{'images':>9}{'CPU s':>9}{'wall s':>9}{'peak MB':>10}{heads}"]
    for name, num_images, cpu, wall, peak, shared in costs:
        added = "".join(f"{shared[n] / memory.MB:>16.1f}" for n in WORKERS) if shared else ""
        lines.append(f"{name:18}{num_images:>9}{cpu:>9.3f}{wall:>9.3f}{peak / memory.MB:>10.1f}{added}")
    return "\n".join(lines)


def targets(costs: Sequence[Cost]) -> str:
    """What reading the larger file may cost, and whether it keeps to it."""
    parsing, first, second, dataset = costs[: len(_OURS)]
    return "\n".join(
        [
            verdict("CPU seconds of the first open / parsing alone", first.cpu / parsing.cpu, 2),
            verdict("CPU seconds of the second open", second.cpu, 1),
            *(
                verdict(f"MB added by a dataset with {workers} workers", added / memory.MB, 150)
                for workers, added in dataset.shared.items()
            ),
        ]
    )
