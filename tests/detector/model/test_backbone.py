from urllib.error import HTTPError, URLError

import pytest
import torch
import torchvision
from torch import nn

from longshot.detector.checkpoint.trunk import load_trunk
from longshot.detector.model import backbone
from longshot.detector.model.backbone import NUM_STAGES


def resnet(name, *, weights=None, **options):
    """A trunk, with pretrained weights as `build.build_network` loads them."""
    trunk = backbone.resnet(name, **options)
    if weights:
        load_trunk(trunk, name, weights)
    return trunk


def randomize_norms(module: nn.Module) -> None:
    """Norm layers of a fresh network do nothing, and a wrong one would not show."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


@pytest.fixture
def torchvision_resnet18():
    net = torchvision.models.resnet18(weights=None).eval()
    randomize_norms(net)
    return net


@pytest.fixture
def saved_resnet18(torchvision_resnet18, tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision_resnet18.state_dict(), path)
    return str(path)


def torchvision_features(net, images):
    x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
    c3 = net.layer2(net.layer1(x))
    c4 = net.layer3(c3)
    return [c3, c4, net.layer4(c4)]


@pytest.mark.parametrize(
    ("name", "out_channels"),
    [
        ("resnet18", (128, 256, 512)),
        ("resnet34", (128, 256, 512)),
        ("resnet50", (512, 1024, 2048)),
        ("resnet101", (512, 1024, 2048)),
        ("thin", (32, 64, 128)),
    ],
)
def test_features_have_strides_8_16_32_rounded_up(name, out_channels):
    trunk = resnet(name)
    assert trunk.out_channels == out_channels
    with torch.no_grad():
        features = trunk(torch.rand(1, 3, 33, 70))
    assert [tuple(f.shape) for f in features] == [
        (1, c, *size) for c, size in zip(out_channels, [(5, 9), (3, 5), (2, 3)], strict=True)
    ]


@pytest.mark.parametrize("norm", ["frozen_bn", "frozen_stats", "bn"])
def test_torchvision_state_dict_gives_torchvision_features(torchvision_resnet18, saved_resnet18, norm):
    trunk = resnet("resnet18", weights=saved_resnet18, norm=norm).eval()
    images = torch.randn(1, 3, 40, 72)
    with torch.no_grad():
        for ours, theirs in zip(trunk(images), torchvision_features(torchvision_resnet18, images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_keys_are_those_of_torchvision_without_the_classifier():
    expected = {key for key in torchvision.models.resnet18().state_dict() if not key.startswith("fc.")}
    assert set(resnet("resnet18", norm="bn").state_dict()) == expected
    assert set(resnet("resnet18", norm="frozen_stats").state_dict()) == expected


def test_frozen_bn_learns_nothing_and_keeps_its_statistics_in_training(saved_resnet18):
    trunk = resnet("resnet18", weights=saved_resnet18, norm="frozen_bn").train()
    before = {key: value.clone() for key, value in trunk.state_dict().items() if "bn" in key or "downsample.1" in key}
    trunk(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(trunk.state_dict()[key], value) for key, value in before.items())
    assert not any("bn" in key or "downsample.1" in key for key, _ in trunk.named_parameters())


def test_frozen_stats_trains_scale_and_shift_and_keeps_its_statistics(torchvision_resnet18, saved_resnet18):
    trunk = resnet("resnet18", weights=saved_resnet18, norm="frozen_stats", frozen_stages=2).train()
    images = torch.randn(2, 3, 32, 32)
    features = trunk(images)
    for ours, theirs in zip(features, torchvision_features(torchvision_resnet18, images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # theirs are in eval mode
    sum(level.sum() for level in features).backward()
    norms = {name: p for name, p in trunk.named_parameters() if "bn" in name or "downsample.1" in name}
    assert len(norms) == 2 * 20
    assert all((p.grad is None) == name.startswith(("bn1", "layer1")) for name, p in norms.items())
    theirs = torchvision_resnet18.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in trunk.state_dict().items())


def test_frozen_stats_loads_the_weights_of_a_frozen_bn_trunk(torchvision_resnet18, saved_resnet18, tmp_path):
    frozen = resnet("resnet18", weights=saved_resnet18, norm="frozen_bn")
    torch.save(frozen.state_dict(), tmp_path / "frozen.pth")  # counts no batches
    trunk = resnet("resnet18", weights=str(tmp_path / "frozen.pth"), norm="frozen_stats")
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(trunk(images)[-1], frozen(images)[-1], rtol=1e-4, atol=1e-4)


def test_group_norm_takes_the_convolutions_and_leaves_batch_norm_out(torchvision_resnet18, saved_resnet18):
    trunk = resnet("resnet18", weights=saved_resnet18, norm="gn")
    assert torch.equal(trunk.layer3[0].downsample[0].weight, torchvision_resnet18.layer3[0].downsample[0].weight)
    norms = [module for module in trunk.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 20
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in norms)
    assert all(torch.equal(norm.bias, torch.zeros_like(norm.bias)) for norm in norms)


@pytest.mark.parametrize("norm", ["frozen_bn", "frozen_stats", "bn", "gn"])
def test_thin_trunk_loads_its_own_state_dict(tmp_path, norm):
    trunk = resnet("thin", norm=norm).eval()
    randomize_norms(trunk)
    torch.save(trunk.state_dict(), tmp_path / "thin.pth")
    again = resnet("thin", norm=norm, weights=str(tmp_path / "thin.pth")).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(images)[-1], trunk(images)[-1])


def test_sync_bn_is_built():
    assert isinstance(resnet("thin", norm="sync_bn").layer1[0].bn1, nn.SyncBatchNorm)


@pytest.mark.parametrize("frozen_stages", range(NUM_STAGES + 1))
def test_frozen_stages_are_not_trained_and_keep_their_statistics(frozen_stages):
    trunk = resnet("thin", norm="bn", frozen_stages=frozen_stages)
    stages = [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",)]
    frozen = tuple(prefix for stage in stages[:frozen_stages] for prefix in stage)
    assert all(p.requires_grad != name.startswith(frozen) for name, p in trunk.named_parameters())
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    trunk.eval().train()
    trunk(torch.randn(2, 3, 64, 64))
    for key, value in trunk.state_dict().items():
        if "running" in key:
            assert torch.equal(value, before[key]) == key.startswith(frozen), key


def test_frozen_stages_survive_train_of_an_enclosing_module():
    trunk = resnet("thin", norm="bn", frozen_stages=2)
    for _ in range(2):  # as built, then after the calls of a training loop
        assert not trunk.bn1.training
        assert not trunk.layer1[1].bn2.training
        assert trunk.layer2[0].bn1.training
        nn.Sequential(trunk).eval().train()


def test_too_many_frozen_stages_are_an_error():
    with pytest.raises(ValueError, match=r"frozen_stages is 6; expected 0 \(none\) to 5 \(all\)"):
        resnet("thin", frozen_stages=6)


@pytest.mark.parametrize(
    "error",
    [
        URLError("Name or service not known"),
        HTTPError("https://example.org", 403, "Forbidden", None, None),
        ConnectionResetError("reset by peer"),
    ],
)
def test_weight_name_without_network_says_to_pass_a_path(monkeypatch, tmp_path, error):
    def offline(*args, **kwargs):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # nothing downloaded before
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(ValueError, match=r"IMAGENET1K_V1 could not be downloaded from https.*pass its path") as info:
        resnet("resnet18", weights="IMAGENET1K_V1")
    assert info.value.__cause__ is error


def test_weight_name_loads_what_torchvision_delivers(monkeypatch, torchvision_resnet18):
    asked = {}

    def deliver(url, **kwargs):
        asked.update(kwargs, url=url)
        return torchvision_resnet18.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", deliver)
    trunk = resnet("resnet18", weights="IMAGENET1K_V1")
    assert torch.equal(trunk.conv1.weight, torchvision_resnet18.conv1.weight)
    assert asked["url"].endswith("resnet18-f37072fd.pth")
    assert asked["weights_only"] is True


def test_unknown_weights_are_an_error_that_lists_the_names():
    with pytest.raises(ValueError, match=r"resnet50 weights 'IMAGENET': no such file.*IMAGENET1K_V1, IMAGENET1K_V2"):
        resnet("resnet50", weights="IMAGENET")
    with pytest.raises(ValueError, match=r"thin weights 'IMAGENET1K_V1': no such file.*it has none"):
        resnet("thin", weights="IMAGENET1K_V1")


def test_weights_of_another_depth_are_an_error(saved_resnet18):
    with pytest.raises(ValueError, match=r"resnet18\.pth do not fit the trunk: missing layer1\.2\.conv1\.weight"):
        resnet("resnet34", weights=saved_resnet18)
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1\.weight is \(64, 64, 3, 3\), expected \(64, 64, 1, 1\)"):
        resnet("resnet50", weights=saved_resnet18)


def test_another_kind_of_state_dict_is_an_error_that_names_its_keys(tmp_path):
    torch.save({"epoch": 3, "model": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"missing conv1\.weight.*unexpected epoch, model"):
        resnet("resnet18", weights=str(tmp_path / "other.pth"))


def test_group_norm_still_wants_every_convolution(torchvision_resnet18, tmp_path):
    state_dict = torchvision_resnet18.state_dict()
    del state_dict["layer2.0.conv1.weight"]
    torch.save(state_dict, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=r"missing layer2\.0\.conv1\.weight; unexpected nothing"):
        resnet("resnet18", weights=str(tmp_path / "partial.pth"), norm="gn")


@torch.no_grad()
def test_strides_lie_in_the_first_1x1_convolution_if_asked():
    trunk, other = resnet("resnet50", norm="bn", stride_in_1x1=True).eval(), resnet("resnet50", norm="bn").eval()
    other.load_state_dict(trunk.state_dict())
    for layer in (trunk.layer2, trunk.layer3, trunk.layer4):
        strides = [convolution.stride for convolution in (layer[0].conv1, layer[0].conv2, layer[0].downsample[0])]
        assert strides == [(2, 2), (1, 1), (2, 2)]
    assert trunk.layer1[0].conv1.stride == (1, 1)
    image = torch.randn(1, 3, 64, 96)
    for here, there in zip(trunk(image), other(image), strict=True):
        assert here.shape == there.shape
        assert not torch.allclose(here, there, atol=1e-2)
    with pytest.raises(ValueError, match="stride_in_1x1 is for resnet50 and resnet101"):
        resnet("resnet18", stride_in_1x1=True)
