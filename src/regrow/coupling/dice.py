"""Chance that falls the same way each time: two widths of a model would draw different numbers otherwise."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from regrow.tracing.ops import name_of

_UNIFORM = frozenset(["rand", "rand_like", "uniform_", "uniform"])
_SEEDS = 0, 57, 56  # of which random and NumPy draw 0.84 and 0.55 first, 0.04 and 0.09, 0.97 and 0.98
_CONSTANT = {
    **dict.fromkeys(["randn", "randn_like", "normal_", "normal", "normal_functional", "log_normal_", "cauchy_"], 0.5),
    **dict.fromkeys(["bernoulli", "bernoulli_", "exponential_", "geometric_", "poisson"], 1.0),
    **dict.fromkeys(["randint", "randint_like", "random_", "multinomial"], 0.0),
}


class Dice:
    """What a model draws while it is tried.

    Attributes:
        side: which of `SIDES` falls.
        rolled: whether code has drawn what it may branch by.
    """

    SIDES = 0.5, 0.1, 0.9  # uniform noise; Python's and NumPy's first numbers lie on the same sides

    def __init__(self) -> None:
        self.side = 0
        self.rolled = False

    @contextmanager
    def rolling(self) -> Iterator[None]:
        """Inside it, NumPy and `random` (masks of features in training mode) draw the same each time."""
        states = np.random.get_state(), random.getstate()  # noqa: NPY002
        seed = _SEEDS[self.side]
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        begun = _drawn()
        try:
            yield
        finally:
            self.rolled |= begun != _drawn()
            np.random.set_state(states[0])  # noqa: NPY002
            random.setstate(states[1])

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Executes an operation without leaving anything to chance: dropout keeps all, noise is constant."""
        name = name_of(func)
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        out = func(*args, **kwargs)
        self.rolled |= name in _UNIFORM
        fill = self.SIDES[self.side] if name in _UNIFORM else _CONSTANT.get(name)
        if fill is not None:
            tree_map_only(Tensor, lambda t: t.fill_(fill) if t.is_floating_point() else t.zero_(), out)
        return out


def _drawn() -> tuple[int, object]:
    """How far the generators of NumPy and of `random` have come."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return state[2], random.getstate()
