from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longshot.detector.build import build_network
from longshot.detector.checkpoint.file import load_checkpoint
from longshot.detector.config.schema import load_config, parse_config
from longshot.detector.conversion import united_perception as official
from longshot.detector.conversion.exporting import export_checkpoint
from longshot.detector.conversion.foreign_files import ForeignFile
from longshot.detector.conversion.importing import import_checkpoint
from longshot.detector.conversion.key_table import compare
from longshot.detector.conversion.keys import model_differences
from longshot.detector.errors import CheckpointError
from longshot.detector.inference import load_model
from longshot.losses import EqualizedFocalLoss

K, A, WIDTH = 5, 2, 32
LOSS = "post_process.cls_loss."
CONFIGS = Path(__file__).parents[3] / "configs" / "lvis"


@pytest.fixture(scope="module")
def improved_baseline(foreign) -> dict[str, Tensor]:
    """The official layout on ResNet-18, for five classes, its pyramid and head 32 wide; random weights."""
    made = foreign.RandomState()
    stem, layer = ("backbone.layer0.0", "backbone.layer0.1"), "backbone.layer{}.{}".format
    made.trunk(18, stem=stem, layer=lambda stage, block: layer(stage, block), names=foreign.RESNET)
    for i, channels in zip((3, 4, 5), foreign.CHANNELS[18][1:], strict=True):
        made.conv(f"neck.c{i}_lateral", WIDTH, channels, 1, bias=True)
    for i in (3, 4, 5, 6, 7):
        made.conv(f"neck.p{i}_conv", WIDTH, WIDTH, 3, bias=True)
    for tower in ("cls", "box"):
        for i in range(4):
            made.conv(f"roi_head.{tower}_subnet.{3 * i}", WIDTH, WIDTH, 3)
            made.norm(f"roi_head.{tower}_subnet.{3 * i + 1}", WIDTH, statistics=False)
    for name, channels in (("cls_subnet_pred", A * K), ("box_subnet_pred", A * 4), ("iou_pred", A)):
        made.conv(f"roi_head.{name}", channels, WIDTH, 3, bias=True)
    positive, negative = torch.tensor([1.0, 2, 3, 0, 5]), torch.tensor([4.0, 2, 1, 7, 0])
    made.state[f"{LOSS}pos_grad"], made.state[f"{LOSS}neg_grad"] = positive, negative
    made.state[f"{LOSS}pos_neg"] = torch.tensor([0.25, 1, 1, 0, 1])
    return made.state


@pytest.fixture
def saved(improved_baseline, tmp_path) -> Path:
    """The file as their training writes it."""
    path = tmp_path / "ckpt_e24.pth"
    state = {f"module.{key}": value for key, value in improved_baseline.items()}
    torch.save({"model": state, "epoch": 24, "iter": 150000, "optimizer": {}, "metric_val": -1}, path)
    return path


@pytest.mark.parametrize(("name", "count"), [("r50", 367), ("r101", 673)])
def test_every_key_of_the_published_checkpoints_has_its_place(foreign, name, count):
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in foreign.layout(name).items()}
    assert len(tensors) == count
    converted = official.to_ours(ForeignFile(tensors, {}), range(1, 1204))
    with torch.device("meta"):
        network = build_network(parse_config(converted.settings).model, 1203, pretrained=False)
    rows = compare(converted.weights, converted.names, network.state_dict(), converted.unused)
    others = {row.theirs: row.status for row in rows if row.status != "matched"}
    assert others == {f"{LOSS}{name}": "unused" for name in ("pos_grad", "neg_grad", "pos_neg")}
    assert converted.loss_names.keys() == others.keys()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_comes_back_bit_for_bit(improved_baseline, saved, annotations, tmp_path, suffix):
    done = import_checkpoint(saved, tmp_path / "ours.pt", annotations=annotations(K), with_loss_state=True)
    assert done.source == "official"
    assert {row.status for row in done.rows} == {"matched"}
    assert len(done.rows) == len(improved_baseline)
    back = tmp_path / f"back{suffix}"
    exported = export_checkpoint(tmp_path / "ours.pt", back, kind="official")
    assert not exported.notes
    again = load_file(back) if suffix == ".safetensors" else load_checkpoint(back)["model"]
    assert again.keys() == improved_baseline.keys()
    for key, value in improved_baseline.items():
        assert again[key].dtype == value.dtype
        assert torch.equal(again[key], value), key


