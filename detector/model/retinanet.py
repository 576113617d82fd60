"""RetinaNet (Lin et al. 2017, arXiv:1708.02002): trunk, pyramid, head."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .anchors import AnchorGenerator
from .head import HeadOutputs


class RetinaNet(nn.Module):
    """A dense detector: normalized images in, raw head outputs out. Losses and post-processing are other people's work.

    Args:
        backbone: (N, 3, H, W) -> C3, C4, C5.
        fpn: C3, C4, C5 -> pyramid levels.
        head: pyramid levels -> HeadOutputs.
        anchors: makes the anchors that the rows of the outputs belong to; its strides are those of the pyramid.
        pixel_mean: RGB, of pixels in [0, 1]; ImageNet's by default, as torchvision's weights want it.
        pixel_std: RGB, likewise.
    """

    def __init__(
        self,
        backbone: nn.Module,
        fpn: nn.Module,
        head: nn.Module,
        anchors: AnchorGenerator,
        *,
        pixel_mean: Sequence[float] = (0.485, 0.456, 0.406),
        pixel_std: Sequence[float] = (0.229, 0.224, 0.225),
    ):
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.head = head
        self.anchor_generator = anchors
        # Constants of the construction, not learned: they stay out of checkpoints.
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std)[:, None, None], persistent=False)
        # The faster layout of convolutions on CPUs and tensor cores; and `flatten_level` then needs no copy.
        self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        """Where the model lies; `preprocess` and `anchors` put their results there."""
        return self.pixel_mean.device

    def forward(self, images: Tensor) -> HeadOutputs:
        """Logits and deltas of all anchors, from preprocessed images (N, 3, H, W)."""
        return self.head(self.fpn(self.backbone(images)))

    def anchors(self, padded_size: tuple[int, int]) -> list[Tensor]:
        """Anchors (R_l, 4) of each level for images of this padded size, on the model's device."""
        return self.anchor_generator(padded_size, self.device)

    @torch.no_grad()
    def preprocess(self, images: Sequence[Tensor], padded_size: tuple[int, int]) -> Tensor:
        """A batch (N, 3, H, W) float32 on the model's device, channels last in memory, (H, W) = `padded_size`.

        Args:
            images: uint8 RGB (3, h, w), none larger than padded_size; each lies in the upper left corner.
        """
        height, width = padded_size
        # Zero after normalization is the mean color, which is also what the convolutions pad with. Rows in place of columns
        # and channels: PyTorch takes six times as long where the innermost axis has but three entries.
        rows = torch.zeros(len(images), height, width * 3, device=self.device)
        mean, std = (of_channels.flatten().repeat(width) for of_channels in (self.pixel_mean, self.pixel_std))
        for padded, image in zip(rows, images, strict=True):
            pixels = image.to(self.device, non_blocking=True).permute(1, 2, 0).flatten(1)
            seen = padded[: pixels.shape[0], : pixels.shape[1]]
            torch.div(pixels, 255, out=seen)
            seen.sub_(mean[: pixels.shape[1]]).div_(std[: pixels.shape[1]])
        return rows.view(len(images), height, width, 3).permute(0, 3, 1, 2)


STRIDES = (8, 16, 32, 64, 128)  # P3 … P7


class FPN(nn.Module):
    """Pyramid P3 … P7 from the trunk's C3, C4, C5; the arithmetic of torchvision and detectron2.

    Args:
        in_channels: of C3, C4, C5.
        channels: of every level of the pyramid.
        levels: 3 (up to P5), 4 (P6) or 5 (P7).
        p6_from: "c5" as in the RetinaNet paper and torchvision's second version, "p5" as in torchvision's first,
            "c5_lateral" (C5 after its lateral convolution) as in EFL's improved baseline.
        p7_relu: P7 is made from P6 after a ReLU, as in the paper; without one in EFL's improved baseline.
        init: of the weights: as torchvision and detectron2 have it, or as EFL's code.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        channels: int = 256,
        levels: int = 5,
        p6_from: Literal["c5", "p5", "c5_lateral"] = "c5",
        p7_relu: bool = True,
        init: Literal["kaiming_uniform", "xavier_normal"] = "kaiming_uniform",
    ):
        super().__init__()
        if not 3 <= levels <= 5:
            raise ValueError(f"levels is {levels}; expected 3 (P3 … P5) to 5 (P3 … P7)")
        c3, c4, c5 = in_channels
        self.strides = STRIDES[:levels]
        self.channels = channels
        self.p6_from = p6_from
        self.p7_relu = p7_relu
        self.lateral = nn.ModuleDict(
            {"c3": nn.Conv2d(c3, channels, 1), "c4": nn.Conv2d(c4, channels, 1), "c5": nn.Conv2d(c5, channels, 1)}
        )
        self.output = nn.ModuleDict({p: nn.Conv2d(channels, channels, 3, padding=1) for p in ("p3", "p4", "p5")})
        if levels >= 4:
            self.p6 = nn.Conv2d(c5 if p6_from == "c5" else channels, channels, 3, stride=2, padding=1)
        if levels == 5:
            self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if init == "kaiming_uniform":
                    nn.init.kaiming_uniform_(module.weight, a=1)
                else:
                    nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """C3, C4, C5 -> P3, P4, …, each (N, channels, H_l, W_l), finest first."""
        c3, c4, c5 = features
        merged5 = self.lateral["c5"](c5)
        merged4 = self.lateral["c4"](c4) + _upsample(merged5, c4)
        merged3 = self.lateral["c3"](c3) + _upsample(merged4, c3)
        p5 = self.output["p5"](merged5)
        pyramid = [self.output["p3"](merged3), self.output["p4"](merged4), p5]
        if len(self.strides) >= 4:
            pyramid.append(self.p6({"c5": c5, "p5": p5, "c5_lateral": merged5}[self.p6_from]))
        if len(self.strides) == 5:
            pyramid.append(self.p7(F.relu(pyramid[-1]) if self.p7_relu else pyramid[-1]))
        return pyramid


def _upsample(coarse: Tensor, fine: Tensor) -> Tensor:
    # To the size of the finer map, not by 2: ceil(H / 8) need not be twice ceil(H / 16).
    return F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
