"""Memory, time and communication of a training step of a configuration on N GPUs, without a GPU and without training."""

import argparse
import re
from pathlib import Path

import torch

from longshot.datasets import DataError
from longshot.datasets.loading.batches import padded_size
from longshot.detector.build_data import build_val
from longshot.detector.config.schema import Config, load_config
from longshot.detector.errors import ConfigError, readable_errors
from longshot.detector.system.distributed import Process
from longshot.tools.planning.plan import A100, Gpu, largest_image, make_plan
from longshot.tools.planning.table import assumptions, table, warnings


def main() -> None:
    given = _arguments()
    with readable_errors():
        config = load_config(given.config, given.overrides)
        classes, size = given.classes or _classes_of(config), given.size or largest_image(config)
        gpu = Gpu(
            memory=given.memory * 2**30, fp32=given.fp32 * 1e12, bf16=given.bf16 * 1e12,
            memory_bandwidth=given.memory_bandwidth * 1e9, launch=given.launch * 1e-6,
            bandwidth=given.bandwidth * 1e9, latency=given.latency * 1e-6,
        )  # fmt: skip
        plans = [
            make_plan(config, gpus=given.gpus, num_classes=classes, image_size=size, precision=precision, gpu=gpu)
            for precision in ("fp32", "bf16")
        ]
    first, padded = plans[0], padded_size([size], config.data.pad_multiple)
    print(
        f"{given.config}: {config.model.backbone.name}, {classes} classes, images of {_by(size)} padded to {_by(padded)}: "
        f"{sum(first.simulated.rows)} anchors each",
        f"{given.gpus} GPUs x {first.passes} passes x {first.num_images} images = train.batch_size {config.train.batch_size}",
        "",
        table(plans),
        "",
        assumptions(gpu),
        *warnings(plans),
        sep="\n",
    )


def _classes_of(config: Config) -> int:
    """The number of classes of the validation set."""
    try:
        annotations = build_val(config, Process(0, 1, torch.device("cpu"))).annotations
    except (ConfigError, DataError) as error:
        raise ConfigError(f"{error}; or say how many classes there are: --classes K") from error
    return len(annotations.category_ids)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: tools/plan.py --config configs/lvis/retinanet_r50_efl_2x.yaml --gpus 16 --classes 1203",
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file")
    parser.add_argument("--gpus", type=_count, required=True, metavar="N", help="processes, one GPU each")
    parser.add_argument("--classes", type=_count, metavar="K", help="(those of the configured validation set)")
    parser.add_argument("--size", type=_size, metavar="HxW", help="of all images (the largest that training may show)")
    _add_hardware(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="for instance train.images_per_pass=2"
    )
    return parser.parse_intermixed_args()


def _add_hardware(parser: argparse.ArgumentParser) -> None:
    assumed = parser.add_argument_group(
        "assumed of the hardware; by default an A100 of 80 GB in a cluster, not measured"
    )
    for name, default, unit, meaning in (
        ("memory", A100.memory / 2**30, "GiB", "of a GPU"),
        ("fp32", A100.fp32 / 1e12, "TFLOP/s", "sustained in fp32"),
        ("bf16", A100.bf16 / 1e12, "TFLOP/s", "sustained in bf16"),
        ("memory-bandwidth", A100.memory_bandwidth / 1e9, "GB/s", "of a GPU"),
        ("launch", A100.launch * 1e6, "us", "from operator to operator"),
        ("bandwidth", A100.bandwidth / 1e9, "GB/s", "between GPUs, each way; 200 or so inside a machine with NVLink"),
        ("latency", A100.latency * 1e6, "us", "of a small message"),
    ):
        of_option = f"{meaning} (%(default)g)"
        assumed.add_argument(f"--{name}", type=_above_zero, default=default, metavar=unit, help=of_option)


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return number


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected height x width such as 800x1333, found {text!r}")
    return int(match[1]), int(match[2])


def _by(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


if __name__ == "__main__":
    main()
