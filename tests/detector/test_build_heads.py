"""Heads, box codings and their losses from the configuration."""

import pytest
import torch

from longshot.datasets.classes import Classes
from longshot.detector.build import build_coding, build_criterion, build_network, build_run
from longshot.detector.errors import ConfigError
from longshot.detector.model.backbone import resnet
from longshot.detector.model.boxes import DeltaCoding, DistanceCoding, DistributionCoding
from longshot.losses import GIoULoss

CLASSES = Classes([3, 7, 12, 90], list("abcd"), list("ffcr"), [9, 9, 5, 1])
SQUARE = {"base_size": 4.0, "ratios": [1.0], "scales": [2.0]}


@pytest.fixture
def criterion_of(make_config):
    """(head, loss, anchors) -> the criterion of the configuration with these differences."""

    def build(head=None, loss=None, anchors=SQUARE):
        config = make_config(differences={"model": {"head": head or {}, "anchors": anchors}, "loss": loss or {}})
        return build_criterion(config, CLASSES.train_images, 24)

    return build


def test_each_box_coding_is_built_from_its_name(make_config):
    def coding(**head):
        return build_coding(make_config(differences={"model": {"head": head, "anchors": SQUARE}}).model)

    assert type(coding()) is DeltaCoding
    distances, distribution = coding(box="distances"), coding(box="distribution", bins=9)
    assert (type(distances), distances.anchor_size) == (DistanceCoding, 8.0)
    assert (type(distribution), distribution.anchor_size, distribution.bins) == (DistributionCoding, 8.0, 9)
    assert coding(box="distribution").bins == 17


@pytest.mark.parametrize("box", ["distances", "distribution"])
@pytest.mark.parametrize("anchors", [{"scales": [1.0, 2.0]}, {"ratios": [1.0, 2.0]}, {"ratios": [2.0]}])
def test_distances_need_one_square_anchor_per_location(make_config, box, anchors):
    model = make_config(differences={"model": {"head": {"box": box}, "anchors": {**SQUARE, **anchors}}}).model
    message = (
        rf"^model.head.box {box} needs one square anchor per location, found scales \[.*\] and ratios \[.*\]; "
        r"for instance base_size: 8, scales: \[1\], ratios: \[1\]"
    )
    for build in (build_coding, lambda model: build_network(model, 4)):
        with pytest.raises(ConfigError, match=message):
            build(model)


def test_deltas_take_any_anchors(make_config):
    anchors = {**SQUARE, "scales": [1.0, 2.0], "ratios": [0.5, 1.0]}
    assert type(build_coding(make_config(differences={"model": {"anchors": anchors}}).model)) is DeltaCoding


def test_the_head_has_the_outputs_that_the_configuration_asks_for(make_config):
    def head(**options):
        return build_network(make_config(differences={"model": {"head": options, "anchors": SQUARE}}).model, 4).head

    plain = head()
    assert (plain.box_depth, plain.quality, plain.level_scales) == (4, None, None)
    for quality in ("iou", "centerness"):
        assert head(quality=quality).quality.out_channels == 1
    assert head(box="distribution", bins=9).deltas.out_channels == 4 * 9
    assert head(box="distances").deltas.out_channels == 4
    assert head(level_scales=True).level_scales.tolist() == [1.0] * 3  # P3 … P5


def test_options_of_the_pyramid_reach_it(make_config):
    options = {"levels": 5, "p6_from": "c5_lateral", "p7_relu": False}
    fpn = build_network(make_config(differences={"model": {"fpn": options}}).model, 4).fpn
    assert (len(fpn.strides), fpn.p6_from, fpn.p7_relu, fpn.p6.in_channels) == (5, "c5_lateral", False, 16)


def test_options_of_the_losses_of_boxes_reach_the_criterion(criterion_of):
    plain = criterion_of()
    assert (type(plain.coding), plain.quality, plain.box_weighting) == (DeltaCoding, "none", "none")
    loss = {"box_weighting": "quality", "quality_weight": 0.5, "distribution_weight": 0.75}
    head = {"box": "distribution", "bins": 9, "quality": "centerness"}
    full = criterion_of(head, {**loss, "box": {"name": "giou", "weight": 3.0}})
    assert (type(full.coding), full.coding.bins, full.coding.anchor_size) == (DistributionCoding, 9, 8.0)
    assert (full.quality, full.box_weighting) == ("centerness", "quality")
    assert (full.quality_weight, full.distribution_weight) == (0.5, 0.75)
    assert (type(full.box), full.box.weight) == (GIoULoss, 3.0)
    assert criterion_of(loss={"box_weighting": "score"}).box_weighting == "score"


def test_losses_that_do_not_suit_the_head_are_refused(criterion_of):
    with pytest.raises(
        ConfigError, match=r"^loss: SmoothL1Loss compares deltas of anchors, but the head does not predict"
    ):
        criterion_of({"box": "distances"}, {"box": {"name": "smooth_l1"}})
    with pytest.raises(ConfigError, match=r"^loss: box_weighting is quality, but the head predicts no quality"):
        criterion_of(loss={"box_weighting": "quality"})


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        ("head", {"box": "distance"}, "model.head.box.*'distances'"),
        ("head", {"quality": "center-ness"}, "model.head.quality.*'centerness'"),
        ("head", {"bins": 1}, "model.head.bins"),
        ("fpn", {"p6_from": "c5_laterals"}, "model.fpn.p6_from.*'c5_lateral'"),
        ("backbone", {"norm": "frozen_stat"}, "model.backbone.norm.*'frozen_stats'"),
    ],
)
def test_unknown_choices_are_told_with_their_place(make_config, section, options, message):
    with pytest.raises(ConfigError, match=message):
        make_config(differences={"model": {section: options}})


def test_frozen_statistics_need_those_of_pretrained_weights(make_config, cpu, tmp_path):
    def run(**differences):
        return build_run(make_config(differences=differences), CLASSES, cpu, num_images=24)

    frozen = {"norm": "frozen_stats"}
    with pytest.raises(
        ConfigError, match="norm frozen_stats keeps the statistics of pretrained weights, and there are none"
    ):
        run(model={"backbone": frozen})
    run(model={"backbone": frozen}, init_from="detector.pt")
    torch.save(resnet("thin", norm="bn").state_dict(), tmp_path / "trunk.pt")
    network = run(model={"backbone": {**frozen, "weights": str(tmp_path / "trunk.pt")}}).network.train()
    norm = network.backbone.layer1[0].bn1
    assert not norm.training
    assert norm.weight.requires_grad
