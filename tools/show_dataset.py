"""Draw what the model sees of a dataset after augmentation, and the histogram of its classes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from longshot.tools.arguments import add_config, positive

if TYPE_CHECKING:
    import numpy as np

    from longshot.datasets.loading.dataset import Splits
    from longshot.detector.config.schema import Config


def main() -> None:
    arguments = _arguments()
    from PIL import Image

    from longshot.detector.build_data import build_data
    from longshot.detector.config.schema import load_config
    from longshot.detector.errors import readable_errors
    from longshot.detector.pictures.long_tail import long_tail_figure
    from longshot.detector.run.folder import describe
    from longshot.detector.system.distributed import this_process

    with readable_errors():
        config = load_config(arguments.config, arguments.overrides)
        data = build_data(config, this_process())
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


def _sheet(config: "Config", data: "Splits", split: str, count: int) -> "np.ndarray":
    """The first images of training, or of an evaluation; (H, W, 3) uint8."""
    from longshot.detector.build_data import build_evaluation_loader, build_training_loader
    from longshot.detector.pictures.batches import batch_sheet
    from longshot.detector.system.distributed import this_process

    here = this_process()
    if split == "train":
        steps = -(-count // config.train.batch_size)
        batches = build_training_loader(config, data, here, first=0, total=steps)
    else:
        batches = build_evaluation_loader(config, data.val, here)
    return batch_sheet(batches, data.classes.names, count=count)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: longshot show --config quickstart --count 32"
    )
    add_config(parser)
    parser.add_argument(
        "--split", choices=("train", "val"), default="train",
        help="the first images of training (default), or of an evaluation",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: dataset/ in the run folder)")
    parser.add_argument("--count", type=positive, default=16, help="images to draw (16)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for instance data.short_sides=[480]")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
