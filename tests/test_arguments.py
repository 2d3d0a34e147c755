"""What is passed to the constructors in a wrong form is answered with the right one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import regrow
from engine import batches, network
from regrow.errors import UserError, percent
from regrow.methods import Method

PER_CENT: dict[str, Any] = {
    "flops": lambda: bound(flops=50),
    "params": lambda: bound(params=30),
    "latency": lambda: bound(latency=70),
    "flops as text": lambda: bound(flops="50"),
    "sparsity": lambda: regrow.Weights(90),
    "density": lambda: regrow.Weights(0.9, {"0": 25}),
    "initial sparsity": lambda: regrow.GMP(initial_sparsity=20),
    "ramp": lambda: regrow.IEE(ramp=50),
    "budget": lambda: regrow.Budget("cosine", 30),
    "until": lambda: regrow.IEE(update_end=75.0).timeline(1000),
}


def bound(**budget: Any) -> object:
    return regrow.Channels(round_to=1, **budget).bind(network(), batches(1)[0][0])


@pytest.mark.parametrize("option", PER_CENT)
def test_per_cent_are_recognised(option: str) -> None:
    with pytest.raises(UserError, match=r"; did you mean 0\.\d+ \(\d+%\)\?$"):
        PER_CENT[option]()


def test_a_share_may_be_given_in_per_cent_with_the_sign() -> None:
    half, share = bound(params="50%"), bound(params=0.5)
    assert half.budgets.amounts == share.budgets.amounts  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [0.5, 1, 101, 1e9, True, "50", None])
def test_other_numbers_get_no_hint(number: object) -> None:
    assert percent(number) == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"distribution": "ERK"}, "distribution 'ERK' is unknown; did you mean 'erk'"),
        ({"distribution": "Er"}, "did you mean 'er'"),
        ({"distribution": "GLOBAL"}, "did you mean 'global'"),
        ({"distribution": "unif"}, "did you mean 'uniform'"),
        ({"distribution": "even"}, "valid names are er, erk, global, uniform"),
    ],
)
def test_a_name_in_another_case_or_nearly_right_is_recognised(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        regrow.Weights(0.5, **options)


MODEL = network()
SGD = torch.optim.SGD(MODEL.parameters(), 0.1)
RIGHT: dict[str, Any] = {
    "model": MODEL, "optimizer": SGD, "pattern": regrow.Weights(0.5), "method": "static", "criterion": "magnitude",
    "total_steps": 9,
}  # fmt: skip


WEIGHTS, CHANNELS = regrow.Weights(0.5), regrow.Channels(flops=0.5)
BATCH = batches(1)[0][0]


@pytest.mark.parametrize("total_steps", [1, None], ids=["too short", "missing"])
@pytest.mark.parametrize(
    ("method", "pattern", "example", "said"),
    [
        (regrow.HALP(), WEIGHTS, None, "halp removes channels"),
        (regrow.Uniform(), WEIGHTS, None, "uniform removes channels"),
        (regrow.HALP(), None, None, "pattern is missing"),
        (regrow.HALP(), CHANNELS, None, "pass example_inputs=one batch"),
        (regrow.IEE(), CHANNELS, None, "pass example_inputs=one batch"),
        (regrow.RigL(), CHANNELS, BATCH, "rigl needs the gradients of what was removed"),
        (regrow.RigL(), CHANNELS, None, "rigl needs the gradients of what was removed"),
        (regrow.STE(), CHANNELS, BATCH, "ste needs the gradients of what was removed"),
        (regrow.IEE(h=1, q=0, shadow_speed=0.1), CHANNELS, BATCH, "iee needs the gradients of what was removed"),
    ],
)
def test_what_no_length_would_mend_is_said_first(
    method: Method, pattern: Any, example: Any, said: str, total_steps: int | None
) -> None:
    with pytest.raises(UserError, match=said):
        regrow.Sparsifier(
            MODEL, SGD, pattern=pattern, method=method, total_steps=total_steps, example_inputs=example
        )  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("pattern", 0.9, r"pattern is 0\.9, but must say what to sparsify.*pass regrow\.Weights\(0\.9\)"),
        ("pattern", "erk", r"pattern is 'erk', but must say"),
        ("pattern", "Channel", r"pass regrow\.Channels\(\.\.\.\) with its options"),
        ("pattern", "weights", r"pass regrow\.Weights\(\.\.\.\) with its options"),
        ("pattern", regrow.Weights, r"pattern is the class Weights.*pass Weights\(\.\.\.\) with its options"),
        ("pattern", {"sparsity": 0.9}, "pattern is of type dict"),
        ("method", regrow.RigL, r"such as RigL\(\), not the class RigL"),
        ("method", 3, r"such as regrow\.RigL\(\), not 3"),
        ("method", "rigel", "method 'rigel' is unknown; did you mean 'rigl'"),
        ("method", "RigL", "method 'RigL' is unknown; did you mean 'rigl'"),
        ("method", "AC/DC", "did you mean 'acdc'"),
        ("method", "one-shot", "did you mean 'oneshot'"),
        ("method", "SR-STE", "did you mean 'srste'"),
        ("criterion", "Taylor", "did you mean 'taylor'"),
        ("criterion", "L2", "did you mean 'l2'"),
        ("criterion", "mag", "did you mean 'magnitude'"),
        ("criterion", 3, r"criterion must be a name or a function of \(weight\)"),
        ("criterion", "taylr", "did you mean 'taylor'"),
        ("optimizer", MODEL, "optimizer must be a torch.optim.Optimizer .*, not of type Sequential"),
        ("optimizer", torch.optim.SGD, "not the class SGD"),
        ("optimizer", None, "not None"),
        ("model", SGD, "model must be a torch.nn.Module, not of type SGD; the model comes first, then its optimizer"),
        ("model", nn.Linear, "not the class Linear"),
        ("model", list(MODEL.parameters()), "not of type list"),
        ("total_steps", "9", "total_steps is '9'"),
    ],
)
def test_wrong_types_are_named_with_the_way_out(argument: str, value: object, said: str) -> None:
    options = {**RIGHT, argument: value}
    with pytest.raises(UserError, match=said):
        regrow.Sparsifier(options.pop("model"), options.pop("optimizer"), **options)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_that_autograd_is_to_record_is_refused(kind: type[torch.optim.Optimizer]) -> None:
    model = network()
    weights, biases = (
        [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() == 1],
    )  # fmt: skip
    optimizer = kind([{"params": weights}, {"params": biases, "differentiable": True}], lr=0.1)  # type: ignore[call-arg]
    with pytest.raises(UserError) as caught:
        regrow.Sparsifier(model, optimizer, pattern=regrow.Weights(0.5), method="static", total_steps=9)
    assert str(caught.value) == (
        f"{kind.__name__} has differentiable=True, but autograd cannot record a step that changes a model's own "
        "parameters in place; make it without, or with differentiable=False"
    )
