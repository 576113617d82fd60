"""ResNet trunks: torchvision's, with its weights, and a thin one for CPUs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d

TORCHVISION_RESNETS = {
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "resnet101": models.resnet101,
}
THIN_CHANNELS = (16, 16, 32, 64, 128)  # stem, layer1 … layer4
NUM_STAGES = 5  # the stem and layer1 … layer4


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, the number of Wu and He 2018 (arXiv:1803.08494); fewer for thin layers.

    The largest power of two up to 32 that divides the channels and leaves at least two of them in a group.
    """
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and (channels >= 2 * g or g == 1))
    return nn.GroupNorm(groups, channels)


class FrozenStatisticsBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always uses its running statistics and never moves them; scale and shift are trained."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenStatisticsBatchNorm2d":
        """Evaluation mode, whatever is asked for."""
        return super().train(False)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen_bn": FrozenBatchNorm2d,  # statistics and affine parameters are buffers: nothing is learned
    "frozen_stats": FrozenStatisticsBatchNorm2d,
    "bn": nn.BatchNorm2d,
    "sync_bn": nn.SyncBatchNorm,
    "gn": group_norm,
}


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
    frozen_stages: int = 0,
    norm: Literal["frozen_bn", "frozen_stats", "bn", "sync_bn", "gn"] = "frozen_bn",
    stride_in_1x1: bool = False,
) -> ResNet:
    """A ResNet trunk.

    Args:
        name: a ResNet of torchvision, or "thin": 0.7 million parameters, two BasicBlocks per stage, for CPUs.
        frozen_stages: see ResNet.
        norm: with "frozen_bn" or "frozen_stats" the norm layers keep the statistics 0 and 1 until weights are loaded.
        stride_in_1x1: the first 1x1 convolution of a stage halves the size, as in the ResNets of MSRA and Caffe2, and not
            the 3x3 one after it, as in torchvision's. For resnet50 and resnet101.

    Raises ValueError for stride_in_1x1 and blocks that do not begin with a 1x1 convolution.
    """
    if name == "thin":
        trunk = _thin(NORMS[norm], frozen_stages)
    else:
        trunk = _trunk_of(TORCHVISION_RESNETS[name](weights=None, norm_layer=NORMS[norm]), frozen_stages)
    if stride_in_1x1:
        _move_strides(trunk)
    return trunk


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
