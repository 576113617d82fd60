import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from longshot.detector.checkpoint.file import load_checkpoint
from longshot.detector.config.yaml_files import read_yaml
from longshot.detector.conversion.exporting import export_checkpoint
from longshot.detector.conversion.importing import import_checkpoint
from longshot.detector.conversion.key_table import key_table
from longshot.detector.errors import CheckpointError, ConfigError
from longshot.detector.inference import load_model


@pytest.fixture(scope="module")
def theirs() -> RetinaNet:
    """torchvision's RetinaNet on ResNet-18, for 20 category ids."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    net = RetinaNet(backbone, 20)
    torch.nn.init.normal_(net.head.classification_head.cls_logits.bias)
    return net.eval()


@pytest.fixture
def saved(theirs, tmp_path) -> Path:
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "ours.pt"


def changed(path: Path, change) -> Path:
    state: dict[str, Tensor] = load_checkpoint(path)
    change(state)
    torch.save(state, path)
    return path


def test_an_imported_checkpoint_holds_classes_and_its_configuration(saved, annotations, out, tmp_path):
    done = import_checkpoint(saved, out, annotations=annotations(4))
    assert done.written == [out, tmp_path / "ours.yaml"]
    model = load_model(out)
    assert model.classes.ids == [3, 6, 9, 12]
    assert model.classes.names == ["class 1", "class 2", "class 3", "class 4"]
    assert model.config.model.anchors.style == "torchvision"
    assert not model.config.data.antialias
    assert model.config.test.detections_per_image == 300
    assert read_yaml(tmp_path / "ours.yaml")["data"]["val"]["annotations"] == str(annotations(4))
    assert load_checkpoint(out)["source"] == "theirs.pth (torchvision)"


def test_rows_of_the_class_head_are_those_of_the_category_ids(theirs, saved, annotations, out):
    import_checkpoint(saved, out, annotations=annotations(4))
    bias = theirs.head.classification_head.cls_logits.bias.detach().view(9, 20)
    assert torch.equal(load_checkpoint(out)["model"]["head.logits.bias"].view(9, 4), bias[:, [3, 6, 9, 12]])


def test_as_many_rows_as_classes_are_taken_in_their_order(theirs, saved, annotations, out):
    import_checkpoint(saved, out, annotations=annotations(20))
    assert torch.equal(
        load_checkpoint(out)["model"]["head.logits.bias"], theirs.head.classification_head.cls_logits.bias.detach()
    )
    with pytest.raises(
        CheckpointError, match=r"theirs\.pth: the class head has rows for 20 classes; .* 9, with ids up to 27"
    ):
        import_checkpoint(saved, out, annotations=annotations(9))


def test_missing_misshaped_and_unused_keys_are_told_and_nothing_is_written(saved, annotations, out):
    def change(state: dict) -> None:
        del state["backbone.fpn.extra_blocks.p7.bias"]
        state["head.regression_head.conv.2.0.bias"] = torch.zeros(7)
        state["head.mask_head.weight"] = torch.zeros(2, 3)

    done = import_checkpoint(changed(saved, change), out, annotations=annotations(4))
    told = [tuple(row) for row in done.rows if row.status != "matched"]
    assert told == [
        ("misshaped", "head.regression_head.conv.2.0.bias", "head.box_tower.2.conv.bias", "7, expected 256"),
        ("missing", "", "fpn.p7.bias", "256"),
        ("unused", "head.mask_head.weight", "", "2x3"),
    ]
    assert done.written == []
    assert not out.exists()
    table = key_table(done.rows).splitlines()
    assert re.fullmatch(r"missing +fpn\.p7\.bias +256", next(line for line in table if line.startswith("missing")))
    assert table[-1] == f"{len(done.rows)} keys: {len(done.rows) - 3} matched, 1 missing, 1 unused, 1 misshaped"
    assert len(table) == len(done.rows) + 2


def test_unused_keys_alone_do_not_stop_an_import(saved, annotations, out):
    done = import_checkpoint(
        changed(saved, lambda state: state.update({"ema.decay": torch.tensor(0.9)})), out, annotations=annotations(4)
    )
    assert [row.theirs for row in done.rows if row.status == "unused"] == ["ema.decay"]
    assert out.exists()


def test_a_given_configuration_is_kept_and_its_differences_are_told(saved, annotations, out, tmp_path):
    config = tmp_path / "ours.yaml"  # beside the result, where nothing is written now
    config.write_text(
        "model: {backbone: {name: resnet18, norm: bn}, fpn: {p6_from: p5, p7_relu: false}, "
        "anchors: {style: torchvision, offset: 0.0}}\nseed: 7\n"
    )
    done = import_checkpoint(saved, out, annotations=annotations(4), config=config)
    assert {row.status for row in done.rows} == {"matched", "missing"}  # counters of BatchNorm
    config.write_text(config.read_text().replace("norm: bn", "norm: frozen_bn"))
    done = import_checkpoint(saved, out, annotations=annotations(4), config=config)
    assert done.written == [out]
    assert load_checkpoint(out)["config"]["seed"] == 7
    assert (
        done.notes[-1]
        == "warning: the configuration differs from what the file tells: model.fpn.p7_relu: True -> False"
    )


def test_files_of_nobody_we_know_are_an_error(annotations, out, tmp_path):
    torch.save({"yolo.weight": torch.zeros(1)}, tmp_path / "yolo.pth")
    with pytest.raises(CheckpointError, match=r"yolo\.pth: the keys are not those of a detector .* \['yolo\.weight'\]"):
        import_checkpoint(tmp_path / "yolo.pth", out, annotations=annotations(4))
    with pytest.raises(
        CheckpointError, match=r"yolo\.pth: the file has nothing for head\.logits\.bias, .* of our network"
    ):
        import_checkpoint(tmp_path / "yolo.pth", out, annotations=annotations(4), source="official")


def test_other_trunks_are_an_error(saved, annotations, out):
    def cut(state: dict) -> None:
        for key in [key for key in state if ".layer3.1." in key]:
            del state[key]

    with pytest.raises(
        CheckpointError, match=r"theirs\.pth: its trunk has \(2, 2, 1, 2\) blocks .*; expected ResNet-18"
    ):
        import_checkpoint(changed(saved, cut), out, annotations=annotations(4))


def test_nobody_elses_file_is_overwritten(saved, annotations, out, tmp_path):
    (tmp_path / "ours.yaml").write_text("seed: 3\n")
    with pytest.raises(ConfigError, match=r"ours\.yaml: exists, and the converter did not write it"):
        import_checkpoint(saved, out, annotations=annotations(4))
    (tmp_path / "ours.yaml").unlink()
    for _ in range(2):  # its own files it does write again
        import_checkpoint(saved, out, annotations=annotations(4))
    with pytest.raises(ConfigError, match=r"ours\.bin: a checkpoint is written; name it \.pt or \.pth"):
        import_checkpoint(saved, tmp_path / "ours.bin", annotations=annotations(4))


def test_a_torchvision_model_takes_what_is_exported_for_it(theirs, saved, annotations, out, tmp_path):
    import_checkpoint(saved, out, annotations=annotations(20))
    exported = export_checkpoint(out, tmp_path / "back.pth", kind="torchvision")
    assert not exported.notes
    back, state = load_checkpoint(tmp_path / "back.pth"), theirs.state_dict()
    theirs.load_state_dict(back)
    theirs.load_state_dict(state)
    # All but the weights of the norms of the trunk, whose eps has changed, are as they were.
    same = [key for key, value in state.items() if torch.equal(back[key], value)]
    assert all(re.search(r"body.*(bn\d|downsample\.1)\.weight$", key) for key in back.keys() - set(same))
    assert len(same) > 60


def test_what_the_other_project_has_no_place_for_is_not_exported(saved, annotations, out, tmp_path):
    import_checkpoint(saved, out, annotations=annotations(4))
    changed(out, lambda state: state["model"].update({"head.quality.bias": torch.zeros(9)}))
    done = export_checkpoint(out, tmp_path / "back.pth", kind="torchvision")
    assert done.written == []
    assert not (tmp_path / "back.pth").exists()
    assert [row.theirs for row in done.rows if row.status != "matched"] == ["head.quality.bias"]


def test_a_model_that_lacks_what_the_other_project_needs_is_not_exported(saved, annotations, out, tmp_path):
    import_checkpoint(saved, out, annotations=annotations(4))
    done = export_checkpoint(out, tmp_path / "back.pth", kind="official")
    assert done.written == []
    assert not (tmp_path / "back.pth").exists()
    assert [row.ours for row in done.rows if row.status == "missing"] == ["roi_head.iou_pred.*"]
    assert any("model.legacy_offset: False -> True there" in note for note in done.notes)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_plain_export_is_the_state_dict(saved, annotations, out, tmp_path, suffix):
    import_checkpoint(saved, out, annotations=annotations(4))
    path = tmp_path / f"plain{suffix}"
    assert export_checkpoint(out, path).written == [path]
    plain, state = (
        (load_file(path) if suffix == ".safetensors" else load_checkpoint(path)),
        load_checkpoint(out)["model"],
    )
    assert plain.keys() == state.keys()
    assert all(torch.equal(plain[key], value) for key, value in state.items())


def test_averaged_weights_are_exported(saved, annotations, out, tmp_path):
    import_checkpoint(saved, out, annotations=annotations(4))
    state = load_checkpoint(out)
    state["ema"] = {f"module.{key}": value + 1 for key, value in state["model"].items()} | {
        "n_averaged": torch.tensor(3)
    }
    torch.save(state, out)
    export_checkpoint(out, tmp_path / "plain.pth")
    plain = load_checkpoint(tmp_path / "plain.pth")
    assert torch.equal(plain["head.deltas.bias"], state["model"]["head.deltas.bias"] + 1)


def test_what_is_no_checkpoint_of_ours_is_not_exported(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"theirs\.pth: no checkpoint of ours; it lacks config, criterion, model"):
        export_checkpoint(saved, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=r"a\.onnx: expected a name that ends in \.safetensors, \.pth or \.pt"):
        export_checkpoint(saved, tmp_path / "a.onnx")
