"""Time and memory of selecting detections from raw outputs of LVIS's size: ours, and torchvision's RetinaNet."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors

from longshot.datasets.loading.batches import padded_size
from longshot.detector.model.anchors import AnchorGenerator
from longshot.detector.model.boxes import encode, intersection_over_union
from longshot.detector.model.head import HeadOutputs
from longshot.detector.model.postprocess import Detections, Postprocess
from longshot.detector.model.retinanet import STRIDES
from longshot.detector.system.environment import progress_bar
from longshot.tools.benchmarks import memory
from longshot.tools.benchmarks.harness import in_new_process, peak_above

CANDIDATES = (1000, 6000)  # per level: torchvision's default, and EFL's improved baseline
PART_OF_THE_TIME = 0.25  # of torchvision's, at most
SCORES_AGREE = 2e-6  # relative; logits of products of scores, which torchvision gets, lose so much in float32

_SETTINGS = {"score_threshold": 0.0, "nms_threshold": 0.5, "detections_per_image": 300}
_OBJECTS = 30

OURS, TORCHVISION = "ours", "torchvision"


class Case(NamedTuple):
    """What is to be done with the raw outputs of one image."""

    num_classes: int
    image_size: tuple[int, int]
    candidates: int  # per level
    quality: bool  # scores are products; torchvision gets the logits of the products
    threads: int


class Inputs(NamedTuple):
    """Of the image."""

    outputs: HeadOutputs
    product_logits: list[Tensor]  # (1, R_l, K) per level: of class score times quality, where there is one
    anchors: list[Tensor]  # (R_l, 4) per level


class Cost(NamedTuple):
    """Of one contender."""

    seconds: float
    extra: int | None  # bytes at the peak, above the inputs; None: not measured


class Measured(NamedTuple):
    """Both contenders on a case."""

    case: Case
    ours: Cost
    theirs: Cost
    num_anchors: int
    identical: bool


def measure(num_classes: int, image_size: tuple[int, int], *, threads: int, repeats: int) -> list[Measured]:
    """Both contenders for each number of candidates, without and with quality: the shortest of `repeats` times."""
    cases = [
        Case(num_classes, image_size, candidates, quality, threads)
        for quality in (False, True)
        for candidates in CANDIDATES
    ]
    threads_before = torch.get_num_threads()
    try:
        with progress_bar(total=len(cases) * (repeats + 2), desc="postprocess", unit="round") as bar:
            return [_measure(case, repeats, bar.update) for case in cases]
    finally:
        torch.set_num_threads(threads_before)


def _measure(case: Case, repeats: int, on_round: Callable[[], object]) -> Measured:
    extra = {
        name: in_new_process(extra_memory, case, name, what=name) if memory.is_measurable() else None
        for name in (OURS, TORCHVISION)
    }
    on_round()
    torch.set_num_threads(case.threads)
    inputs = made_up_inputs(case)
    contenders = {name: contender(case, name, inputs) for name in (OURS, TORCHVISION)}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found = {}
    # In turn, so that whatever else the machine does hits both alike; the first round warms up.
    for _ in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            found[name] = run()
            seconds[name].append(time.perf_counter() - start)
        on_round()
    ours, theirs = (Cost(min(seconds[name][1:]), extra[name]) for name in (OURS, TORCHVISION))
    return Measured(case, ours, theirs, sum(map(len, inputs.anchors)), are_identical(*found.values()))


def are_identical(ours: Detections, theirs: Detections) -> bool:
    """Whether boxes and labels are equal bit for bit, in order, and scores up to rounding."""
    if not (torch.equal(ours.boxes, theirs.boxes) and torch.equal(ours.labels, theirs.labels)):
        return False
    return bool(((ours.scores - theirs.scores).abs() <= SCORES_AGREE * theirs.scores).all())


def contender(case: Case, name: str, inputs: Inputs) -> Callable[[], Detections]:
    """What finds the detections of the image."""
    if name == OURS:
        postprocess = Postprocess(candidates_per_level=case.candidates, **_SETTINGS)
        return lambda: postprocess(inputs.outputs, inputs.anchors, [case.image_size])[0]
    backbone = nn.Conv2d(3, 8, 1)  # not used; the model wants one, and to know its channels
    backbone.out_channels = 8
    model = RetinaNet(
        backbone, num_classes=2, anchor_generator=TorchvisionAnchors(((8,),), ((1.0,),)), topk_candidates=case.candidates,
        score_thresh=_SETTINGS["score_threshold"], nms_thresh=_SETTINGS["nms_threshold"],
        detections_per_img=_SETTINGS["detections_per_image"],
    )  # fmt: skip
    outputs = {"cls_logits": inputs.product_logits, "bbox_regression": inputs.outputs.deltas}

    @torch.no_grad()
    def run() -> Detections:
        (found,) = model.postprocess_detections(outputs, [inputs.anchors], [case.image_size])
        return Detections(found["boxes"], found["scores"], found["labels"])

    return run


def extra_memory(case: Case, name: str) -> int:
    """Bytes at the peak of one run above what there was before, the raw outputs among it. Call it in a new process."""
    torch.set_num_threads(case.threads)
    small = case._replace(num_classes=5, image_size=(64, 64))
    contender(small, name, made_up_inputs(small))()  # loads what is loaded once
    run = contender(case, name, made_up_inputs(case))
    return peak_above(run)


def made_up_inputs(case: Case) -> Inputs:
    """Outputs as of a trained network: noise around the prior, other for each class, and a few well detected objects."""
    random = torch.Generator().manual_seed(0)
    make_anchors = AnchorGenerator(strides=STRIDES, base_size=1.0, ratios=(1.0,), scales=(6.0, 8.0))
    anchors = make_anchors(padded_size([case.image_size], 64))
    boxes, labels = _objects(case, random)
    class_bias = torch.randn(case.num_classes, generator=random) * 0.7 - 6.9
    logits, deltas, quality = [], [], []
    for level in anchors:
        iou, nearest = intersection_over_union(level[:, None], boxes).max(dim=1)
        near = (iou > 0.3).nonzero().squeeze(1)
        logits.append(torch.randn(len(level), case.num_classes, generator=random) + class_bias)
        logits[-1][near, labels[nearest[near]]] += 8 * iou[near]
        deltas.append(torch.randn(len(level), 4, generator=random) * 0.1)
        deltas[-1][near] = encode(boxes[nearest[near]], level[near]) + 0.5 * deltas[-1][near]
        quality.append(torch.randn(len(level), generator=random) * 0.5 - 2 + 4 * iou)
    batch = [[level[None] for level in output] for output in (logits, deltas, quality)]
    if not case.quality:
        return Inputs(HeadOutputs(*batch[:2]), batch[0], anchors)
    return Inputs(HeadOutputs(*batch), list(map(_product_logits, batch[0], batch[2])), anchors)


def _objects(case: Case, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Boxes (G, 4), 20 to 500 pixels wide and high, and their labels (G,)."""
    sides = 20 * 25 ** torch.rand(_OBJECTS, 2, generator=random)
    height, width = case.image_size
    corners = torch.rand(_OBJECTS, 2, generator=random) * (torch.tensor([width, height]) - sides).clamp(min=0)
    return torch.cat((corners, corners + sides), dim=1), torch.randint(case.num_classes, (_OBJECTS,), generator=random)


