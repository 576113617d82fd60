"""Options of the losses: their defaults, and that functions refuse what modules refuse."""

import inspect

import pytest
import torch

from longshot.losses import (
    CLASSIFICATION_LOSSES,
    BinaryFocalLoss,
    InverseFocalLoss,
    SoftmaxFocalLoss,
    binary_focal_loss,
    class_weighted_focal_loss,
    equalization_loss,
    equalization_loss_v2,
    equalized_focal_loss,
    equalized_quality_focal_loss,
    inverse_focal_loss,
    quality_focal_loss,
    seesaw_loss,
    sigmoid_cross_entropy_loss,
    sigmoid_focal_loss,
    softmax_focal_loss,
)

FOCAL = {"alpha": 0.25, "gamma": 2.0, "weight": 1.0}
# Of the papers and their authors' code; cross entropy: RetinaNet's best alpha, see table 1a of arXiv:1708.02002.
DEFAULTS = {
    "cross_entropy": {"alpha": 0.75, "weight": 1.0},
    "focal": FOCAL,
    "equalized_focal": {**FOCAL, "scale": 8.0, "use_focusing": True, "use_weighting": True},
    "quality_focal": {"gamma": 2.0, "weight": 1.0},
    "equalized_quality_focal": {"gamma": 2.0, "scale": 4.0, "weight": 1.0},
    "equalization": {**FOCAL, "threshold": 1.1e-3},
    "equalization_v2": {**FOCAL, "slope": 12.0, "threshold": 0.8, "boost": 4.0},
    "class_weighted_focal": {**FOCAL, "weighting": "effective_number", "beta": 0.999},
    "seesaw": {**FOCAL, "mitigation": 0.8, "compensation": 2.0},
}


@pytest.mark.parametrize("name", CLASSIFICATION_LOSSES)
def test_defaults_are_those_of_the_papers(name):
    parameters = inspect.signature(CLASSIFICATION_LOSSES[name]).parameters.values()
    assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == DEFAULTS[name]


LOGITS, LABELS, ONES = torch.zeros(2, 3), torch.tensor([0, -1]), torch.ones(3)
SEESAW = {"counts": ONES, "mitigation": 0.8, "compensation": 2.0}
V2 = {"gradient_ratio": ONES, "slope": 12.0, "threshold": 0.8, "boost": 4.0}
EFL = {"scale": 8.0, "gradient_ratio": ONES}
FUNCTIONS = [
    (sigmoid_focal_loss, (LABELS,), {"alpha": 0.25, "gamma": 2.0}),
    (sigmoid_cross_entropy_loss, (LABELS,), {"alpha": 0.25}),
    (equalized_focal_loss, (LABELS,), {"alpha": 0.25, "gamma": 2.0, **EFL}),
    (equalized_quality_focal_loss, (LABELS, torch.rand(2)), {"gamma": 2.0, **EFL}),
    (quality_focal_loss, (LABELS, torch.rand(2)), {"gamma": 2.0}),
    (equalization_loss, (LABELS,), {"alpha": 0.25, "gamma": 2.0, "rare": ONES > 0}),
    (equalization_loss_v2, (LABELS,), {"alpha": 0.25, "gamma": 2.0, **V2}),
    (class_weighted_focal_loss, (LABELS,), {"alpha": 0.25, "gamma": 2.0, "class_weight": ONES}),
    (seesaw_loss, (LABELS,), {"alpha": 0.25, "gamma": 2.0, **SEESAW}),
    (softmax_focal_loss, (LABELS.abs(),), {"gamma": 2.0, "reduction": "mean"}),
    (inverse_focal_loss, (LABELS.abs(),), {"gamma": 2.0, "reduction": "mean"}),
    (binary_focal_loss, (torch.ones(2, 3),), {"alpha": 0.25, "gamma": 2.0, "reduction": "mean"}),
]
WRONG = {
    "alpha": 1.5,
    "gamma": -1.0,
    "scale": -1.0,
    "slope": 0.0,
    "boost": -1.0,
    "mitigation": -1.0,
    "reduction": "avg",
}


@pytest.mark.parametrize(
    ("function", "targets", "options", "wrong"),
    [
        pytest.param(function, targets, options, name, id=f"{function.__name__}-{name}")
        for function, targets, options in FUNCTIONS
        for name in WRONG
        if name in options
    ],
)
def test_functions_refuse_options_without_meaning(function, targets, options, wrong):
    assert function(LOGITS, *targets, **options).isfinite()
    with pytest.raises(ValueError, match=f"{wrong} (is )?'?{WRONG[wrong]}'?"):
        function(LOGITS, *targets, **{**options, wrong: WRONG[wrong]})


@pytest.mark.parametrize("module", [SoftmaxFocalLoss, InverseFocalLoss, BinaryFocalLoss])
def test_unknown_reduction_is_refused_when_the_module_is_built(module):
    with pytest.raises(ValueError, match="reduction is 'avg'; expected 'mean', 'sum' or 'none'"):
        module(reduction="avg")
