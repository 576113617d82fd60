"""The detections of EFL's improved baseline, as its official code computes them.

`e2e_improved_baseline_focal.npz` was made by United-Perception's post-processor (52aaeb9, on a CPU): two images, seven
classes, two anchors per cell, maps with the anchor outermost, labels 0 for background, boxes with inclusive corners.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from longshot.detector.model.head import HeadOutputs, flatten_level
from longshot.detector.model.legacy import LegacyPostprocess
from longshot.detector.model.postprocess import Postprocess

FIXTURE = Path(__file__).parents[2] / "fixtures" / "e2e_improved_baseline_focal.npz"
TO_EDGES = torch.tensor([0, 0, 1, 1])  # from inclusive corners


@pytest.fixture(scope="module")
def official():
    with np.load(FIXTURE) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def detections(official, kind=LegacyPostprocess):
    """Image, box, score and label of all detections, (D, 7), with the official options."""
    candidates, per_image, nms_threshold = official["post_cfg"].tolist()
    official_options = {
        "score_threshold": 0.0, "candidates_per_level": int(candidates), "limit_to_anchors": True,
        "nms_threshold": nms_threshold, "detections_per_image": int(per_image),
    }  # fmt: skip
    maps = {name: [official[f"raw_{name}_l{level}"] for level in range(5)] for name in ("cls", "loc", "iou")}
    outputs = HeadOutputs(
        [flatten_level(level, 7) for level in maps["cls"]],
        [flatten_level(level, 4) for level in maps["loc"]],
        [flatten_level(level, 1).squeeze(-1) for level in maps["iou"]],
    )
    anchors = [official[f"anchors_l{level}"] + TO_EDGES for level in range(5)]
    sizes = [tuple(official[f"image_hw_{i}"].tolist()) for i in range(2)]
    found = kind(**official_options)(outputs, anchors, sizes)
    return torch.cat([
        torch.column_stack((torch.full_like(of_image.scores, i), *of_image)) for i, of_image in enumerate(found)
    ])  # fmt: skip


def expected(official):
    boxes = official["dets"][:, 1:5] + TO_EDGES
    return torch.column_stack((official["dets"][:, 0], boxes, official["dets"][:, 5], official["dets"][:, 6] - 1))


def test_detections_are_those_of_the_official_code(official):
    found, theirs = detections(official), expected(official)
    assert torch.equal(found[:, [0, 6]], theirs[:, [0, 6]])  # images and labels, in order
    torch.testing.assert_close(found[:, 1:6], theirs[:, 1:6], rtol=0, atol=1e-5)


def test_boxes_clipped_to_edges_are_not_the_official_ones(official):
    found, theirs = detections(official, kind=Postprocess), expected(official)
    assert (found[:, 1:6] - theirs[:, 1:6]).abs().max() == 1
