"""What a run tells while it goes on: progress bar, log.txt, metrics.jsonl, TensorBoard. Only rank 0 speaks."""

import json
import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ...datasets.loading.batches import Batch
from ...losses import GradientGuidedLoss
from ..system.files import append_text, write_text
from ..system.progress import progress_bar

_QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


class RunLog:
    """Writes into the run folder and to the terminal; does nothing on ranks other than 0.

    A disk that is full is no reason to stop: what cannot be written is missing, and the terminal says so.

    Args:
        folder: of the run; `metrics.jsonl` is cut back to `step`, so that a resumed run leaves no step twice.
        step: where this run starts.
        frequencies: "r", "c" or "f" per class, to group per-class numbers.
        log_every: steps between two records of training.
        enabled: True on rank 0.
    """

    def __init__(self, folder: Path, *, step: int, frequencies: Sequence[str], log_every: int, enabled: bool):
        self.folder, self.enabled, self.log_every = folder, enabled, log_every
        self.groups = {g: np.flatnonzero(np.array(frequencies) == g) for g in "rcf" if g in frequencies}
        self.timed_steps, self.data_seconds, self.step_seconds = 0, 0.0, 0.0  # since the last record
        self.batch_came = 0.0  # when, by time.perf_counter
        self.bar: tqdm | None = None
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self._cut_back(step)
            self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def say(self, text: str) -> None:
        """Print a line above the progress bar and append it to log.txt."""
        if self.enabled:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
            with self.best_effort():
                append_text(self.folder / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    @contextmanager
    def best_effort(self) -> Iterator[None]:
        """Warn in the terminal of files that the block cannot write, and go on."""
        try:
            yield
        except OSError as error:
            tqdm.write(
                f"warning: {error.filename or self.folder}: cannot be written: {error.strerror}", file=sys.stdout
            )

    def progress(self, batches: Iterable[Batch], *, first: int, total: int) -> Iterator[Batch]:
        """The batches, with a bar that counts steps from `first` to `total`; measures the wait for data."""
        iterator = iter(batches)
        bar = progress_bar(total=total, initial=first, desc="train", unit="step", disable=not self.enabled)
        with bar as self.bar:
            while True:
                begin = time.perf_counter()
                batch = next(iterator, None)
                if batch is None:
                    return
                self.batch_came = time.perf_counter()
                self.data_seconds += self.batch_came - begin
                yield batch
                self.bar.update()

    def training(self, step: int, numbers: dict[str, float], classification: nn.Module) -> None:
        """Take the time of a step that is done, and record its numbers if a record is due."""
        if not self.enabled:
            return
        self.timed_steps += 1
        self.step_seconds += time.perf_counter() - self.batch_came
        if step % self.log_every:
            return
        numbers = {
            **numbers,
            "data_seconds": self.data_seconds / self.timed_steps,
            "step_seconds": self.step_seconds / self.timed_steps,
            "memory_gb": _peak_memory_gb(),
        }
        self.timed_steps, self.data_seconds, self.step_seconds = 0, 0.0, 0.0
        if isinstance(classification, GradientGuidedLoss):
            numbers |= self.by_group("gradient_ratio", classification.gradient_ratio.cpu().numpy())
        self._record(step, "train", numbers)
        self.bar.set_postfix_str(
            f"loss {numbers['loss']:.3f} (cls {numbers['classification']:.3f} box {numbers['box']:.3f}), "
            f"data {numbers['data_seconds']:.2f}s step {numbers['step_seconds']:.2f}s, {numbers['memory_gb']:.1f} GB"
        )

    def evaluation(self, step: int, metrics: dict[str, float | None]) -> None:
        """Record the metrics of an evaluation (percent; None without support)."""
        if self.enabled:
            self._record(step, "evaluation", metrics)

    def evaluations(self) -> dict[int, dict]:
        """The recorded evaluations by step."""
        records = self._records() if self.enabled else []
        return {record["step"]: record for record in records if record["kind"] == "evaluation"}

    def picture(self, step: int, tag: str, image: np.ndarray) -> None:
        """Show an (H, W, 3) uint8 picture in TensorBoard."""
        if self.enabled:
            with self.best_effort():
                self.writer.add_image(tag, image, step, dataformats="HWC")

    def by_group(self, name: str, per_class: np.ndarray) -> dict[str, float]:
        """Quantiles of a (K,) array over the classes of each frequency group, as `name/r/median` and so on."""
        return {
            f"{name}/{group}/{label}": float(np.quantile(per_class[classes], q))
            for group, classes in self.groups.items()
            for label, q in _QUANTILES.items()
        }

    def close(self) -> None:
        """Write out what TensorBoard still holds back."""
        if self.enabled:
            with self.best_effort():
                self.writer.close()

    def _record(self, step: int, kind: str, numbers: dict[str, float | None]) -> None:
        # JSON has no infinity: the norm of a gradient that overflowed in fp16.
        numbers = {name: v if v is not None and math.isfinite(v) else None for name, v in numbers.items()}
        with self.best_effort():
            append_text(self.folder / "metrics.jsonl", json.dumps({"step": step, "kind": kind, **numbers}) + "\n")
        with self.best_effort():
            for name, value in numbers.items():
                if value is not None:
                    self.writer.add_scalar(f"{kind}/{name}", value, step)
            self.writer.flush()

    def _records(self) -> list[dict]:
        path = self.folder / "metrics.jsonl"
        # A run that was killed may leave half a last line.
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def _cut_back(self, step: int) -> None:
        kept = [json.dumps(record) + "\n" for record in self._records() if record["step"] <= step]
        write_text(self.folder / "metrics.jsonl", "".join(kept))


def _peak_memory_gb() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
