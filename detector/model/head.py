"""The head of a dense detector: a class tower and a box tower, shared by all pyramid levels."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .backbone import group_norm


class HeadOutputs(NamedTuple):
    """Raw outputs per level, finest first. Row (y * W + x) * A + a belongs to anchor a of cell (y, x)."""

    logits: list[Tensor]  # (N, R_l, K) per level
    deltas: list[Tensor]  # (N, R_l, D) per level, D = 4 or more: what a box coding decodes, see box_coding
    quality: list[Tensor] | None = None  # (N, R_l) per level: logits of how good the box is


def flatten_level(maps: Tensor, depth: int) -> Tensor:
    """(N, A * D, H, W) maps -> (N, H * W * A, D), D = `depth`: one row per anchor.

    Channels are anchor-outermost (channel = a * D + d). The one place that knows this layout; without a copy if the
    maps are channels-last in memory.
    """
    n, channels, height, width = maps.shape
    return maps.view(n, channels // depth, depth, height, width).permute(0, 3, 4, 1, 2).reshape(n, -1, depth)


class DenseHead(nn.Module):
    """Class logits and class-agnostic box outputs for A anchors per cell (Lin et al. 2017, arXiv:1708.02002, section 4).

    Args:
        channels: of the pyramid.
        num_classes: K.
        num_anchors: A.
        num_convs: 3x3 convolutions in each tower; 0 predicts from the pyramid itself.
        width: channels of the towers.
        norm: "gn" puts GroupNorm (32 groups, fewer under 64 channels) after each convolution of the towers.
        prior: score of every class before training. Nearly all anchors are background, and at 0.5 their loss would
            swamp the first steps.
        box_depth: D, outputs for the box of each anchor, see box_coding.
        quality: also predict, from the box tower, how good each box is (the branch of IoU-aware detectors and of FCOS).
        scaled_levels: number of pyramid levels, each of which learns a factor of its box outputs (FCOS, section 3.2);
            0 for no such factors.
        recompute: backward computes the towers' activations anew (Chen et al. 2016, arXiv:1604.06174): slower, but only
            the pyramid and the outputs are kept.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_classes: int,
        num_anchors: int,
        num_convs: int = 4,
        width: int = 256,
        norm: Literal["none", "gn"] = "none",
        prior: float = 0.01,
        box_depth: int = 4,
        quality: bool = False,
        scaled_levels: int = 0,
        recompute: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.box_depth = box_depth
        self.recompute = recompute
        self.class_tower = _tower(channels, width, num_convs, norm)
        self.box_tower = _tower(channels, width, num_convs, norm)
        features = width if num_convs else channels
        self.logits = nn.Conv2d(features, num_anchors * num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(features, num_anchors * box_depth, 3, padding=1)
        self.quality = nn.Conv2d(features, num_anchors, 3, padding=1) if quality else None
        self.level_scales = nn.Parameter(torch.ones(scaled_levels)) if scaled_levels else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.logits.bias, -math.log((1 - prior) / prior))

    def forward(self, pyramid: Sequence[Tensor]) -> HeadOutputs:
        """Pyramid levels (N, channels, H_l, W_l) -> the outputs of their R_l = H_l * W_l * A anchors."""
        scales = [None] * len(pyramid) if self.level_scales is None else self.level_scales
        levels = []
        for features, scale in zip(pyramid, scales, strict=True):
            if self.recompute:
                levels.append(checkpoint(self._level, features, scale, use_reentrant=False))
            else:
                levels.append(self._level(features, scale))
        logits, deltas, quality = map(list, zip(*levels, strict=True))
        return HeadOutputs(logits, deltas, None if self.quality is None else quality)

    def _level(self, features: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        logits = flatten_level(self.logits(self.class_tower(features)), self.num_classes)
        of_box = self.box_tower(features)
        deltas = flatten_level(self.deltas(of_box), self.box_depth)
        if scale is not None:
            deltas = deltas * scale
        return logits, deltas, None if self.quality is None else flatten_level(self.quality(of_box), 1).squeeze(-1)


def _tower(channels: int, width: int, num_convs: int, norm: str) -> nn.Sequential:
    blocks = []
    for i in range(num_convs):
        # A bias before a norm layer would be subtracted again.
        block = OrderedDict(conv=nn.Conv2d(width if i else channels, width, 3, padding=1, bias=norm == "none"))
        if norm == "gn":
            block["norm"] = group_norm(width)
        block["relu"] = nn.ReLU(inplace=True)
        blocks.append(nn.Sequential(block))
    return nn.Sequential(*blocks)