def test_a_checkpoint_of_the_published_size_comes_back_bit_for_bit(foreign, annotations, tmp_path):
    generator = torch.Generator().manual_seed(3)
    state = {key: torch.rand(shape, generator=generator) for key, shape in foreign.layout("r50").items()}
    state = {key: value.long() if key.endswith("num_batches_tracked") else value for key, value in state.items()}
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "efl_r50.pth")
    done = import_checkpoint(
        tmp_path / "efl_r50.pth", tmp_path / "ours.pt", annotations=annotations(1203), with_loss_state=True
    )
    assert [row.status for row in done.rows] == ["matched"] * 367
    assert len(load_model(tmp_path / "ours.pt").classes.ids) == 1203  # which loads strictly
    notes = export_checkpoint(tmp_path / "ours.pt", tmp_path / "back.pth", kind="official").notes
    again = load_checkpoint(tmp_path / "back.pth")["model"]
    assert again.keys() == state.keys()
    different = {key for key, value in state.items() if not torch.equal(again[key], value)}
    assert different <= {f"{LOSS}pos_neg"}, "a random ratio is not that of its gradients"
    assert not notes


@torch.no_grad()
def test_our_network_computes_what_theirs_does(improved_baseline, saved, annotations, tmp_path, foreign, picture):
    import_checkpoint(saved, tmp_path / "ours.pt", annotations=annotations(K))
    model = load_model(tmp_path / "ours.pt")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (picture / 255 - mean[:, None, None]) / std[:, None, None]
    net = foreign.Reference(improved_baseline)
    features = net.trunk(
        pixels[None], stem=("backbone.layer0.0", "backbone.layer0.1"), names=foreign.RESNET, counts=(2, 2, 2, 2),
        layer=lambda stage, block: f"backbone.layer{stage}.{block}",
    )  # fmt: skip
    levels, merged5 = net.pyramid(features, lateral=lambda i: f"neck.c{i}_lateral", output=lambda i: f"neck.p{i}_conv")
    levels.append(net.conv("neck.p6_conv", merged5, stride=2))
    levels.append(net.conv("neck.p7_conv", levels[-1], stride=2))
    ours = model.network(model.network.preprocess([picture], (64, 96)))
    groups = model.network.head.class_tower[0].norm.num_groups
    for i, level in enumerate(levels):
        towers = {}
        for tower in ("cls", "box"):
            x = level
            for j in range(4):
                x = net.conv(f"roi_head.{tower}_subnet.{3 * j}", x)
                x = net.group_norm(f"roi_head.{tower}_subnet.{3 * j + 1}", x, groups=groups).relu()
            towers[tower] = x
        logits = foreign.as_rows(net.conv("roi_head.cls_subnet_pred", towers["cls"]), K)
        assert logits.std() > 0.3
        torch.testing.assert_close(ours.logits[i][0], logits, rtol=0, atol=1e-4)
        deltas = foreign.as_rows(net.conv("roi_head.box_subnet_pred", towers["box"]), 4)
        torch.testing.assert_close(ours.deltas[i][0], deltas, rtol=0, atol=1e-4)
        quality = foreign.as_rows(net.conv("roi_head.iou_pred", towers["box"]), 1)[:, 0]
        torch.testing.assert_close(ours.quality[i][0], quality, rtol=0, atol=1e-4)


def test_the_model_is_that_of_the_published_configuration():
    # Spec of the improved baseline: anchors of 6 and 8 strides, inclusive boxes, padding to 64, top 6000, 300 detections.
    for trunk in ("r50", "r101"):
        recipe = load_config(CONFIGS / f"baseline_{trunk}_efl_2x.yaml")
        names = {"backbone": {"name": {"r50": "resnet50", "r101": "resnet101"}[trunk]}, "head": {"norm": "gn"}}
        model = parse_config({"model": official.merge(names, official.SETTINGS["model"])}).model
        ours, theirs = model.model_dump(mode="json"), recipe.model.model_dump(mode="json")
        assert model_differences(ours, theirs) == []
        for section in ("data", "test", "eval"):
            for key, value in official.SETTINGS[section].items():
                assert getattr(getattr(recipe, section), key) == value


