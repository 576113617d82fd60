"""RetinaNet (Lin et al. 2017, arXiv:1708.02002): trunk, pyramid, head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
