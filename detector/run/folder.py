"""What a run leaves in its folder."""

import json
import platform
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from ...datasets.classes import Classes
from ...datasets.loading.batches import Batch
from ...datasets.loading.dataset import Splits
from ...datasets.loading.samplers import occurrences
from ..checkpoint.file import save_checkpoint
from ..checkpoint.folder import mark_best, prune, step_path
from ..config.schema import Config
from ..errors import CheckpointError
from ..evaluation.metrics import line, table
from ..system.distributed import Process, elastic_job
from ..system.environment import environment
from ..system.files import write_text
from ..training.state import Run
from ..training.step import NonFiniteStep
from .log import RunLog

FORMAT = "longshot 1"
MOST_WRITTEN = 3  # files of nonfinite steps per process: each may hold hundreds of megabytes
_TOP = 5  # images and classes that are named


def write_checkpoint(log: RunLog, run: Run, classes: Classes, config: Config) -> None:
    """Write a checkpoint of `run`, and remove those that are too many. Raises CheckpointError if it cannot be written."""
    folder = log.folder / "checkpoints"
    path = step_path(folder, run.step)
    if not run.norm().isfinite():  # or good ones would make room for it
        raise CheckpointError(f"{path}: not written, since weights or state are not finite")
    # Enough to go on, and enough to use the model without anything else.
    head = {"format": FORMAT, "config": config.model_dump(mode="json"), "classes": classes._asdict()}
    save_checkpoint(path, head | run.state_dict())
    try:
        prune(folder, config.train.keep_checkpoints)
    except OSError as error:
        log.write(f"warning: {error.filename}: cannot be removed: {error.strerror}; older checkpoints stay")


def keep_nonfinite_step(
    log: RunLog, run: Run, config: Config, process: Process, step: NonFiniteStep, batch: Batch
) -> None:
    """Write down a step that is not finite: this process's batch, and on rank 0 the state that it began in."""
    folder = log.folder / "nonfinite"
    log.write(f"warning: step {run.step} is not finite and was not taken: {step.numbers}; see {folder}")
    if len(list(folder.glob(f"step_*_process_{process.rank}.pt"))) >= MOST_WRITTEN:
        return
    content = {"step": run.step, "numbers": step.numbers, "batch": _batch_content(batch)}
    if process.rank == 0:
        content |= {"config": config.model_dump(mode="json"), "state": run.state_dict()}
    try:
        save_checkpoint(folder / f"step_{run.step:08d}_process_{process.rank}.pt", content)
    except CheckpointError as error:
        log.write(f"warning: {error}")


def _batch_content(batch: Batch) -> dict[str, object]:
    """A batch as tensors and plain values."""
    return {
        "images": [image.contiguous() for image in batch.images],
        "targets": [target._asdict() for target in batch.targets],
        "image_ids": batch.image_ids,
        "padded_sizes": batch.padded_sizes,
    }


def introduce(log: RunLog, config: Config, data: Splits, run: Run, total_steps: int, notes: list[str]) -> None:
    """Write down what is about to be trained, on what, with what, and the lines of `notes`."""
    if not log.enabled:
        return
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    here = {"step": run.step, "job": elastic_job(), **environment(), **_hardware(run.network.device)}
    # First: from config.yaml on, the folder holds a run, and a restart must find that it is its own.
    _append(log.folder / "environment.json", here)
    write_text(log.folder / "config.yaml", resolved)
    log.write(resolved)
    for note in notes:
        log.write(note)
    log.write(describe(data))
    parameters = sum(p.numel() for p in run.network.parameters() if p.requires_grad)
    log.write(
        f"{parameters / 1e6:.2f} M trainable parameters; steps {run.step} to {total_steps}; run folder {log.folder}"
    )


def _hardware(device: torch.device) -> dict[str, str | int]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": name, "threads": torch.get_num_threads()}


def _append(path: Path, entry: dict) -> None:
    """Add an entry to a JSON list: a resumed run may go on with another commit, on another machine."""
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    write_text(path, json.dumps([*entries, entry], indent=2) + "\n")


