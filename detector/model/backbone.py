"""ResNet trunks: torchvision's, with its weights, and a thin one for CPUs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from ..checkpoint.file import load_checkpoint
from .norms import NORMS

TORCHVISION_RESNETS = {
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "resnet101": models.resnet101,
}
THIN_CHANNELS = (16, 16, 32, 64, 128)  # stem, layer1 … layer4
NUM_STAGES = 5  # the stem and layer1 … layer4


class ResNet(nn.Module):
    """The feature maps C3, C4, C5 (strides 8, 16, 32) of a ResNet. State-dict keys are torchvision's, without `fc`.

    Args:
        stem: convolution, norm and pooling, which together divide the size by 2 (then layer1 must halve it) or 4.
        layers: layer1 … layer4.
        out_channels: of C3, C4, C5.
        frozen_stages: number of stages that are not trained: 1 the stem, 2 also layer1, … 5 everything. Their norm
            layers keep their statistics too, whatever `train()` says.
    """

    def __init__(
        self,
        *,
        stem: tuple[nn.Module, nn.Module, nn.Module],
        layers: Sequence[nn.Module],
        out_channels: tuple[int, int, int],
        frozen_stages: int = 0,
    ):
        super().__init__()
        if not 0 <= frozen_stages <= NUM_STAGES:
            raise ValueError(f"frozen_stages is {frozen_stages}; expected 0 (none) to {NUM_STAGES} (all)")
        self.conv1, self.bn1, self.maxpool = stem
        self.relu = nn.ReLU(inplace=True)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.out_channels = out_channels
        self.frozen_stages = frozen_stages
        for module in self._frozen():
            module.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) normalized images -> C3, C4, C5, each (N, C_l, ceil(H / stride), ceil(W / stride))."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        c3 = self.layer2(self.layer1(stem))
        c4 = self.layer3(c3)
        return [c3, c4, self.layer4(c4)]

    def train(self, mode: bool = True) -> "ResNet":
        """Training mode for all but the frozen stages, whose BatchNorms would go on moving their statistics."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        stages = [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]
        return [module for stage in stages[: self.frozen_stages] for module in stage]


def resnet(
    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "thin"],
    *,
    weights: str | None = None,
    frozen_stages: int = 0,
    norm: Literal["frozen_bn", "frozen_stats", "bn", "sync_bn", "gn"] = "frozen_bn",
    stride_in_1x1: bool = False,
) -> ResNet:
    """A ResNet trunk.

    Args:
        name: a ResNet of torchvision, or "thin": 0.7 million parameters, two BasicBlocks per stage, for CPUs.
        weights: None for a random start; the name of torchvision weights such as "IMAGENET1K_V1", downloaded once;
            or the path of a state dict with the keys of torchvision's ResNet, or of this trunk.
        frozen_stages: see ResNet.
        norm: with "gn", the BatchNorm layers of the weights are left out and GroupNorm starts at 1 and 0; every other
            entry must fit. With "frozen_bn" or "frozen_stats" and no weights at all the norm layers keep the statistics 0
            and 1: load a detector then.
        stride_in_1x1: the first 1x1 convolution of a stage halves the size, as in the ResNets of MSRA and Caffe2, and not
            the 3x3 one after it, as in torchvision's. For resnet50 and resnet101.

    Raises:
        ValueError: weights that are neither a file nor a known name, cannot be downloaded, or do not fit the trunk;
            stride_in_1x1 for blocks that do not begin with a 1x1 convolution.
    """
    if name == "thin":
        trunk = _thin(NORMS[norm], frozen_stages)
    else:
        trunk = _trunk_of(TORCHVISION_RESNETS[name](weights=None, norm_layer=NORMS[norm]), frozen_stages)
    if stride_in_1x1:
        _move_strides(trunk)
    if weights is not None:
        load_weights(trunk, read_weights(name, weights), source=f"{name} weights {weights}")
    return trunk


