"""Trunks of Caffe's tradition (MSRA's ResNets in detectron2 and mmdetection): BGR pixels in 0 … 255, strides in 1x1."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import CheckpointError

# Of our images, RGB in 0 … 255: what RetinaNet's normalization is by default.
PIXEL_MEAN = 255 * torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
PIXEL_STD = 255 * torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)
CAFFE_MEAN = (103.53, 116.28, 123.675)  # BGR
CAFFE_STD = (1.0, 1.0, 1.0)


def fit_to_our_pixels(weight: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The first convolution for our normalized RGB images that computes what `weight` does for theirs. Exact up to rounding.

    (theirs - mean) / std = ours * PIXEL_STD / std if the means are the same; so is the zero of padding then.

    Args:
        weight: (C, 3, k, k).
        mean, std: of their pixels in 0 … 255, in the order of their channels.

    Raises CheckpointError for means that are not ImageNet's in the order of RGB or BGR.
    """
    mean, std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    for order in ((0, 1, 2), (2, 1, 0)):
        if torch.allclose(mean[list(order)], PIXEL_MEAN, rtol=0, atol=0.01):
            scale = (PIXEL_STD / std[list(order)])[:, None, None]
            return (weight[:, list(order)].double() * scale).to(weight.dtype)
    raise CheckpointError(
        f"it was trained with the pixel means {mean.tolist()}; only ImageNet's can be expressed, "
        f"{[round(value, 3) for value in PIXEL_MEAN.tolist()]} (RGB) or in reverse (BGR)"
    )
