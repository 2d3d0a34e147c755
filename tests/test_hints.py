"""Whatever is given for an option is taken as it is, or refused in one sentence that names the option."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regrow
from regrow import hints
from regrow.errors import UserError
from regrow.latent import Latent
from regrow.methods import METHODS

ODD: list[Any] = [
    None, True, False, "x", "", "0.5", "\ud800", b"x", [], [1], (), {}, {"a": 1}, {1}, object(), int, 1j, len,
    np.float32(0.5), np.float64(0.5), np.int64(2), np.bool_(True), np.array([0.5, 0.5]),
    torch.tensor(0.5), torch.tensor(2), torch.ones(2),
    math.nan, math.inf, -math.inf, -1, -0.5, 0, 0.0, 1e-320, 0.5, 1, 1.0, 1.5, 2, 2.0, 50, 50.0, 1e308, 10**400,
    10**5000,
]  # fmt: skip
REQUIRED: dict[str, dict[str, Any]] = {
    "Weights": {"sparsity": 0.5}, "Blocks": {"shape": (2, 2), "sparsity": 0.5}, "Channels": {"params": 0.5},
}  # fmt: skip
MAKERS: dict[str, Callable[..., Any]] = {
    cls.__name__: cls
    for cls in (*METHODS.values(), regrow.Weights, regrow.NM, regrow.Blocks, regrow.Channels, regrow.Budget, Latent)
} | {"feather": regrow.STE.feather, "topkast": regrow.STE.topkast, "paper": regrow.IEE.paper}
OPTIONS = [
    (maker, option) for maker, make in MAKERS.items() for option in inspect.signature(make).parameters
    if option != "options"
]  # fmt: skip


def sentence(give: Callable[[], object], option: str) -> str:
    """What is said of a value that is refused; "" where it is taken."""
    try:
        give()
    except UserError as error:
        said = str(error)
        assert option in said or "is too short for one update" in said, said
        assert len(said) < 300, said
        assert said.isprintable(), said
        return said
    return ""


@pytest.mark.parametrize(("maker", "option"), OPTIONS)
def test_options(maker: str, option: str) -> None:
    def give(value: Any) -> None:
        made = MAKERS[maker](**{**REQUIRED.get(maker, {}), option: value})
        if isinstance(made, regrow.methods.Method) and not isinstance(made, regrow.HALP):
            made.timeline(10**6)

    taken = [value for value in ODD if not sentence(lambda value=value: give(value), option)]
    kinds = {type(value) for value in taken}
    if option == "outputs":
        assert all(value is None or callable(value) for value in taken)
    elif option != "table":
        assert not kinds & {bytes, complex, set, type, object, type(len)}
        assert dict not in kinds or option in ("distribution", "round_to")
        assert not kinds & {np.float32, np.int64, np.bool_, np.ndarray, torch.Tensor}
        assert not ({int, float} & kinds and bool in kinds)
    assert not any(value != value for value in taken if isinstance(value, float))


@pytest.mark.parametrize(
    "option", ["model", "optimizer", "pattern", "method", "criterion", "total_steps", "seed", "on_resize"]
)
@pytest.mark.filterwarnings("ignore:.*stay dense")
def test_arguments_of_the_sparsifier(option: str) -> None:
    def give(value: Any) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        given = {
            "model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1), "pattern": regrow.Weights(0.5),
            "method": regrow.RigL(interval=2), "criterion": "magnitude", "total_steps": 90,
        }  # fmt: skip
        given[option] = value
        regrow.Sparsifier(given.pop("model"), given.pop("optimizer"), **given)

    callables = [int, len] if option in ("criterion", "on_resize") else []
    defaults = [None] if option in ("on_resize", "method") else []
    numbers = {"total_steps": [50], "seed": [-1, 0, 1, 2, 50]}.get(option, [])
    taken = [value for value in ODD if not sentence(lambda value=value: give(value), option)]
    assert [repr(v) for v in taken] == [
        repr(v) for v in ODD if any(v is one for one in (*callables, *defaults, *numbers))
    ]


@dataclass(frozen=True)
class _Own(regrow.methods.Method):
    name = "own"

    steps: int = 3
    words: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 0.5)
    block: tuple[int, int] = (1, 1)
    sizes: tuple[int, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)

    def timeline(self, total_steps: int) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 2.5}, "steps is 2.5, but must be a whole number"),
        (
            {"steps": np.int64(3)},
            "steps is np.int64(3), but must be a whole number; give a plain one, such as its .item()",
        ),
        ({"words": "ab"}, "words is 'ab', but must be a list of names"),
        ({"words": [1]}, "words is [1], but must be a list of names"),
        ({"sizes": 16}, "sizes is 16, but must be a list of whole numbers"),
        ({"block": 16}, "block is 16, but must be two whole numbers"),
        ({"pair": (1,)}, "pair is (1,), but must be a list of a whole number and a number"),
        ({"shares": {"fc": None}}, "shares['fc'] is None, but must be a number"),
        ({"steps": 10**19}, "steps is 10000000000000000000, but must be at most 1e+18"),
    ],
)  # fmt: skip
def test_options_of_a_method_of_the_users_own(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        _Own(**options)
    assert str(caught.value) == said


def test_what_annotations_allow_is_taken() -> None:
    own = _Own(words=["a", "b"], pair=[2, 3], shares={"fc": 1})
    assert (own.words, own.pair, own.shares) == (["a", "b"], [2, 3], {"fc": 1})
    assert regrow.Weights(0.5, exclude={"a"}).exclude == {"a"}


def test_annotations_that_cannot_be_found_check_nothing() -> None:
    @dataclass(frozen=True)
    class Unknown:
        steps: NowhereToBeFound  # type: ignore[name-defined]  # noqa: F821

    hints.check(Unknown("x"))