def record(log: RunLog, run: Run, result: dict, best_metric: str) -> None:
    """Write an evaluation down, and keep its checkpoint if it is the best so far."""
    if run.unreadable:
        log.write(f"warning: in place of {run.unreadable} images that could not be read others were shown so far")
    log.write(f"step {run.step}: {line(result)}")
    with log.best_effort():
        write_text(log.folder / "metrics.json", json.dumps({"step": run.step, **result}, indent=1) + "\n")
        checkpoint = step_path(log.folder / "checkpoints", run.step)
        best_before = max((record[best_metric] or 0.0 for record in log.evaluations().values()), default=0.0)
        if (result[best_metric] or 0.0) >= best_before and checkpoint.exists():
            mark_best(checkpoint)
        # Last: a resumed run evaluates this step again unless it finds the record.
        log.evaluation(run.step, {key: value for key, value in result.items() if isinstance(value, float | None)})
    log.gradient_ratio(run.criterion.classification)


def save_picture(log: RunLog, step: int, picture: np.ndarray) -> None:
    """Keep an (H, W, 3) uint8 picture of detections, as a file and in TensorBoard."""
    path = log.folder / "pictures" / f"step_{step:08d}.png"
    with log.best_effort():
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
    log.picture(step, "detections", picture)


def conclude(log: RunLog, step: int) -> None:
    """End the log with the table, a picture to look at, the command that shows the curves."""
    if not log.enabled:
        return
    path = log.folder / "metrics.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if result.get("step") != step:
        log.write(f"warning: {path} could not be written; tools/eval.py scores the checkpoint of step {step}")
        return
    log.write(f"\n{table(result)}")
    pictures = sorted((log.folder / "pictures").glob("*.png"))
    if pictures:
        log.write(f"detections beside ground truth: {pictures[-1]}")
    log.write(f"curves and pictures: tensorboard --logdir {log.folder}")


def describe(data: Splits) -> str:
    """A few lines on what is in the data: images, objects, the most and the least frequent classes, boxes left out."""
    lines = []
    for name, split in (("train", data.train), ("val", data.val)):
        objects = int(split.annotations.instance_counts.sum())
        cached = split.annotations.cached
        where = f"cached in {cached.file}" if cached else "not cached"
        lines.append(f"{name}: {len(split)} images, {objects} objects ({split.annotations.path}, {where})")
        lines += [split.report] if split.report else []
    classes = data.classes
    sizes = {group: classes.frequencies.count(group) for group in "rcf"}
    shown = [f"{classes.names[k]} {classes.train_images[k]}" for k in classes.by_falling_count()]
    middle = [] if len(shown) <= 10 else ["…"]
    source = "as the file says" if data.train.annotations.frequencies else "by training images"
    lines.append(
        f"{len(shown)} classes (rare {sizes['r']}, common {sizes['c']}, frequent {sizes['f']}, {source}), in training images: "
        + ", ".join([*shown[:5], *middle, *shown[-5:]] if middle else shown)
    )
    lines.append(f"an epoch is {data.stream.epoch_length:g} images after the sampler{_most_repeated(data)}")
    return "\n".join(lines)


def _most_repeated(data: Splits) -> str:
    """The images and the classes that come most often in the first epoch; "" if no image comes twice."""
    train, names = data.train, data.train.annotations.file_names
    times = np.bincount(data.stream.sequence(0), minlength=len(train))
    if times.max() <= 1:
        return ""
    labels, images = occurrences(*train.learned_objects(), num_images=len(train))
    with np.errstate(invalid="ignore"):  # 0 / 0 is a class without images
        of_classes = np.nan_to_num(np.bincount(labels, times[images]) / np.bincount(labels))
    top_images, top_classes = (np.argsort(-values, kind="stable")[:_TOP].tolist() for values in (times, of_classes))
    return (
        "; seen most in the first are the images "
        + ", ".join(f"{names[train.image_indices[i]]} ({times[i]} times)" for i in top_images)
        + " and those with "
        + ", ".join(f"{data.classes.names[k]} ({of_classes[k]:.1f} times on average)" for k in top_classes)
    )
