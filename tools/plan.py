"""Memory and messages of a training step of a configuration on N GPUs, without a GPU and without training."""

import argparse
from typing import TYPE_CHECKING

from longshot.tools.arguments import above_zero, add_config, by, positive, size

if TYPE_CHECKING:
    from longshot.detector.config.schema import Config


def main() -> None:
    given = _arguments()
    from longshot.datasets.loading.batches import padded_size
    from longshot.detector.config.schema import load_config
    from longshot.detector.errors import readable_errors
    from longshot.tools.planning.plan import largest_image, make_plan
    from longshot.tools.planning.table import assumptions, table, warnings

    with readable_errors():
        config = load_config(given.config, given.overrides)
        classes, size = given.classes or _classes_of(config), given.size or largest_image(config)
        plans = [
            make_plan(
                config, gpus=given.gpus, num_classes=classes, image_size=size, precision=precision,
                gpu_memory=given.memory * 2**30,
            )
            for precision in ("fp32", "bf16")
        ]  # fmt: skip
    first, padded = plans[0], padded_size([size], config.data.pad_multiple)
    print(
        f"{given.config}: {config.model.backbone.name}, {classes} classes, images of {by(size)} padded to {by(padded)}: "
        f"{sum(first.simulated.rows)} anchors each",
        f"{given.gpus} GPUs x {first.passes} passes x {first.num_images} images = train.batch_size {config.train.batch_size}",
        "",
        table(plans),
        "",
        assumptions(),
        *warnings(plans),
        sep="\n",
    )


def _classes_of(config: "Config") -> int:
    """The number of classes of the validation set."""
    from longshot.datasets import DataError
    from longshot.detector.build_data import build_val
    from longshot.detector.errors import ConfigError
    from longshot.detector.system.distributed import this_process

    try:
        annotations = build_val(config, this_process()).annotations
    except (ConfigError, DataError) as error:
        raise ConfigError(f"{error}; or say how many classes there are: --classes K") from error
    return len(annotations.category_ids)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: longshot plan --config lvis/retinanet_r50_efl_2x --gpus 16 --classes 1203",
    )
    add_config(parser)
    parser.add_argument("--gpus", type=positive, required=True, metavar="N", help="processes, one GPU each")
    parser.add_argument("--classes", type=positive, metavar="K", help="(those of the configured validation set)")
    parser.add_argument("--size", type=size, metavar="HxW", help="of all images (the largest that training may show)")
    parser.add_argument("--memory", type=above_zero, default=80.0, metavar="GiB", help="of a GPU (%(default)g)")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="for instance train.images_per_pass=2"
    )
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
