import json

import pytest
import torch
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

SMALL = ("data.test_short_side=64", "data.long_side=96", "data.workers=0", "eval.batch_size=1")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The file of a RetinaNet of torchvision on ResNet-18, for the 91 category ids of COCO."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    path = tmp_path_factory.mktemp("torchvision") / "theirs.pth"
    torch.save(RetinaNet(backbone, 91).state_dict(), path)
    return path


def test_an_imported_detector_is_evaluated_trained_on_and_exported(theirs, call, shapes, tmp_path):
    done = call("convert", "import", theirs, "ours.pt", "--annotations", shapes.val, cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == f"{theirs}: taken for torchvision"
    assert any(line.startswith("matched  head.regression_head.bbox_reg.bias") for line in lines)
    assert any(line.endswith(" matched, 0 missing, 0 unused, 0 misshaped") for line in lines)
    assert lines[-1] == "written: ours.pt, ours.yaml"

    images = f"data.val.images={shapes.folder}"
    arguments = ("--config", "ours.yaml", "--checkpoint", "ours.pt", "--out", "result.json")
    done = call("eval", *arguments, images, "test.score_threshold=0", *SMALL, cwd=tmp_path)
    assert done.code == 0, done.err
    assert set(json.loads((tmp_path / "result.json").read_text())) >= {"AP", "APr", "APc", "APf"}

    train = (f"data.train.annotations={shapes.train}", f"data.train.images={shapes.folder}", "data.short_sides=[64]")
    schedule = (
        "schedule.unit=steps",
        "schedule.length=1",
        "schedule.milestones=[]",
        "train.batch_size=2",
        "output=run",
    )
    start = ("init_from=ours.pt", "eval.pictures=0", *schedule, *train)
    done = call("train", "--config", "ours.yaml", images, *SMALL, *start, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "init_from ours.pt: weights converted from theirs.pth (torchvision)\n" in done.out
    done = call(
        "train", "--config", "ours.yaml", "--resume", "ours.pt", images, *SMALL, *start, "output=b", cwd=tmp_path
    )
    assert done.code == 1
    assert "not a checkpoint of a training run. To start from a detector's weights, set init_from" in done.err

    trained = tmp_path / "run" / "checkpoints" / "step_00000001.pt"
    done = call("convert", "export", "--checkpoint", trained, "--out", "a.safetensors", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.endswith("written: a.safetensors\n")


def test_an_incomplete_file_ends_with_an_error(theirs, call, shapes, tmp_path, is_error):
    state = torch.load(theirs, weights_only=True)
    del state["backbone.fpn.extra_blocks.p7.bias"]
    torch.save(state, tmp_path / "cut.pth")
    arguments = ("cut.pth", "ours.pt", "--annotations", shapes.val)
    done = call("convert", "import", *arguments, cwd=tmp_path)
    assert is_error(done, "nothing is written")
    assert "1 missing, 0 unused, 0 misshaped" in done.out
    assert not (tmp_path / "ours.pt").exists()
    assert is_error(
        call("convert", "import", *arguments, "--from", "detectron2", cwd=tmp_path), "cut.pth", "has nothing for"
    )
    assert is_error(
        call("convert", "export", "--checkpoint", "cut.pth", "--out", "a.pth", cwd=tmp_path), "no checkpoint of ours"
    )


def test_a_source_that_is_none_is_a_usage_error(call, tmp_path):
    done = call("convert", "import", "a.pth", "b.pt", "--annotations", "c.json", "--from", "darknet", cwd=tmp_path)
    assert done.code == 2
    assert "official" in done.err
    assert "detectron2" in done.err
