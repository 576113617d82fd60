"""Measure what the parts of Longshot cost, beside what else there is for the same."""

import argparse
import platform
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from longshot.tools.arguments import by, positive, size

DTYPES = ("float32", "bfloat16", "float16")

_LOSSES_NOTE = """\
seconds: forward and backward, the shortest of the repeats, contenders in turn; "ours: equalized focal" with the collection
of its gradients, "direct", "torch" and "torchvision" with the making of their one-hot target. All compute half types in
float32, get the same logits and leave out the same ignored rows. MB (2^20 bytes): peak above the inputs, in a process of
its own; the gradient of the logits is part of it."""

_STEP_NOTE = """\
MB: 2^20 bytes. after: when the phase ends (for the last time: towers and logits take turns, level by level). peak: the
most that was resident during it. Norm layers are frozen_bn around random weights: the memory of a pretrained trunk.
Measured of tensors: the peak less what stays in the end beyond weights, gradients and momentum; the C library keeps freed
memory, unless MALLOC_MMAP_THRESHOLD_=65536 is set."""

_DATA_NOTE = """\
CPU seconds, one process, one thread, the shortest of the repeats, contenders in turn. ours: decoded, flipped, resized to
800/1333, collated as uint8; torchvision: decoded, flipped, as float, not resized. The last two lines do the same work: one
padded, normalized float32 batch of two images."""

_MATCHING_NOTE = """\
ms: CPU time in one thread, the least of the repeats, contenders in turn. MB (2^20 bytes): peak above anchors and boxes, in
a process of its own. The two of each kind find the same matches."""

_POSTPROCESS_NOTE = """\
seconds: one image, the shortest of the repeats, contenders in turn, score threshold 0, NMS 0.5, 300 detections. MB (2^20
bytes): peak above the inputs, in a process of its own. quality: scores are multiplied by that of the box; torchvision's,
which knows none, gets the logits of the products, made beforehand. identical: boxes and labels bit for bit, in order, scores
up to rounding; of pairs with equal scores either may choose another, there are hardly any."""

_SCALING_NOTE = """\
s/step: by the clock, the shortest of the rounds, each way in turn. Every process has its own images, as many whoever it
works with. CPU s/step: of all processes together; what else runs on the machine hardly changes it."""


def main() -> None:
    arguments = _arguments()
    from longshot.detector.errors import readable_errors

    with readable_errors():
        arguments.measure(arguments)


def losses(arguments: argparse.Namespace) -> None:
    """Time and peak memory of our classification losses, the direct formula, PyTorch's cross entropy and torchvision's."""
    import torch

    from longshot.tools.benchmarks import loss_cost
    from longshot.tools.benchmarks.loss_contenders import Case, differences

    dtype = getattr(torch, arguments.dtype)
    case = Case(arguments.rows, arguments.classes, dtype, arguments.device, arguments.threads)
    same = differences(case)
    measured = loss_cost.costs(case, repeats=arguments.repeats)
    where = torch.cuda.get_device_name() if case.device == "cuda" else f"{platform.machine()} CPU"
    print(
        f"{case.rows} x {case.classes} {arguments.dtype} logits; {where}, threads {case.threads}, "
        f"repeats {arguments.repeats}, torch {torch.__version__}",
        loss_cost.table(case, measured),
        _LOSSES_NOTE,
        *(
            f"{pair.ours} differs from {pair.other} in float64, relatively, by {pair.loss:.1e} in the loss and at most "
            f"{pair.gradient:.1e} in an entry of the gradient"
            for pair in same
        ),
        loss_cost.targets(case, measured),
        sep="\n",
    )


