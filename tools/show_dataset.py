"""Draw what the model sees of a dataset after augmentation, and the histogram of its classes."""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from longshot.datasets.loading.dataset import Splits
from longshot.detector.build import build_evaluation
from longshot.detector.build_data import build_data, build_training_loader
from longshot.detector.config.schema import Config, load_config
from longshot.detector.errors import readable_errors
from longshot.detector.pictures.batches import batch_sheet
from longshot.detector.pictures.long_tail import long_tail_figure
from longshot.detector.run.dataset_summary import describe
from longshot.detector.system.distributed import Process

_HERE = Process(rank=0, world_size=1, device=torch.device("cpu"))


def main() -> None:
    arguments = _arguments()
    with readable_errors():
        config = load_config(arguments.config, arguments.overrides)
        data = build_data(config, _HERE)
        print(describe(data))
        folder = arguments.out or Path(config.output) / "dataset"
        folder.mkdir(parents=True, exist_ok=True)
        pictures = folder / f"{arguments.split}_images.png"
        Image.fromarray(_sheet(config, data, arguments.split, arguments.count)).save(pictures)
        histogram = folder / "long_tail.png"
        # A drawn dataset has thresholds of its own.
        groups = config.data.generate
        rare, common = (groups.rare_images, groups.common_images) if groups else (config.data.rare, config.data.common)
        long_tail_figure(data, rare=rare, common=common).savefig(histogram)
        print(f"what the model sees: {pictures}\ntraining images per class: {histogram}")


def _sheet(config: Config, data: Splits, split: str, count: int) -> np.ndarray:
    """The first images of training, or of an evaluation; (H, W, 3) uint8."""
    if split == "train":
        steps = -(-count // config.train.batch_size)
        batches = build_training_loader(config, data, _HERE, first=0, total=steps)
    else:
        batches = build_evaluation(config, data.val, data.classes, _HERE).batches
    return batch_sheet(batches, data.classes.names, count=count)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: tools/show_dataset.py --config configs/quickstart.yaml --count 32"
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file")
    parser.add_argument(
        "--split", choices=("train", "val"), default="train",
        help="the first images of training (default), or of an evaluation",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: dataset/ in the run folder)")
    parser.add_argument("--count", type=_positive, default=16, help="images to draw (16)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for instance data.short_sides=[480]")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
