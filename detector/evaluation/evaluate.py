"""Detections of a network on a dataset, spread over processes, and their score."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from ...datasets.annotations.annotations import Annotations
from ...datasets.classes import Classes
from ...datasets.loading.batches import Batch
from ..model.postprocess import Detections, Postprocess, detect
from ..model.retinanet import RetinaNet
from ..results.columns import DetectionColumns
from ..system.distributed import Process, all_sum, columns_of_others
from ..system.environment import progress_bar
from .columnar import ColumnarEvaluator, Matches
from .ground_truth import GroundTruth, Protocol
from .metrics import summarize, summarize_fixed_ap

_log = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """Scores networks on one dataset. Each process runs its own batches; rank 0 does the sums.

    Args:
        batches: this process's batches; those of all processes together hold every image once.
        annotations: of the whole dataset.
        classes: the K classes.

    Attributes:
        num_unreadable: images, of all processes, that the last `detections` could not see.
    """

    batches: Iterable[Batch]
    annotations: Annotations
    protocol: Protocol
    postprocess: Postprocess
    process: Process
    classes: Classes
    num_unreadable: int = field(default=0, init=False)

    @cached_property
    def ground_truth(self) -> GroundTruth:
        """What detections are compared with; made when it is needed, long after training has begun."""
        return GroundTruth.from_annotations(self.annotations, self.protocol)

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
            yield _columns(batch, found, self.postprocess)
        self._check_coverage(indices, unreadable)

    def score(self, detections: Iterable[DetectionColumns], *, with_fixed_ap: bool = False) -> dict | None:
        """The result of every process's `detections`, on rank 0; None on the others.

        Args:
            with_fixed_ap: with "Fixed AP" beside the protocol's numbers (see `GroundTruth.with_fixed_ap_rules`).
        """
        evaluator = ColumnarEvaluator(self.ground_truth)
        fixed = ColumnarEvaluator(self.ground_truth.with_fixed_ap_rules()) if with_fixed_ap else None
        evaluators = [evaluator, fixed] if fixed else [evaluator]
        for columns in detections:
            for evaluator in evaluators:
                evaluator.add(*columns)
        for evaluator in evaluators:
            for state in columns_of_others(evaluator.state(), self.process.device):
                evaluator.merge(Matches(*state))
        return self._summarize(evaluator, fixed) if self.process.rank == 0 else None

    def _check_coverage(self, seen: Sequence[int], unreadable: Sequence[int]) -> None:
        """Learn from all processes which images they have seen; raises ValueError unless it was each of them once."""
        own = [
            torch.bincount(torch.tensor(indices, dtype=torch.int64), minlength=self.ground_truth.num_images)
            for indices in (seen, unreadable)
        ]
        times, lost = all_sum(torch.stack(own).to(self.process.device)).cpu()
        self.num_unreadable = int(lost.count_nonzero())
        for wrong, problem in ((times == 0, "not at all"), (times > 1, "more than once")):
            if wrong.any():
                raise ValueError(
                    f"{int(wrong.sum())} of {len(times)} images were evaluated {problem}, the first at index "
                    f"{int(wrong.nonzero()[0])} of the annotations; the batches of {self.process.world_size} processes "
                    "must together hold every image once"
                )

    def _summarize(self, evaluator: ColumnarEvaluator, fixed: ColumnarEvaluator | None) -> dict:
        threshold = self.postprocess.score_threshold
        result = summarize(evaluator.accumulate(), self.ground_truth, self.classes, score_threshold=threshold)
        result |= summarize_fixed_ap(fixed, self.classes.frequencies) if fixed else {}
        if self.num_unreadable:
            result["unreadable_images"] = self.num_unreadable
            _log.warning(
                f"{self.num_unreadable} of {self.ground_truth.num_images} images could not be read, and count as images in "
                "which nothing was detected: the result is no better than it would be with them"
            )
        return result


def _columns(batch: Batch, detections: Sequence[Detections], postprocess: Postprocess) -> DetectionColumns:
    """The detections in each image of a batch, in the pixels of the original images."""
    sizes = [tuple(image.shape[-2:]) for image in batch.images]
    found = list(map(postprocess.rescale, detections, sizes, batch.original_sizes))
    boxes = torch.cat([f.boxes for f in found]).cpu().numpy()
    return DetectionColumns(
        image_index=np.repeat(np.array(batch.image_indices, np.int64), [len(f.boxes) for f in found]),
        labels=torch.cat([f.labels for f in found]).cpu().numpy(),
        # float32, as files hold it: what is written and read back is the same numbers.
        boxes_xywh=np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1),
        scores=torch.cat([f.scores for f in found]).cpu().numpy(),
    )