def step(arguments: argparse.Namespace) -> None:
    """Resident memory of a training step of RetinaNet with Equalized Focal Loss on a CPU, by phase; one image."""
    import torch

    from longshot.tools.benchmarks import memory, step_memory
    from longshot.tools.planning.plan import simulate

    config = step_memory.step_config(backbone=arguments.backbone, num_anchors=arguments.anchors)
    measured = step_memory.measure_step(config, num_classes=arguments.classes, image_size=arguments.size)
    planned = simulate(config, num_classes=arguments.classes, image_size=arguments.size, on_gpu=False).peak.total()
    rows, classes = measured.logits_shape
    print(
        f"RetinaNet {arguments.backbone}, 1 image {by(arguments.size)} padded to {by(measured.padded_size)}: "
        f"{rows} x {classes} logits; threads {torch.get_num_threads()}, torch {torch.__version__}",
        step_memory.table(measured),
        "seconds per step: " + ", ".join(f"{seconds:.1f}" for seconds in measured.seconds),
        "exact MB of tensors: " + ", ".join(f"{k} {v / memory.MB:.0f}" for k, v in measured.tensors.items()),
        _STEP_NOTE,
        step_memory.comparison(measured, planned),
        step_memory.target(measured),
        sep="\n",
    )


def evaluation(arguments: argparse.Namespace) -> None:
    """Time and memory of scoring detections of LVIS's size, beside the official package on as many as it can finish."""
    from longshot.tools.benchmarks import evaluation as evaluation_cost

    measured = evaluation_cost.measure(
        arguments.images, num_classes=arguments.classes,
        detections_per_image=arguments.detections, subset=arguments.subset,
    )  # fmt: skip
    print(evaluation_cost.table(measured.costs), evaluation_cost.findings(measured), sep="\n")


def annotations(arguments: argparse.Namespace) -> None:
    """Time and memory of opening a made-up annotation file of LVIS's size, with and without a cache (1.3 GB on disk)."""
    from longshot.tools.benchmarks import annotations as annotation_cost

    with TemporaryDirectory() as folder:
        costs = annotation_cost.measure(
            Path(folder), num_images=arguments.images, dictionary_images=arguments.dictionary_images
        )
    print(annotation_cost.table(costs), annotation_cost.targets(costs), sep="\n")


def data(arguments: argparse.Namespace) -> None:
    """Images per second that one core makes ready: ours, and torchvision's reference detection pipeline."""
    from longshot.tools.benchmarks import data as data_cost

    measured = data_cost.measure(arguments.images, repeats=arguments.repeats)
    print(data_cost.table(measured), _DATA_NOTE, data_cost.target(measured), sep="\n")


def matching(arguments: argparse.Namespace) -> None:
    """Time and memory of matching anchors and objects: ours, ATSS as a loop over objects, and torchvision's max IoU."""
    import torch

    from longshot.tools.benchmarks import matching as matching_cost

    anchors, _ = matching_cost.anchors_and_boxes(0)
    measured = matching_cost.measure(arguments.objects, repeats=arguments.repeats)
    print(
        f"{sum(map(len, anchors))} anchors on {len(anchors)} levels; {platform.machine()} CPU, "
        f"repeats {arguments.repeats}, torch {torch.__version__}",
        matching_cost.table(measured),
        _MATCHING_NOTE,
        matching_cost.target(measured),
        sep="\n",
    )


def postprocess(arguments: argparse.Namespace) -> None:
    """Time and memory of selecting an image's detections from the scores of all classes: ours, and torchvision's."""
    import torch

    from longshot.tools.benchmarks import postprocess as postprocess_cost

    measured = postprocess_cost.measure(
        arguments.classes, arguments.size, threads=arguments.threads, repeats=arguments.repeats
    )
    print(
        f"{measured[0].num_anchors} anchors x {arguments.classes} classes, image {by(arguments.size)}; "
        f"{platform.machine()} CPU, threads {arguments.threads}, repeats {arguments.repeats}, torch {torch.__version__}",
        postprocess_cost.table(measured),
        _POSTPROCESS_NOTE,
        postprocess_cost.target(measured),
        sep="\n",
    )


