"""From a Config to data: both splits, the order of training images, batches."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from ..datasets.annotations.annotations import Annotations, read_annotations
from ..datasets.classes import Classes
from ..datasets.emoji.dataset import EmojiFiles, EmojiOptions, draw_dataset
from ..datasets.images.augmentation import AUGMENTATIONS, Augmentation
from ..datasets.loading.batches import BatchLoader, EvaluationBatches, TrainingBatches, share_of_step
from ..datasets.loading.dataset import DetectionDataset, Splits
from ..datasets.loading.legacy import LegacyDataset
from ..datasets.loading.samplers import ClassAwareStream, TrainingStream, instance_factors, repeat_factors
from ..datasets.loading.scenes import draw_scenes
from .config import schema as c
from .errors import ConfigError, config_errors
from .system.distributed import Process, on_rank_zero

_LONGEST_EPOCH = 10**8  # images: the order of so many takes a gigabyte


def build_data(config: c.Config, process: Process) -> Splits:
    """Read both annotation files, after drawing the dataset if the configuration asks for that.

    Raises ConfigError for paths that are not set, DataError for everything that is wrong with the data.
    """
    (annotations, images), (val_annotations, val_images) = _splits(config.data, process, "train", "val")
    dataset = _dataset_class(config)
    train = dataset(annotations, images, keep_empty=config.data.keep_empty, **_reading(config))
    val = dataset(val_annotations, val_images, **_reading(config))
    known, other = train.annotations, val.annotations
    classes = Classes.from_annotations(known, rare=config.data.rare, common=config.data.common)
    classes.check_same(other.category_ids, other.class_names, here=f"{known.path} (train)", there=f"{other.path} (val)")
    return Splits(train, val, classes, _stream(config, train))


def build_val(config: c.Config, process: Process) -> DetectionDataset:
    """The validation set alone: a trained model needs no training set to be evaluated. Raises as `build_data` does."""
    ((annotations, images),) = _splits(config.data, process, "val")
    return _dataset_class(config)(annotations, images, **_reading(config))


def images_per_pass(config: c.Config, process: Process) -> int:
    """Images that a process holds at once.

    Raises ConfigError if passes and processes do not divide the batch, or a pass would hold several padded sizes.
    """
    batch = config.train.batch_size
    per_pass = config.train.images_per_pass or max(1, batch // process.world_size)
    if batch % (per_pass * process.world_size):
        raise ConfigError(
            f"train.batch_size {batch} is not divisible by {process.world_size} processes times {per_pass} images per "
            "pass; change train.batch_size, train.images_per_pass or the number of processes"
        )
    together = config.data.pad_together
    if together and together % per_pass:
        raise ConfigError(
            f"data.pad_together {together} is not a multiple of {per_pass} images per pass, which need one padded size; "
            f"set train.images_per_pass={together}, or change data.pad_together, which may change the result a little"
        )
    return per_pass


def build_training_loader(config: c.Config, data: Splits, process: Process, *, first: int, total: int) -> BatchLoader:
    """This process's share of the batches of steps first, …, total - 1."""
    draw = partial(
        draw_scenes, data.stream, size_of=data.train.size, augmentation=_augmentation(config.data), seed=config.seed,
        short_sides=config.data.short_sides, long_side=config.data.long_side, flip=config.data.flip,
    )  # fmt: skip
    share = share_of_step(data.stream.batch_size, images_per_pass(config, process), process.rank, process.world_size)
    batches = TrainingBatches(
        data.train, data.stream, draw, share=share,
        pad_multiple=config.data.pad_multiple, pad_together=config.data.pad_together,
        seed=config.seed if config.data.on_unreadable == "replace" else None,
    )  # fmt: skip
    return _loader(batches, range(first, total), config, process)


