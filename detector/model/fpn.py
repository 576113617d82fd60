"""Feature pyramid (Lin et al. 2017, arXiv:1612.03144) with RetinaNet's P6 and P7."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

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