def scaling(arguments: argparse.Namespace) -> None:
    """Steps of a tiny detector on two CPU cores: one process, two independent ones, and two in one run by gloo."""
    import torch

    from longshot.tools.benchmarks import scaling as scaling_cost

    measured = scaling_cost.measure(steps=arguments.steps, repeats=arguments.repeats)
    print(
        f"{scaling_cost.NUM_IMAGES} images of {scaling_cost.SIDE}x{scaling_cost.SIDE} per process and step, one thread each; "
        f"rounds {arguments.repeats} of {arguments.steps} steps, torch {torch.__version__}",
        scaling_cost.table(measured),
        _SCALING_NOTE,
        scaling_cost.findings(measured),
        sep="\n",
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", help="what to measure; COMMAND --help tells more"
    )
    of_losses = _command(commands, losses)
    of_losses.add_argument(
        "--rows", type=positive, default=22_300, help="anchors (22300: an 800x1333 image, one a cell)"
    )
    of_losses.add_argument("--classes", type=positive, default=1203, help="(1203: LVIS)")
    of_losses.add_argument("--dtype", choices=DTYPES, default="float32", help="of the logits (float32)")
    of_losses.add_argument("--threads", type=positive, default=1, help="of PyTorch on the CPU (1)")
    of_losses.add_argument("--repeats", type=positive, default=3, help="after a warm-up (3)")
    of_losses.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    of_step = _command(commands, step)
    of_step.add_argument("--classes", type=positive, default=13_204, help="(13204: V3Det)")
    of_step.add_argument("--anchors", type=positive, default=1, help="per location (1)")
    of_step.add_argument("--size", type=size, default=(800, 1333), metavar="HxW", help="of the image (800x1333)")
    of_step.add_argument("--backbone", default="resnet50", help="of model.backbone.name (resnet50)")
    of_evaluation = _command(commands, evaluation)
    of_evaluation.add_argument("--images", type=positive, default=19_809, help="(19809: LVIS val)")
    of_evaluation.add_argument("--classes", type=positive, default=1203, help="(1203: LVIS)")
    of_evaluation.add_argument("--detections", type=positive, default=300, help="per image (300)")
    of_evaluation.add_argument("--subset", type=int, default=200, help="images that lvis scores too, 0: none (200)")
    of_annotations = _command(commands, annotations)
    of_annotations.add_argument("--images", type=positive, default=100_170, help="(100170: LVIS train)")
    of_annotations.add_argument(
        "--dictionary-images", type=positive, default=10_017, help="of the file read to dictionaries too (10017)"
    )
    of_data = _command(commands, data)
    of_data.add_argument("--images", type=positive, default=64, help="made-up JPEGs of COCO's sizes (64)")
    of_data.add_argument("--repeats", type=positive, default=5, help="after a warm-up (5)")
    of_matching = _command(commands, matching)
    of_matching.add_argument("--objects", type=positive, default=60, help="in the image, then ten times as many (60)")
    of_matching.add_argument("--repeats", type=positive, default=5, help="after a warm-up (5)")
    of_postprocess = _command(commands, postprocess)
    of_postprocess.add_argument("--classes", type=positive, default=1203, help="(1203: LVIS)")
    of_postprocess.add_argument("--size", type=size, default=(800, 1333), metavar="HxW", help="of the image (800x1333)")
    of_postprocess.add_argument("--threads", type=positive, default=1, help="of PyTorch (1)")
    of_postprocess.add_argument("--repeats", type=positive, default=5, help="after a warm-up (5)")
    of_scaling = _command(commands, scaling)
    of_scaling.add_argument("--steps", type=positive, default=10, help="of a round (10)")
    of_scaling.add_argument("--repeats", type=positive, default=5, help="rounds after a warm-up (5)")
    arguments = parser.parse_args()
    if arguments.measure is losses and arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no GPU")
    from longshot.tools.benchmarks import memory

    if arguments.measure in (step, annotations) and not memory.is_measurable():
        name = arguments.measure.__name__
        parser.error(f"{name}: needs /proc/self/clear_refs, which Linux has, to measure resident memory")
    return arguments


def _command(commands: argparse._SubParsersAction, measure: Callable) -> argparse.ArgumentParser:
    parser = commands.add_parser(measure.__name__, description=measure.__doc__, help=measure.__doc__)
    parser.set_defaults(measure=measure)
    return parser


if __name__ == "__main__":
    main()