def test_a_class_outermost_head_is_found_out_and_straightened(improved_baseline):
    # Logit of anchor a and class k at channel k * A + a; the biases of a class are alike for its anchors.
    generator = torch.Generator().manual_seed(2)
    of_class = torch.randn(40, generator=generator)
    expected = torch.stack([of_class, of_class + 0.1 * torch.randn(40, generator=generator)])  # (A, K)
    weight = torch.randn(A, 40, WIDTH, 3, 3, generator=generator)
    for transposed in (False, True):
        state = dict(improved_baseline)
        bias, kernel = (expected.T, weight.transpose(0, 1)) if transposed else (expected, weight)
        state["roi_head.cls_subnet_pred.bias"] = bias.flatten()
        state["roi_head.cls_subnet_pred.weight"] = kernel.flatten(0, 1)
        converted = official.to_ours(ForeignFile(state, {}), range(40))
        assert torch.equal(converted.weights["head.logits.bias"], expected.flatten())
        assert torch.equal(converted.weights["head.logits.weight"], weight.flatten(0, 1))
        assert converted.notes[0].startswith(
            f"class head: {'class' if transposed else 'anchor'}-outermost (correlation"
        )
        assert ("re-ordered" in converted.notes[0]) == transposed


def test_biases_that_tell_nothing_are_left_in_order_with_a_warning(improved_baseline):
    untrained = torch.full((A * K,), -6.9)
    unlike = torch.randn(A * K, generator=torch.Generator().manual_seed(0))
    for bias in (untrained, unlike):
        state = improved_baseline | {"roi_head.cls_subnet_pred.bias": bias}
        converted = official.to_ours(ForeignFile(state, {}), range(K))
        assert converted.notes[0].startswith("warning: class head: the biases do not tell its layout")
        assert torch.equal(converted.weights["head.logits.bias"], bias)


def test_the_state_of_the_loss_is_kept_when_asked_for(saved, annotations, tmp_path):
    for wanted in (False, True):
        done = import_checkpoint(saved, tmp_path / "ours.pt", annotations=annotations(K), with_loss_state=wanted)
        rows = {row.theirs: row for row in done.rows if row.theirs.startswith(LOSS)}
        assert {row.status for row in rows.values()} == {"matched" if wanted else "unused"}
        assert any("--with-loss-state" in note for note in done.notes) != wanted
        criterion = load_checkpoint(tmp_path / "ours.pt")["criterion"]
        assert len(criterion) == (2 if wanted else 0)
    loss = EqualizedFocalLoss(K)
    loss.load_state_dict({key.removeprefix("classification."): value for key, value in criterion.items()})
    torch.testing.assert_close(loss.gradient_ratio, torch.tensor([0.25, 1, 1, 0, 1], dtype=torch.float64))


def test_a_ratio_that_is_not_that_of_its_gradients_is_told(improved_baseline):
    state = improved_baseline | {f"{LOSS}pos_neg": torch.full((K,), 0.5)}
    notes = official.to_ours(ForeignFile(state, {}), range(K)).notes
    assert any("pos_neg is not the ratio" in note for note in notes)
    assert len(official.to_ours(ForeignFile(improved_baseline, {}), range(K)).notes) == 1


def test_a_model_before_its_first_update_has_ratios_of_one(improved_baseline):
    zeros = {f"{LOSS}{name}": torch.zeros(K) for name in ("pos_grad", "neg_grad")}
    state = improved_baseline | zeros | {f"{LOSS}pos_neg": torch.ones(K)}
    converted = official.to_ours(ForeignFile(state, {}), range(K))
    assert len(converted.notes) == 1
    assert torch.equal(official.official_loss_state(converted.loss_state)[f"{LOSS}pos_neg"], torch.ones(K))


def test_other_classes_are_an_error(saved, annotations, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"ckpt_e24\.pth: the class head has 5 classes, the annotations have 4; are"
    ):
        import_checkpoint(saved, tmp_path / "ours.pt", annotations=annotations(4))


def test_a_focal_loss_baseline_has_no_loss_state(improved_baseline):
    state = {key: value for key, value in improved_baseline.items() if not key.startswith(LOSS)}
    converted = official.to_ours(ForeignFile(state | {"ema.decay": torch.ones(1)}, {}), range(K))
    assert converted.loss_state == {}
    assert "loss" not in converted.settings
