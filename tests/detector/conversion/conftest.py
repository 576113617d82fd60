"""Files of other projects with random weights, and what their code computes with them, written once more without it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


class Reference:
    """Functions on a state dict by names, as the other projects' modules are: no code of ours."""

    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state

    def conv(self, name: str, x: Tensor, *, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        scale = self.state[f"{name}.weight"] / (self.state[f"{name}.running_var"] + 1e-5).sqrt()
        shift = self.state[f"{name}.bias"] - self.state[f"{name}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def group_norm(self, name: str, x: Tensor, *, groups: int) -> Tensor:
        return F.group_norm(x, groups, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def trunk(
        self, x: Tensor, *, stem: tuple[str, str], layer: Callable[[int, int], str], names: Mapping[str, str],
        counts: Sequence[int], strides_in_first: bool = False,
    ) -> list[Tensor]:  # fmt: skip
        """C3, C4, C5 of a ResNet.

        Args:
            stem: names of the convolution and its norm.
            layer: (stage 1 … 4, block) -> its name.
            names: of conv1, bn1, …, shortcut, shortcut_bn inside a block.
            counts: blocks in the stages.
            strides_in_first: the first convolution of a stage halves the size, otherwise its first 3x3 one.
        """
        x = F.max_pool2d(self.batch_norm(stem[1], self.conv(stem[0], x, stride=2)).relu(), 3, 2, padding=1)
        features = []
        for stage, count in enumerate(counts, start=1):
            for block in range(count):
                stride = 2 if stage > 1 and block == 0 else 1
                x = self._block(x, layer(stage, block), names, stride, strides_in_first)
            features.append(x)
        return features[1:]

    def _block(self, x: Tensor, at: str, names: Mapping[str, str], stride: int, strides_in_first: bool) -> Tensor:
        depth = sum(f"{at}.{names[f'conv{i}']}.weight" in self.state for i in (1, 2, 3))
        strided = 1 if strides_in_first or depth == 2 else 2
        y = x
        for i in range(1, depth + 1):
            y = self.conv(f"{at}.{names[f'conv{i}']}", y, stride=stride if i == strided else 1)
            y = self.batch_norm(f"{at}.{names[f'bn{i}']}", y)
            y = y.relu() if i < depth else y
        if f"{at}.{names['shortcut']}.weight" in self.state:
            x = self.batch_norm(
                f"{at}.{names['shortcut_bn']}", self.conv(f"{at}.{names['shortcut']}", x, stride=stride)
            )
        return (x + y).relu()

    def pyramid(self, features: Sequence[Tensor], *, lateral: Callable[[int], str], output: Callable[[int], str]):
        """(P3, P4, P5 and the merged map under P5) of C3, C4, C5."""
        merged = [self.conv(lateral(i), x) for i, x in zip((3, 4, 5), features, strict=True)]
        for i in (1, 0):
            merged[i] = merged[i] + merged[i + 1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return [self.conv(output(i), x) for i, x in zip((3, 4, 5), merged, strict=True)], merged[2]


def as_rows(maps: Tensor, depth: int) -> Tensor:
    """(1, A * depth, H, W) -> (H * W * A, depth), by loops."""
    _, channels, height, width = maps.shape
    return torch.stack(
        [
            maps[0, a * depth : (a + 1) * depth, y, x]
            for y in range(height)
            for x in range(width)
            for a in range(channels // depth)
        ]
    )


RESNET = {
    **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)}, **{f"bn{i}": f"bn{i}" for i in (1, 2, 3)},
    "shortcut": "downsample.0", "shortcut_bn": "downsample.1",
}  # fmt: skip
CHANNELS = {18: (64, 128, 256, 512), 50: (256, 512, 1024, 2048)}
COUNTS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class RandomState:
    """A state dict with random weights, filled by name; variances near 1, activations of order 1."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)
        self.state: dict[str, Tensor] = {}

    def conv(self, name: str, outputs: int, inputs: int, size: int, *, bias: bool = False, gain: float = 1.4) -> None:
        noise = torch.randn(outputs, inputs, size, size, generator=self.generator)
        self.state[f"{name}.weight"] = noise * gain / (inputs * size * size) ** 0.5
        if bias:
            self.state[f"{name}.bias"] = self._between(outputs, -0.3, 0.3)

    def norm(
        self, name: str, channels: int, *, statistics: bool = True, counter: bool = True, scale: float = 1.0
    ) -> None:
        self.state[f"{name}.weight"] = self._between(channels, 0.5, 1.5) * scale
        self.state[f"{name}.bias"] = self._between(channels, -0.2, 0.2)
        if statistics:
            self.state[f"{name}.running_mean"] = self._between(channels, -0.2, 0.2)
            self.state[f"{name}.running_var"] = self._between(channels, 0.5, 2.0)
        if statistics and counter:
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(1234)

    def trunk(
        self, depth: int, *, stem: tuple[str, str], layer: Callable[[int, int], str], names: Mapping[str, str],
        counter: bool = True, pixels: float = 1.0,
    ) -> None:  # fmt: skip
        """A ResNet; `pixels` is the size of its inputs."""
        self.conv(stem[0], 64, 3, 7, gain=1.4 / pixels)
        self.norm(stem[1], 64, counter=counter)
        inputs, bottleneck = 64, depth >= 50
        for stage, (outputs, count) in enumerate(zip(CHANNELS[depth], COUNTS[depth], strict=True), start=1):
            for block in range(count):
                at, width = layer(stage, block), outputs // 4 if bottleneck else outputs
                sides = [(width, inputs, 1), (width, width, 3), (outputs, width, 1)]
                sides = sides if bottleneck else [(width, inputs, 3), (width, width, 3)]
                for i, side in enumerate(sides, start=1):
                    self.conv(f"{at}.{names[f'conv{i}']}", *side)
                    last = i == len(sides)
                    self.norm(f"{at}.{names[f'bn{i}']}", side[0], counter=counter, scale=0.3 if last else 1.0)
                if block == 0 and (stage > 1 or bottleneck):
                    self.conv(f"{at}.{names['shortcut']}", outputs, inputs, 1)
                    self.norm(f"{at}.{names['shortcut_bn']}", outputs, counter=counter)
                inputs = outputs

    def _between(self, count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, generator=self.generator) * (high - low) + low


@pytest.fixture
def annotations(tmp_path) -> Callable[[int], Path]:
    """Number of classes -> an annotation file with LVIS fields; ids 3, 6, 9, … in falling order."""

    def write(num_classes: int) -> Path:
        path = tmp_path / f"annotations_{num_classes}.json"
        categories = [{"id": 3 * i, "name": f"class {i}", "frequency": "rcf"[i % 3]} for i in range(num_classes, 0, -1)]
        image = {"id": 1, "height": 64, "width": 96, "file_name": "a.png"}
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        path.write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))
        return path

    return write


@pytest.fixture(scope="session")
def picture() -> Tensor:
    """(3, 64, 96) uint8 RGB."""
    return torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def layout(name: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the official improved baseline, "r50" or "r101".

    state_dict_layout_*.csv list the keys of the models of United-Perception 52aaeb9, built from its classes.
    """
    lines = (Path(__file__).parents[2] / "fixtures" / f"state_dict_layout_{name}.csv").read_text().splitlines()[1:]
    pairs = (line.split(",")[:2] for line in lines)
    return {key: tuple(int(side) for side in re.findall(r"\d+", shape)) for key, shape in pairs}


@pytest.fixture(scope="session")
def foreign() -> SimpleNamespace:
    """What this file defines, for tests: conftest cannot be imported."""
    return SimpleNamespace(
        Reference=Reference, RandomState=RandomState, as_rows=as_rows, layout=layout, RESNET=RESNET, COUNTS=COUNTS,
        CHANNELS=CHANNELS,
    )  # fmt: skip
