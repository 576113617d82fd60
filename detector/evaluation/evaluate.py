"""Detections of a network on a dataset, spread over processes, and their score."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ...datasets.loading.batches import Batch
from ..model.postprocess import Detections, Postprocess, detect, rescale
from ..model.retinanet import RetinaNet
from ..results.columns import DetectionColumns
from ..system.distributed import Process, all_sum, columns_of_others
from ..system.progress import progress_bar
from .columnar import ColumnarEvaluator, Matches
from .ground_truth import GroundTruth, fixed_ap
from .metrics import summarize, summarize_fixed_ap

# AP of rare classes lives on detections with low scores.
_LVIS_SCORE_THRESHOLD = 1e-3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Scores networks on one dataset. Each process runs its own batches; rank 0 does the sums.

    Args:
        batches: this process's batches; those of all processes together hold every image once.
        ground_truth: of the whole dataset.
        category_ids, class_names, frequencies: of the K classes.
        train_image_counts: training images that hold each class, to be shown beside its AP.
    """

    batches: Iterable[Batch]
    ground_truth: GroundTruth
    postprocess: Postprocess
    process: Process
    category_ids: Sequence[int]
    class_names: Sequence[str]
    frequencies: Sequence[str]
    train_image_counts: Sequence[int] | None = None
    unreadable: set[int] = field(
        default_factory=set
    )  # images, of all processes, that the last `detections` could not see

    def caveats(self) -> list[str]:
        """What keeps the numbers from being comparable with those of others."""
        limit, threshold = self.ground_truth.protocol.per_image, self.postprocess.score_threshold
        kept = self.postprocess.detections_per_image
        if limit is None or (threshold <= _LVIS_SCORE_THRESHOLD and kept >= limit):
            return []
        return [
            f"test.score_threshold is {threshold:g} and test.detections_per_image {kept}; LVIS numbers are comparable only "
            f"with at most {_LVIS_SCORE_THRESHOLD:g} and at least {limit}"
        ]

    def run(self, network: RetinaNet) -> dict | None:
        """The result (see `metrics.summarize`) on rank 0, None on the others. Leaves the network in eval mode."""
        return self.score(self.detections(network))

    def detections(self, network: RetinaNet) -> Iterator[DetectionColumns]:
        """The detections of this process's images, batch by batch, in the pixels of the original images.

        Every process iterates over them, to the end. Raises ValueError there, on every process, unless the batches of all
        processes hold each image of the ground truth once.
        """
        network.eval()
        quiet, indices, unreadable = self.process.rank != 0, [], []
        bar = progress_bar(self.batches, desc="evaluate", unit="batch", disable=quiet, leave=False)
        for batch in bar:
            indices += batch.image_indices
            unreadable += batch.unreadable
            found = detect(network, batch.images, batch.padded_size, self.postprocess)
            yield _columns(batch, found, legacy_offset=self.postprocess.legacy_offset)
        self._settle(indices, unreadable)

    def score(self, detections: Iterable[DetectionColumns], *, with_fixed_ap: bool = False) -> dict | None:
        """The result of every process's `detections`, on rank 0; None on the others.

        Args:
            with_fixed_ap: with "Fixed AP" beside the protocol's numbers (see `ground_truth.fixed_ap`).
        """
        evaluators = [ColumnarEvaluator(self.ground_truth)]
        evaluators += [ColumnarEvaluator(fixed_ap(self.ground_truth))] if with_fixed_ap else []
        for columns in detections:
            for evaluator in evaluators:
                evaluator.add(*columns)
        for evaluator in evaluators:
            for state in columns_of_others(evaluator.state(), self.process.device):
                evaluator.merge(Matches(*state))
        return self._summarize(*evaluators) if self.process.rank == 0 else None

    def _settle(self, seen: Sequence[int], unreadable: Sequence[int]) -> None:
        """Learn from all processes which images they have seen; raises ValueError unless it was each of them once."""
        own = [
            torch.bincount(torch.tensor(indices, dtype=torch.int64), minlength=self.ground_truth.num_images)
            for indices in (seen, unreadable)
        ]
        times, lost = all_sum(torch.stack(own).to(self.process.device)).cpu()
        self.unreadable.clear()
        self.unreadable.update(lost.nonzero().flatten().tolist())
        for wrong, problem in ((times == 0, "not at all"), (times > 1, "more than once")):
            if wrong.any():
                raise ValueError(
                    f"{int(wrong.sum())} of {len(times)} images were evaluated {problem}, the first at index "
                    f"{int(wrong.nonzero()[0])} of the annotations; the batches of {self.process.world_size} processes "
                    "must together hold every image once"
                )

    def _summarize(self, evaluator: ColumnarEvaluator, fixed: ColumnarEvaluator | None = None) -> dict:
        result = summarize(
            evaluator.accumulate(),
            self.ground_truth,
            category_ids=self.category_ids,
            class_names=self.class_names,
            frequencies=self.frequencies,
            train_image_counts=self.train_image_counts,
            score_threshold=self.postprocess.score_threshold,
        )
        result |= summarize_fixed_ap(fixed, self.frequencies) if fixed else {}
        if self.unreadable:
            result["unreadable_images"] = len(self.unreadable)
            _log.warning(
                f"{len(self.unreadable)} of {self.ground_truth.num_images} images could not be read, and count as images in "
                "which nothing was detected: the result is no better than it would be with them"
            )
        return result


def _columns(batch: Batch, detections: Sequence[Detections], *, legacy_offset: bool) -> DetectionColumns:
    """The detections in each image of a batch, in the pixels of the original images."""
    sizes = [tuple(image.shape[-2:]) for image in batch.images]
    found = [
        rescale(*each, legacy_offset=legacy_offset)
        for each in zip(detections, sizes, batch.original_sizes, strict=True)
    ]
    boxes = torch.cat([f.boxes for f in found]).cpu().numpy()
    return DetectionColumns(
        image_index=np.repeat(np.array(batch.image_indices, np.int64), [len(f.boxes) for f in found]),
        labels=torch.cat([f.labels for f in found]).cpu().numpy(),
        # float32, as files hold it: what is written and read back is the same numbers.
        boxes_xywh=np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1),
        scores=torch.cat([f.scores for f in found]).cpu().numpy(),
    )
