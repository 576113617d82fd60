"""Every kind of head through whole training steps: what it learns, and what must not change that."""

import math

import pytest
import torch

from longshot.detector.build import build_postprocess
from longshot.detector.model.boxes import intersection_over_union
from longshot.detector.model.postprocess import detect

HEADS = {
    "improved baseline": {"classification", "box", "quality"},
    "gfl": {"classification", "box", "distribution"},
    "points": {"classification", "box", "quality"},
}
BOX_LOSSES = ("box", "quality", "distribution")


@pytest.fixture(params=HEADS)
def head(request):
    return request.param


def with_head(differences, **options):
    """The differences, with more options of the head."""
    model = differences["model"]
    return {**differences, "model": {**model, "head": {**model["head"], **options}}}


def gradients(run):
    return {name: p.grad for name, p in run.network.named_parameters()}


@pytest.mark.parametrize("per_pass", [4, 1])
def test_numbers_of_a_step_are_all_losses_and_every_weight_has_a_gradient(start, steps, heads, head, per_pass):
    run, batches = start(**heads[head])
    (numbers,) = steps(run, batches[:1], images_per_pass=per_pass)
    assert numbers.keys() == HEADS[head] | {"loss", "gradient_norm", "positives"}
    assert numbers["loss"] == pytest.approx(sum(numbers[name] for name in HEADS[head]))
    assert all(map(math.isfinite, numbers.values()))
    assert all(gradient.any() for gradient in gradients(run).values())


@pytest.mark.parametrize("per_pass", [4, 2])
def test_a_step_without_objects_has_no_losses_of_boxes_but_a_gradient_for_every_weight(
    start, steps, heads, head, per_pass
):
    # A weight without one would have another process wait for it: DDP looks for no unused parameters.
    run, batches = start(**heads[head])
    empty = [target._replace(boxes=target.boxes[:0], labels=target.labels[:0]) for target in batches[0].targets]
    (numbers,) = steps(run, [batches[0]._replace(targets=empty)], images_per_pass=per_pass)
    assert numbers["classification"] > 0
    assert [numbers[name] for name in BOX_LOSSES if name in numbers] == [0, 0]
    for name, gradient in gradients(run).items():
        assert gradient.isfinite().all(), name
        assert gradient.any() != name.startswith(("head.box_tower", "head.deltas", "head.quality", "head.level")), name


def test_recomputing_the_head_changes_no_bit(start, steps, heads, head):
    seen = []
    for recompute in (False, True):
        run, batches = start(**with_head(heads[head], recompute=recompute))
        seen.append((steps(run, batches[:2]), gradients(run)))
    (ours, our_gradients), (theirs, their_gradients) = seen
    assert ours == theirs
    assert our_gradients.keys() == their_gradients.keys()
    assert all(torch.equal(value, their_gradients[name]) for name, value in our_gradients.items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_has_nearly_the_same_losses(start, steps, heads, head, precision):
    exact, mixed = (
        steps(*start(**{**heads[head], "train": {"precision": name}}), precision=name)[0]
        for name in ("fp32", precision)
    )
    for name in HEADS[head]:
        assert mixed[name] == pytest.approx(exact[name], rel=0.03)
        assert mixed[name] != exact[name]


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        ("improved baseline", "equalized_focal"),
        ("gfl", "equalized_quality_focal"),
        ("points", "equalized_focal"),
    ],
)
def test_fifty_steps_on_a_batch_find_its_objects(start, steps, heads, make_config, head, loss):
    differences = {**heads[head], "loss": {**heads[head]["loss"], "classification": {"name": loss}}}
    run, (batch, *_) = start(**differences, optimizer={"name": "adamw", "lr": 0.004})
    numbers = steps(run, [batch] * 50)
    assert numbers[-1]["box"] < 0.3 * numbers[0]["box"]
    run.network.eval()
    postprocess = build_postprocess(make_config(differences=differences))
    hits = []
    for found, target in zip(
        detect(run.network, batch.images, batch.padded_size, postprocess), batch.targets, strict=True
    ):
        best = slice(len(target.boxes))  # no more than there are objects
        iou = intersection_over_union(target.boxes[:, None], found.boxes[best])
        hits += ((iou > 0.6) & (target.labels[:, None] == found.labels[best])).any(dim=1).tolist()
    assert len(hits) == 7
    assert sum(hits) >= 6
