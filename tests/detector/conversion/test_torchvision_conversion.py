import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from longshot.detector.conversion.torchvision import convert_torchvision_retinanet, recognizes
from longshot.detector.model.anchors import AnchorGenerator
from longshot.detector.model.backbone import resnet
from longshot.detector.model.head import DenseHead, HeadOutputs
from longshot.detector.model.postprocess import Detections, Postprocess
from longshot.detector.model.retinanet import FPN, RetinaNet

PORTRAIT, LANDSCAPE = (150, 100), (90, 170)
SCALE = {"min_size": 96, "max_size": 160}
POSTPROCESS = Postprocess(score_threshold=0.05, candidates_per_level=1000, nms_threshold=0.5, detections_per_image=300)


def randomize(net: nn.Module, *, last_norm: str = "bn3") -> None:
    """Make every norm and bias matter, and the scores and deltas spread, so that a misplaced tensor shows."""
    generator = torch.Generator().manual_seed(0)

    def fill(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
                # Small in the last norm of a residual block: the sums of 16 blocks must stay in range.
                last = name.endswith(last_norm)
                fill(module.weight, 0.1 if last else 0.5, 0.3 if last else 1.5)
                fill(module.bias, -0.2, 0.2)
                fill(module.running_mean, -0.2, 0.2)
                fill(module.running_var, 0.2, 2.0)
            elif isinstance(module, nn.GroupNorm):
                fill(module.weight, 0.5, 1.5)
                fill(module.bias, -0.2, 0.2)
            elif isinstance(module, nn.Conv2d) and name.startswith(("head", "backbone.fpn")):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    fill(module.bias, -0.2, 0.2)
        net.head.classification_head.cls_logits.weight.mul_(0.7)
        net.head.classification_head.cls_logits.bias.sub_(4)
        net.head.regression_head.bbox_reg.weight.mul_(0.3)


def our_model(*, name="resnet50", num_classes=91, norm="frozen_bn", p6_from, head_norm) -> RetinaNet:
    backbone = resnet(name, norm=norm)
    fpn = FPN(backbone.out_channels, p6_from=p6_from)
    anchors = AnchorGenerator(strides=fpn.strides, offset=0, style="torchvision")
    head = DenseHead(256, num_classes=num_classes, num_anchors=9, norm=head_norm)
    return RetinaNet(backbone, fpn, head, anchors).eval()


def their_frozen_resnet18() -> TorchvisionRetinaNet:
    """As torchvision makes retinanet_resnet50_fpn for COCO_V1: frozen norms with eps 0."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    net = TorchvisionRetinaNet(backbone, 91, **SCALE)
    randomize(net, last_norm="bn2")
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            # Variances around eps, at unchanged scale: they are the channels that tell eps 0 from eps 1e-5.
            factor = torch.rand(module.running_var.shape) * 1e-5
            module.running_var.mul_(factor)
            module.weight.mul_(factor.sqrt())
    overwrite_eps(net, 0.0)
    return net.eval()


def old_layout(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys of a file of a model without norms in its head, written by torchvision before 0.14."""
    old = {}
    for key, value in state_dict.items():
        key = re.sub(r"((?:inner|layer)_blocks\.\d)\.0\.", r"\1.", key)
        key = re.sub(r"_head\.conv\.(\d)\.0\.", lambda match: f"_head.conv.{2 * int(match[1])}.", key)
        old[key] = value
    return old


@pytest.fixture(scope="module", params=["v1", "v2"])
def pair(request) -> tuple[TorchvisionRetinaNet, RetinaNet]:
    torch.manual_seed(0)
    build = {"v1": retinanet_resnet50_fpn, "v2": retinanet_resnet50_fpn_v2}[request.param]
    theirs = build(weights=None, weights_backbone=None, **SCALE).eval()
    randomize(theirs)
    options = {"v1": {"p6_from": "p5", "head_norm": "none"}, "v2": {"p6_from": "c5", "head_norm": "gn"}}
    ours = our_model(**options[request.param])
    ours.load_state_dict(convert_torchvision_retinanet(theirs.state_dict()))
    return theirs, ours


def their_outputs(net: TorchvisionRetinaNet, batch: Tensor) -> dict[str, Tensor]:
    return net.head(list(net.backbone(batch).values()))


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def by_label(boxes: Tensor, scores: Tensor, labels: Tensor) -> Detections:
    """Detections sorted by label, then score: scores that differ by rounding may change places in a list by score."""
    order = labels.sort(stable=True).indices
    return Detections(boxes[order], scores[order], labels[order])


def by_box(boxes: Tensor, scores: Tensor, labels: Tensor) -> Detections:
    """Detections sorted by label, then left, top, right and bottom side."""
    order = np.lexsort((*boxes.T.flip(0).numpy(), labels.numpy()))
    return Detections(boxes[order], scores[order], labels[order])


def assert_same_outputs(theirs: TorchvisionRetinaNet, ours: RetinaNet, batch: Tensor) -> None:
    expected, outputs = their_outputs(theirs, batch), ours(batch)
    assert expected["cls_logits"].std() > 0.5
    assert expected["bbox_regression"].std() > 0.1
    torch.testing.assert_close(torch.cat(outputs.logits, dim=1), expected["cls_logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cat(outputs.deltas, dim=1), expected["bbox_regression"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("sizes", [[PORTRAIT], [LANDSCAPE], [PORTRAIT, LANDSCAPE]], ids=str)
@torch.no_grad()
def test_outputs_and_detections_are_those_of_torchvision(pair, sizes):
    theirs, ours = pair
    batch = theirs.transform(images(*sizes))[0]
    assert_same_outputs(theirs, ours, batch.tensors)
    found = POSTPROCESS(ours(batch.tensors), ours.anchors(tuple(batch.tensors.shape[-2:])), batch.image_sizes)
    expected = theirs(images(*sizes))
    for detections, theirs_found, resized, size in zip(found, expected, batch.image_sizes, sizes, strict=True):
        ours_found = by_label(*POSTPROCESS.rescale(detections, resized, size))
        theirs_found = by_label(theirs_found["boxes"], theirs_found["scores"], theirs_found["labels"])
        assert len(theirs_found.scores) > 50
        assert theirs_found.labels.unique().numel() > 5
        assert torch.equal(ours_found.labels, theirs_found.labels)
        torch.testing.assert_close(ours_found.scores, theirs_found.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours_found.boxes, theirs_found.boxes, rtol=0, atol=1e-2)


@torch.no_grad()
def test_same_raw_outputs_give_identical_detections(pair):
    theirs, ours = pair
    batch = theirs.transform(images(PORTRAIT, LANDSCAPE))[0]
    size = tuple(batch.tensors.shape[-2:])
    outputs, anchors = ours(batch.tensors), ours.anchors(size)
    expected = theirs.postprocess_detections(
        {"cls_logits": outputs.logits, "bbox_regression": outputs.deltas}, [anchors] * 2, batch.image_sizes
    )
    for detections, found in zip(POSTPROCESS(outputs, anchors, batch.image_sizes), expected, strict=True):
        ours_found = by_box(*detections)
        theirs_found = by_box(found["boxes"], found["scores"], found["labels"])
        assert torch.equal(ours_found.boxes, theirs_found.boxes)
        # An ulp: PyTorch computes the last few elements of a sigmoid by other instructions. Two such scores may change
        # places in a list by score.
        torch.testing.assert_close(ours_found.scores, theirs_found.scores, rtol=2e-7, atol=0)
        assert torch.equal(ours_found.labels, theirs_found.labels)


@torch.no_grad()
def test_preprocess_equals_torchvision_where_it_does_not_resize(pair):
    theirs, ours = pair
    pixels = torch.randint(0, 256, (3, 96, 150), dtype=torch.uint8)
    expected = theirs.transform([pixels.float() / 255])[0].tensors
    torch.testing.assert_close(ours.preprocess([pixels], tuple(expected.shape[-2:])), expected)


@pytest.mark.parametrize("layout", ["new", "old"])
@torch.no_grad()
def test_frozen_norms_with_eps_0_are_folded_in(layout):
    torch.manual_seed(0)
    theirs = their_frozen_resnet18()
    state_dict = theirs.state_dict()
    if layout == "old":
        state_dict = old_layout(state_dict)
        assert "head.classification_head.conv.6.weight" in state_dict
    ours = our_model(name="resnet18", p6_from="p5", head_norm="none")
    ours.load_state_dict(convert_torchvision_retinanet(state_dict))
    assert_same_outputs(theirs, ours, theirs.transform(images(LANDSCAPE))[0].tensors)


@torch.no_grad()
def test_norm_eps_can_be_stated():
    torch.manual_seed(0)
    theirs = their_frozen_resnet18()
    overwrite_eps(theirs, 1e-5)
    ours = our_model(name="resnet18", p6_from="p5", head_norm="none")
    ours.load_state_dict(convert_torchvision_retinanet(theirs.state_dict(), norm_eps=1e-5))
    assert_same_outputs(theirs, ours, theirs.transform(images(LANDSCAPE))[0].tensors)


@torch.no_grad()
def test_trainable_batch_norm_takes_the_weights_too(pair):
    theirs, frozen = pair
    p6_from, head_norm = frozen.fpn.p6_from, "gn" if hasattr(frozen.head.class_tower[0], "norm") else "none"
    ours = our_model(norm="bn", p6_from=p6_from, head_norm=head_norm)
    ours.load_state_dict(convert_torchvision_retinanet(theirs.state_dict()))
    assert_same_outputs(theirs, ours, theirs.transform(images(PORTRAIT))[0].tensors)


@torch.no_grad()
def test_category_ids_pick_rows_of_the_class_head_in_their_order(pair):
    theirs, ours = pair
    category_ids = [1, 90, 13, 44]
    batch = theirs.transform(images(LANDSCAPE))[0].tensors
    converted = convert_torchvision_retinanet(theirs.state_dict(), category_ids=category_ids)
    head = DenseHead(
        256, num_classes=4, num_anchors=9, norm="gn" if hasattr(ours.head.class_tower[0], "norm") else "none"
    )
    head.load_state_dict({key.removeprefix("head."): v for key, v in converted.items() if key.startswith("head.")})
    outputs: HeadOutputs = head(ours.fpn(ours.backbone(batch)))
    expected = their_outputs(theirs, batch)["cls_logits"][..., category_ids]
    torch.testing.assert_close(torch.cat(outputs.logits, dim=1), expected, rtol=0, atol=1e-4)


def test_an_unknown_category_id_is_an_error(pair):
    with pytest.raises(ValueError, match=r"category ids \[91, 1203\] have no row.*0 to 90"):
        convert_torchvision_retinanet(pair[0].state_dict(), category_ids=[1, 91, 1203])


def test_other_state_dicts_are_an_error(pair):
    theirs, ours = pair
    assert recognizes(theirs.state_dict())
    assert not recognizes(ours.state_dict())
    with pytest.raises(
        ValueError, match=r"not a state dict of torchvision's RetinaNet; its first keys are \['backbone\.conv1"
    ):
        convert_torchvision_retinanet(ours.state_dict())
    with pytest.raises(ValueError, match=r"'backbone\.fpn\.extra_blocks\.p8\.weight' is not a key"):
        convert_torchvision_retinanet({**theirs.state_dict(), "backbone.fpn.extra_blocks.p8.weight": torch.zeros(1)})