def build_evaluation_loader(config: c.Config, val: DetectionDataset, process: Process) -> BatchLoader:
    """This process's share of batches that together hold every validation image once."""
    batches = EvaluationBatches(
        val, short_side=config.data.test_short_side, long_side=config.data.long_side,
        pad_multiple=config.data.pad_multiple, batch_size=config.eval.batch_size,
        replace=config.data.on_unreadable == "replace",
    )  # fmt: skip
    return _loader(batches, range(process.rank, len(batches), process.world_size), config, process)


def _loader(
    batches: TrainingBatches | EvaluationBatches, numbers: range, config: c.Config, process: Process
) -> BatchLoader:
    return BatchLoader(batches, numbers, workers=config.data.workers, pin_memory=process.device.type == "cuda")


def _dataset_class(config: c.Config) -> type[DetectionDataset]:
    return LegacyDataset if config.model.legacy_offset else DetectionDataset


def _reading(config: c.Config) -> dict[str, bool]:
    """How images and boxes are resized, and whether images may be missing."""
    return {
        "antialias": config.data.antialias,
        "allow_missing": config.data.on_unreadable == "replace",
    }


def _splits(data: c.Data, process: Process, *names: Literal["train", "val"]) -> list[tuple[Annotations, str | Path]]:
    """Annotations and the folder of images of each split. Rank 0 parses the files, the others map the cache it leaves."""
    files = _files(data, process, names)
    return [(on_rank_zero(process, partial(read_annotations, annotations)), images) for annotations, images in files]


def _files(data: c.Data, process: Process, names: Sequence[str]) -> list[tuple[str | Path, str | Path]]:
    """(annotations, images) of each of the splits."""
    if data.generate:
        with config_errors("data.generate"):
            files = on_rank_zero(process, partial(draw, data.generate))
        return [(getattr(files, name), files.images) for name in names]
    splits = {name: getattr(data, name) for name in names}
    missing = [
        f"data.{name}.{key}"
        for name, split in splits.items()
        for key in ("annotations", "images")
        if getattr(split, key) is None
    ]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: not set; name the files in the configuration or on the command line, "
                          f"for instance {missing[0]}=PATH")  # fmt: skip
    return [(split.annotations, split.images) for split in splits.values()]


def _augmentation(data: c.Data) -> Augmentation:
    chosen = {}
    for name, kind in AUGMENTATIONS.items():
        with config_errors(f"data.{name}"):
            chosen[name] = (options := getattr(data, name)) and kind(**options.options())
    return Augmentation(**chosen)


def _stream(config: c.Config, train: DetectionDataset) -> TrainingStream:
    sampler, (labels, images) = config.data.sampler, train.learned_objects()
    wide = train.sizes[:, 1] >= train.sizes[:, 0] if config.data.aspect_grouping else None
    options = {"num_images": len(train), "batch_size": config.train.batch_size, "seed": config.seed, "wide": wide}
    if sampler.name == "class_aware":
        stream = ClassAwareStream(labels, images, **options)
    elif sampler.name == "instance_balanced":  # most factors are below 1: rounded up, hardly any of them would differ
        factors = instance_factors(images, num_images=len(train))
        stream = TrainingStream(factors=factors, rounding="stochastic", **options)
    else:
        factors = None
        if sampler.name == "repeat_factor":
            limits = {"threshold": sampler.threshold, "power": sampler.power}
            factors = repeat_factors(labels, images, num_images=len(train), **limits)
        stream = TrainingStream(
            factors=factors, rounding=sampler.rounding, legacy_order=sampler.legacy_order, **options
        )
    if stream.epoch_length > _LONGEST_EPOCH:
        raise ConfigError(
            f"data.sampler: an epoch would have {stream.epoch_length:.1e} images, of the {len(train)} that there are; "
            "lower threshold or power"
        )
    return stream


def draw(generate: c.Emoji) -> EmojiFiles:
    """The files of the dataset that `data.generate` describes, drawn unless they are there; raises as `draw_dataset` does."""
    options = generate.options()
    return draw_dataset(options.pop("folder"), EmojiOptions(**options))
