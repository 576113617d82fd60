"""Time and memory of matching an image's anchors and objects: ours, a loop over objects, and torchvision's max IoU."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from longshot.detector.matching.atss import ATSSMatcher
from longshot.detector.matching.iou import IoUMatcher
from longshot.detector.model.anchors import AnchorGenerator
from longshot.detector.model.boxes import centers
from longshot.detector.system.environment import progress_bar
from longshot.losses import BACKGROUND
from longshot.tools.benchmarks import memory
from longshot.tools.benchmarks.harness import cpu_seconds, in_new_process, peak_above

TIMES_THE_LOOP = 5
GROWTH = 10  # matched a second time with so many times the objects

CANDIDATES = 18  # of two anchors per location, as in EFL's improved baseline
IMAGE_SIZE, PADDED_SIZE = (800, 1333), (832, 1344)

OURS, LOOP = "ours: ATSS", "ATSS, a loop over objects"
OUR_IOU, TORCHVISION = "ours: max IoU", "torchvision: max IoU"

Matches = Callable[[Sequence[Tensor], Tensor], Tensor]  # (R_l, 4) anchors per level and (G, 4) boxes -> (R,)


class Cost(NamedTuple):
    """Of one contender."""

    seconds: float  # of CPU time
    extra: int | None  # bytes at the peak above the anchors and boxes; None: not measured


def anchors_and_boxes(num_objects: int) -> tuple[list[Tensor], Tensor]:
    """Anchors of EFL's improved baseline for an image of 800 x 1333 pixels, and boxes of all sizes."""
    anchors = AnchorGenerator(strides=(8, 16, 32, 64, 128), base_size=1.0, ratios=(1.0,), scales=(6.0, 8.0))
    generator = torch.Generator().manual_seed(0)
    height, width = IMAGE_SIZE
    sides = 8 * (height / 8) ** torch.rand(num_objects, 2, generator=generator)
    corner = torch.rand(num_objects, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    return anchors(PADDED_SIZE), torch.cat([corner, corner + sides], dim=1)


def looped_atss(anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """(R,) matches, by algorithm 1 of arXiv:1912.02424 as it is written."""
    every_anchor, points = torch.cat(list(anchors)), [centers(level) for level in anchors]
    best = torch.zeros(len(every_anchor))
    matches = torch.full((len(every_anchor),), BACKGROUND)
    for number, box in enumerate(boxes):
        candidates, first = [], 0
        for level in points:
            distance = (level - centers(box)).square().sum(dim=1)
            candidates.append(first + distance.topk(min(CANDIDATES, len(level)), largest=False).indices)
            first += len(level)
        index = torch.cat(candidates)
        chosen = every_anchor[index]
        iou = box_iou(box[None], chosen)[0]
        margins = torch.cat([centers(chosen) - box[:2], box[2:] - centers(chosen)], dim=1)
        positive = (iou >= iou.mean() + iou.std()) & (margins.amin(dim=1) > 0.01) & (iou > best[index])
        best[index[positive]] = iou[positive]
        matches[index[positive]] = number
    return matches


def torchvision_max_iou(anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """(R,) matches as torchvision's RetinaNet makes them."""
    matcher = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=True)
    return matcher(box_iou(boxes, torch.cat(list(anchors))))


def our_atss(anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
    return ATSSMatcher(candidates=CANDIDATES)(anchors, [boxes])[0]


def our_max_iou(anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
    return IoUMatcher(positive=0.5, negative=0.4)(anchors, [boxes])[0]


CONTENDERS: dict[str, Matches] = {
    OURS: our_atss,
    LOOP: looped_atss,
    OUR_IOU: our_max_iou,
    TORCHVISION: torchvision_max_iou,
}


def check_agreement(num_objects: int) -> None:
    """Raises RuntimeError if contenders for the same matches find different ones."""
    inputs = anchors_and_boxes(num_objects)
    for name, other in ((OURS, LOOP), (OUR_IOU, TORCHVISION)):
        different = (CONTENDERS[name](*inputs) != CONTENDERS[other](*inputs)).sum()
        if different:
            raise RuntimeError(f"{name!r} and {other!r} differ at {different} anchors: one of them is wrong")


def measure(num_objects: int, *, repeats: int) -> dict[int, dict[str, Cost]]:
    """By number of objects, `num_objects` and ten times as many, the cost of each contender in one thread.

    Seconds are the fewest of `repeats` rounds; memory is the peak of a process of its own.
    """
    check_agreement(num_objects)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with progress_bar(total=2 * (repeats + 2), desc="matching", unit="round") as bar:
            return {objects: _costs(objects, repeats, bar.update) for objects in (num_objects, GROWTH * num_objects)}
    finally:
        torch.set_num_threads(threads)


def _costs(num_objects: int, repeats: int, round_is_over: Callable[[], object]) -> dict[str, Cost]:
    extra = {
        name: in_new_process(extra_memory, name, num_objects, what=name)
        for name in CONTENDERS
        if memory.is_measurable()
    }
    round_is_over()
    inputs = anchors_and_boxes(num_objects)
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    # In turn, so that whatever else the machine does hits all alike; the first round warms up.
    for _ in range(repeats + 1):
        for name, contender in CONTENDERS.items():
            seconds[name].append(cpu_seconds(partial(contender, *inputs)))
        round_is_over()
    return {name: Cost(min(times[1:]), extra.get(name)) for name, times in seconds.items()}


def extra_memory(name: str, num_objects: int) -> int:
    """Bytes at the peak of a contender above what there was before. Call it in a new process."""
    torch.set_num_threads(1)
    CONTENDERS[name](*anchors_and_boxes(1))  # loads what is loaded once
    inputs = anchors_and_boxes(num_objects)
    return peak_above(lambda: CONTENDERS[name](*inputs))


def table(measured: Mapping[int, Mapping[str, Cost]]) -> str:
    """For each number of objects and contender a line: time, the times that ours takes, memory, growth of the time."""
    few = min(measured)
    lines = [f"{'':28}{'objects':>8}{'ms':>10}{'/ ours: ATSS':>14}{'MB':>9}{f'/ {few} objects':>14}"]
    for objects, costs in measured.items():
        for name, (seconds, extra) in costs.items():
            megabytes = "-" if extra is None else f"{extra / memory.MB:.1f}"
            lines.append(
                f"{name:28}{objects:>8}{1000 * seconds:>10.2f}{seconds / costs[OURS].seconds:>14.2f}{megabytes:>9}"
                f"{seconds / measured[few][name].seconds:>14.2f}"
            )
    return "\n".join(lines)


def target(measured: Mapping[int, Mapping[str, Cost]]) -> str:
    """Whether ours is as much faster than the loop as it should be, with the fewer objects."""
    objects = min(measured)
    times = measured[objects][LOOP].seconds / measured[objects][OURS].seconds
    verdict = "met" if times >= TIMES_THE_LOOP else "NOT met"
    return f"target: at least {TIMES_THE_LOOP} times as fast as a loop over {objects} objects: {times:.2f}, {verdict}"
