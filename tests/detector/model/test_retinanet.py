import copy

import pytest
import torch

from longshot.detector.model.anchors import AnchorGenerator
from longshot.detector.model.backbone import resnet
from longshot.detector.model.head import DenseHead
from longshot.detector.model.retinanet import FPN, RetinaNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def model() -> RetinaNet:
    torch.manual_seed(0)
    backbone = resnet("thin", norm="gn", frozen_stages=1)
    fpn = FPN(backbone.out_channels, channels=16, levels=4)
    anchors = AnchorGenerator(strides=fpn.strides, scales=(1.0, 1.5))
    head = DenseHead(16, num_classes=5, num_anchors=anchors.num_anchors, num_convs=1, width=16)
    return RetinaNet(backbone, fpn, head, anchors)


@pytest.mark.parametrize("padded_size", [(64, 96), (96, 64), (50, 75)])
def test_every_output_row_has_an_anchor(model, padded_size):
    outputs = model(torch.randn(2, 3, *padded_size))
    rows = [(2, len(level)) for level in model.anchors(padded_size)]
    assert [tuple(level.shape) for level in outputs.logits] == [(*r, 5) for r in rows]
    assert [tuple(level.shape) for level in outputs.deltas] == [(*r, 4) for r in rows]


def test_a_cell_of_the_map_answers_in_the_rows_of_the_anchors_centered_on_it():
    strides, (y, x) = (8, 16), (1, 2)
    anchors = AnchorGenerator(strides=strides, base_size=1.0)
    head = DenseHead(1, num_classes=5, num_anchors=9, num_convs=0)
    torch.nn.init.zeros_(head.logits.weight)
    head.logits.weight.data[:, 0, 1, 1] = 1  # the logits of a cell are its feature plus the bias
    pyramid = [torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 2, 3)]
    pyramid[0][0, 0, y, x] = 7
    rows = head(pyramid).logits[0][0, :, 0] > 0
    lit = anchors((32, 48))[0][rows]
    torch.testing.assert_close((lit[:, :2] + lit[:, 2:]) / 2, torch.tensor([[20.0, 12.0]]).expand(9, 2))


def test_all_trainable_parameters_get_a_gradient(model):
    outputs = model.train()(torch.randn(2, 3, 64, 64))
    sum(level.sum() for pair in outputs[:2] for level in pair).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert not model.backbone.conv1.weight.requires_grad


def test_preprocess_normalizes_and_pads_with_zeros_below_and_to_the_right(model):
    images = [
        torch.randint(0, 256, (3, 5, 9), dtype=torch.uint8),
        torch.randint(0, 256, (3, 8, 4), dtype=torch.uint8),
    ]
    batch = model.preprocess(images, (8, 12))
    assert batch.shape == (2, 3, 8, 12)
    assert batch.dtype == torch.float32
    for image, padded in zip(images, batch, strict=True):
        height, width = image.shape[1:]
        for channel in range(3):
            expected = (image[channel].double() / 255 - MEAN[channel]) / STD[channel]
            torch.testing.assert_close(padded[channel, :height, :width].double(), expected, rtol=1e-5, atol=1e-6)
        assert torch.count_nonzero(padded[:, height:]) == 0
        assert torch.count_nonzero(padded[:, :, width:]) == 0


def test_preprocess_is_the_same_to_the_bit_however_the_pixels_lie(model):
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    batch = model.preprocess([image, channels_last], (48, 64))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    expected = (image.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert all(torch.equal(padded[:, :40, :50], expected) for padded in batch)


def test_pixel_statistics_can_be_given(model):
    other = RetinaNet(
        model.backbone, model.fpn, model.head, model.anchor_generator, pixel_mean=(0, 0, 0), pixel_std=(0.5, 1, 2)
    )
    batch = other.preprocess([torch.full((3, 2, 2), 255, dtype=torch.uint8)], (2, 2))
    assert batch[0, :, 0, 0].tolist() == [2, 1, 0.5]


def test_a_state_dict_holds_what_is_learnt_and_nothing_else(model):
    keys = set(model.state_dict())
    assert {key.split(".")[0] for key in keys} == {"backbone", "fpn", "head"}
    assert {"backbone.layer1.0.conv1.weight", "fpn.lateral.c3.weight", "head.logits.bias"} <= keys


def test_a_copy_of_the_model_computes_the_same(model):
    model.anchors((64, 64))
    twin = copy.deepcopy(model)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(twin(images).logits[0], model(images).logits[0])
    assert torch.equal(twin.anchors((64, 64))[0], model.anchors((64, 64))[0])


def test_images_of_a_batch_do_not_influence_each_other(model):
    images = torch.randn(2, 3, 64, 64)
    together, alone = model.eval()(images), model(images[1:])
    torch.testing.assert_close(together.logits[0][1:], alone.logits[0], rtol=1e-4, atol=1e-5)
