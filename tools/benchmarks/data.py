"""Images per second that one core makes ready for training: ours, and torchvision's reference detection pipeline."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from longshot.datasets.annotations.annotations import read_annotations
from longshot.datasets.images.augmentation import Augmentation
from longshot.datasets.loading.batches import BatchLoader, TrainingBatches
from longshot.datasets.loading.dataset import DetectionDataset
from longshot.datasets.loading.samplers import TrainingStream
from longshot.datasets.loading.scenes import draw_scenes
from longshot.detector.model.anchors import AnchorGenerator
from longshot.detector.model.retinanet import RetinaNet
from longshot.detector.system.environment import progress_bar
from longshot.tools.benchmarks.harness import cpu_seconds

SHORT_SIDE, LONG_SIDE, PAD_MULTIPLE, FLIP = 800, 1333, 32, 0.5
BATCH_SIZE = 2  # images, as the reference has it
TIMES_THE_REFERENCE = 1.5  # at least

_SIZES = ((480, 640), (427, 640), (640, 480), (375, 500))  # height, width: the commonest of COCO
_BOXES = 7  # an image of COCO has as many
_QUALITY = 92  # of JPEG: with it the pictures below have the 150 kB of an image of COCO

# From files to what a loader hands over, resized on our side alone; and from files to what a network takes, the same on both
# sides: decoded, flipped, resized, normalized, in one padded float32 tensor.
OURS, OURS_TO_NETWORK = "ours", "ours, normalized and padded"
REFERENCE, REFERENCE_TO_NETWORK = "torchvision", "torchvision, resized, normalized and padded"


def measure(num_images: int, *, repeats: int) -> dict[str, float]:
    """CPU seconds per image of each pipeline, in one process and one thread: the shortest of `repeats` rounds.

    The files are made up: JPEGs of the sizes of COCO. They are read from the page cache.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as folder, progress_bar(total=4 * (repeats + 1), desc="data", unit="run") as bar:
            pipelines = pipelines_on(made_up_dataset(Path(folder), num_images))
            seconds: dict[str, list[float]] = {name: [] for name in pipelines}
            # In turn, so that whatever else the machine does hits all alike; the first round warms up.
            for _ in range(repeats + 1):
                for name, pipeline in pipelines.items():
                    seconds[name].append(cpu_seconds(partial(_pass, pipeline)) / (_steps(num_images) * BATCH_SIZE))
                    bar.update()
    finally:
        torch.set_num_threads(threads)
    return {name: min(times[1:]) for name, times in seconds.items()}


def _steps(num_images: int) -> int:
    return -(-num_images // BATCH_SIZE)


def _pass(pipeline: Callable[[], Iterator]) -> None:
    for _ in pipeline():
        pass


def pipelines_on(dataset: DetectionDataset) -> dict[str, Callable[[], Iterator]]:
    """By name, what goes through all images once, in batches."""
    network = RetinaNet(nn.Identity(), nn.Identity(), nn.Identity(), AnchorGenerator(strides=(8,)))
    into_network = GeneralizedRCNNTransform(
        SHORT_SIDE, LONG_SIDE, network.pixel_mean.flatten().tolist(), network.pixel_std.flatten().tolist()
    )
    wide = dataset.sizes[:, 1] >= dataset.sizes[:, 0]
    stream = TrainingStream(len(dataset), batch_size=BATCH_SIZE, seed=0, wide=wide)
    draw = partial(
        draw_scenes, stream, size_of=dataset.size, augmentation=Augmentation(), seed=0,
        short_sides=[SHORT_SIDE], long_side=LONG_SIDE, flip=FLIP,
    )  # fmt: skip
    batches = TrainingBatches(dataset, stream, draw, share=list(range(BATCH_SIZE)), pad_multiple=PAD_MULTIPLE)
    loader = BatchLoader(batches, range(_steps(len(dataset))))
    return {
        OURS: lambda: iter(loader),
        REFERENCE: lambda: _reference(dataset, stream),
        OURS_TO_NETWORK: lambda: (network.preprocess(batch.images, batch.padded_size) for batch in loader),
        REFERENCE_TO_NETWORK: lambda: (
            into_network(images, targets) for images, targets in _reference(dataset, stream)
        ),
    }


def _reference(
    dataset: DetectionDataset, stream: TrainingStream
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """Batches of the same steps as ours, as torchvision's references/detection make them by default.

    Pillow decodes; the transforms are those of its preset "hflip". Resizing is left to the model.
    """
    transforms = v2.Compose(
        [v2.RandomHorizontalFlip(FLIP), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
    )
    for step in range(_steps(len(dataset))):
        yield tuple(zip(*(transforms(*_as_reference(dataset, index)) for index, _ in stream.step(step)), strict=True))


def _as_reference(dataset: DetectionDataset, index: int) -> tuple[Image.Image, dict[str, Tensor]]:
    annotations = dataset.annotations
    objects = annotations.objects(index)
    boxes = tv_tensors.BoundingBoxes(
        np.array(annotations.boxes_xywh[objects]), format="XYWH", canvas_size=dataset.size(index), dtype=torch.float32
    )
    labels = torch.from_numpy(annotations.labels[objects].astype(np.int64))
    target = {"boxes": v2.functional.convert_bounding_box_format(boxes, new_format="XYXY"), "labels": labels}
    return Image.open(dataset.images / str(annotations.file_names[index])).convert("RGB"), target


def made_up_dataset(folder: Path, num_images: int) -> DetectionDataset:
    """Pictures with as much detail as photographs have, and boxes."""
    random = np.random.default_rng(0)
    images, objects = [], []
    for number in range(num_images):
        height, width = _SIZES[number % len(_SIZES)]
        _picture(height, width, random).save(folder / f"{number}.jpg", quality=_QUALITY)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        for x, y, w, h in random.uniform([0, 0, 9, 9], [width / 2, height / 2] * 2, (_BOXES, 4)).tolist():
            objects.append({"id": len(objects) + 1, "image_id": number, "category_id": 1, "bbox": [x, y, w, h]})
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return DetectionDataset(read_annotations(folder / "annotations.json"), folder)


def _picture(height: int, width: int, random: np.random.Generator) -> Image.Image:
    """Noise of every scale, the finer the weaker, as in photographs."""
    pixels = np.full((height, width, 3), 128.0)
    for octave in range(9):
        grid = random.integers(-128, 128, ((height >> (8 - octave)) + 1, (width >> (8 - octave)) + 1, 3))
        finer = Image.fromarray((grid + 128).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(finer) - 128.0) * 0.8**octave
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def table(seconds: Mapping[str, float]) -> str:
    """A line for each pipeline: images per second and core, milliseconds per image."""
    lines = [f"{'':46}{'images/s':>10}{'ms/image':>10}"]
    lines += [f"{name:46}{1 / spent:>10.1f}{1000 * spent:>10.2f}" for name, spent in seconds.items()]
    return "\n".join(lines)


def target(seconds: Mapping[str, float]) -> str:
    """Whether ours is as much faster as it should be, where both do the same work."""
    times = seconds[REFERENCE_TO_NETWORK] / seconds[OURS_TO_NETWORK]
    verdict = "met" if times >= TIMES_THE_REFERENCE else "NOT met"
    return f"target: at least {TIMES_THE_REFERENCE} times torchvision's images per second: {times:.2f}, {verdict}"
