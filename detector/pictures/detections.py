"""Ground truth beside detections, as a picture."""

from collections.abc import Sequence

import numpy as np

from ...datasets.images.transforms import View, resized_size
from ...datasets.loading.batches import padded_size
from ...datasets.loading.dataset import DetectionDataset
from ...datasets.loading.unreadable import ShowingNothing
from ..model.postprocess import Postprocess, detect
from ..model.retinanet import RetinaNet
from .drawing import draw_boxes, sheet, side_by_side


def detection_sheet(
    network: RetinaNet,
    dataset: DetectionDataset,
    postprocess: Postprocess,
    class_names: Sequence[str],
    *,
    count: int,
    short_side: int,
    long_side: int,
    pad_multiple: int,
    score_threshold: float = 0.3,
) -> np.ndarray:
    """(H, W, 3) uint8: `count` images spread over the dataset, each with its objects left and its detections right.

    Args:
        score_threshold: detections above it are drawn.
    """
    network.eval()
    pairs = []
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist():
        view = View(resized_size(dataset.size(index), short_side, long_side), flip=False)
        tensor, targets = ShowingNothing(dataset.read)(index, view)  # the evaluation has warned of those
        (found,) = detect(network, [tensor], padded_size([view.size], pad_multiple), postprocess)
        drawn = found.scores > score_threshold
        scores, labels = found.scores[drawn].tolist(), found.labels[drawn].tolist()
        image, true_labels = tensor.permute(1, 2, 0).numpy(), targets.labels.tolist()
        truth = draw_boxes(image, targets.boxes, true_labels, [class_names[k] for k in true_labels])
        captions = [f"{class_names[k]} {score:.2f}" for k, score in zip(labels, scores, strict=True)]
        # Best last, so that it is drawn on top.
        detections = draw_boxes(image, found.boxes[drawn].cpu().numpy()[::-1], labels[::-1], captions[::-1])
        pairs.append(side_by_side(truth, detections, ("ground truth", f"detections above {score_threshold:g}")))
    return sheet(pairs)