def _product_logits(logits: Tensor, quality: Tensor) -> Tensor:
    return logits.double().sigmoid_().mul_(quality.double().sigmoid()[..., None]).logit_().float()


def table(measured: Sequence[Measured]) -> str:
    """A line for each case: seconds, their ratio, memory, and whether the detections are identical."""
    lines = [
        f"{'candidates':>10}{'quality':>9}{'ours s':>10}{'theirs s':>10}{'ratio':>8}{'ours MB':>10}{'theirs MB':>11}"
        f"{'identical':>11}"
    ]
    for case, ours, theirs, _, identical in measured:
        line = f"{case.candidates:>10}{_yes(case.quality):>9}{ours.seconds:>10.4f}{theirs.seconds:>10.4f}"
        line += f"{ours.seconds / theirs.seconds:>8.3f}{_megabytes(ours.extra):>10}{_megabytes(theirs.extra):>11}"
        lines.append(line + f"{_yes(identical):>11}")
    return "\n".join(lines)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _megabytes(extra: int | None) -> str:
    return "-" if extra is None else f"{extra / memory.MB:.0f}"


def target(measured: Sequence[Measured]) -> str:
    """Whether ours is fast enough in every case, with the same detections."""
    worst = max(one.ours.seconds / one.theirs.seconds for one in measured)
    identical = all(one.identical for one in measured)
    verdict = "met" if worst <= PART_OF_THE_TIME and identical else "NOT met"
    return (
        f"target: identical detections in at most {PART_OF_THE_TIME} of torchvision's time: {_yes(identical)}, "
        f"at most {worst:.3f}, {verdict}"
    )