def read_weights(name: str, weights: str) -> dict[str, Tensor]:
    """The state dict that `weights` stands for: the path of one, or the name of torchvision weights of `name`."""
    if Path(weights).is_file():
        return load_checkpoint(weights)
    known = {} if name == "thin" else models.get_model_weights(name).__members__
    if weights not in known:
        raise ValueError(
            f"{name} weights {weights!r}: no such file, nor the name of torchvision weights of {name} "
            f"({', '.join(known) or 'it has none'})"
        )
    try:
        return known[weights].get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:  # urllib's URLError and HTTPError, a lost connection, a cache folder one cannot write
        raise ValueError(
            f"{name} weights {weights} could not be downloaded from {known[weights].url}: {error}. "
            "Without a network, fetch that file elsewhere and pass its path as the weights"
        ) from error


def load_weights(trunk: ResNet, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Load a ResNet classifier's or trunk's state dict. All of it must fit, except `fc` and BatchNorm into GroupNorm.

    Raises ValueError, naming `source` and the keys, if anything is missing, left over or of another shape.
    """
    state_dict = {key: value for key, value in state_dict.items() if not key.startswith("fc.")}
    left_out: set[str] = set()
    if isinstance(trunk.bn1, nn.GroupNorm):
        # The scale and shift of a BatchNorm mean nothing without its statistics, and GroupNorm has none.
        left_out = {key.removesuffix(".running_mean") for key in state_dict if key.endswith(".running_mean")}
        state_dict = {key: value for key, value in state_dict.items() if key.rpartition(".")[0] not in left_out}
    shapes = {key: tuple(value.shape) for key, value in trunk.state_dict().items()}
    reshaped = [key for key in state_dict if key in shapes and tuple(state_dict[key].shape) != shapes[key]]
    if reshaped:
        key = reshaped[0]
        raise ValueError(
            f"{source} do not fit the trunk: {key} is {tuple(state_dict[key].shape)}, expected {shapes[key]}; "
            f"{len(reshaped)} of {len(shapes)} shapes differ; are these the weights of another ResNet?"
        )
    missing, unexpected = trunk.load_state_dict(state_dict, strict=False)
    missing = [key for key in missing if key.rpartition(".")[0] not in left_out]
    if missing or unexpected:
        raise ValueError(
            f"{source} do not fit the trunk: missing {_some(missing)}; unexpected {_some(unexpected)}; "
            "expected the state dict of the same ResNet, with torchvision's keys"
        )


def _move_strides(trunk: ResNet) -> None:
    for layer in (trunk.layer2, trunk.layer3, trunk.layer4):
        first, second = layer[0].conv1, layer[0].conv2
        if first.kernel_size != (1, 1):
            raise ValueError("stride_in_1x1 is for resnet50 and resnet101, whose blocks begin with a 1x1 convolution")
        first.stride, second.stride = second.stride, first.stride


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:4]) + f" … ({len(keys)} keys)" if len(keys) > 4 else ", ".join(keys) or "nothing"


def _trunk_of(net: models.ResNet, frozen_stages: int) -> ResNet:
    c5 = net.fc.in_features
    return ResNet(
        stem=(net.conv1, net.bn1, net.maxpool),
        layers=(net.layer1, net.layer2, net.layer3, net.layer4),
        out_channels=(c5 // 4, c5 // 2, c5),
        frozen_stages=frozen_stages,
    )


def _thin(norm: Callable[[int], nn.Module], frozen_stages: int) -> ResNet:
    stem = THIN_CHANNELS[0]
    trunk = ResNet(
        stem=(nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False), norm(stem), nn.Identity()),
        layers=[_thin_layer(*THIN_CHANNELS[i : i + 2], norm) for i in range(4)],
        out_channels=THIN_CHANNELS[2:],
        frozen_stages=frozen_stages,
    )
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return trunk


def _thin_layer(in_channels: int, channels: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=2, bias=False), norm(channels))
    return nn.Sequential(
        BasicBlock(in_channels, channels, stride=2, downsample=downsample, norm_layer=norm),
        BasicBlock(channels, channels, norm_layer=norm),
    )
