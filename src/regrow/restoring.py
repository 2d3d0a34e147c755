"""Whether the state of a sparsifier is whole: checked before any of it is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from regrow.codes import ALL_FLAGS
from regrow.errors import UserError
from regrow.saliency import Role
from regrow.schedule import Trains
from regrow.shards import local
from regrow.state import WeightState

Shapes = Mapping[str, tuple[int, ...]]

_COUNTS = frozenset(["update", "step", "pruned", "grown", "regrown"])


def check(
    state: Mapping[str, Any],
    example: Mapping[str, Any],
    weights: Mapping[str, WeightState],
    scored: Shapes,
    buffers: Mapping[str, Tensor],
) -> None:
    """Refuses a state that no `state_dict` can have given.

    Args:
        state: of which `regrow.fingerprint.check` has found that it belongs here.
        example: what the sparsifier that is to go on gives itself.
        weights: its parameters' states.
        scored: shapes of what its saliency sums, by name.
        buffers: its model's running statistics, by name.

    Raises:
        UserError: naming the first key that does not fit.
    """
    _number("step", state["step"], whole=True)
    _kind("finished", state["finished"], bool)
    for name, one in state["weights"].items():
        _weight(f"weights.{name}", one, weights[name])
    _saliency(state["saliency"], scored)
    _units(state["units"], example["units"])
    _buffers(state["buffers"], buffers)
    _kind("history", state["history"], list)
    for i, record in enumerate(state["history"]):
        _record(f"history.{i}", record)
    _ledger(state["ledger"], weights, state["step"])


def _wrong(key: str, said: str) -> UserError:
    return UserError(f"the state is damaged: {key} {said}")


def _kind(key: str, value: Any, *kinds: type) -> None:
    if type(value) not in kinds:
        raise _wrong(key, f"is a {type(value).__name__}, not a {kinds[0].__name__}")


def _number(key: str, value: Any, whole: bool = False) -> None:
    _kind(key, value, *((int,) if whole else (float, int)))
    if not (math.isfinite(value) and value >= 0):
        raise _wrong(key, f"is {value!r}, but must be at least 0")


def _keys(key: str, value: Any, expected: Any) -> None:
    _kind(key, value, dict)
    if other := sorted(map(str, set(value) ^ set(expected))):
        raise _wrong(key, f"{'lacks' if other[0] in map(str, expected) else 'has an unknown'} {other[0]!r:.80}")


def _tensor(key: str, value: Any, shape: tuple[int, ...], kinds: str) -> None:
    """A dense tensor of this shape: ``"bool"``, ``"uint8"`` or ``"float"`` of any width."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        raise _wrong(key, "is no dense tensor")
    fits = value.is_floating_point() if kinds == "float" else value.dtype is getattr(torch, kinds)
    if not fits or tuple(value.shape) != shape:
        raise _wrong(key, f"is {value.dtype} of shape {tuple(value.shape)}, not {kinds} of shape {shape}")


def _weight(key: str, state: Any, own: WeightState) -> None:
    _keys(key, state, ("flags", "memory", "held"))
    shape = own.holding.shape_of(own.flags)
    _tensor(f"{key}.flags", state["flags"], shape, "uint8")
    flags = local(state["flags"])
    if bool((flags > ALL_FLAGS).any()):
        raise _wrong(f"{key}.flags", f"holds {int(flags.max())}, which is no code")
    _tensor(f"{key}.memory", state["memory"], shape, "float")
    _kind(f"{key}.held", state["held"], dict)
    for name, value in state["held"].items():
        _tensor(f"{key}.held.{name}", value, shape, "float")


def _saliency(state: Any, shapes: Shapes) -> None:
    _keys("saliency", state, ("sums", "steps"))
    _kind("saliency.sums", state["sums"], dict)
    _keys("saliency.steps", state["steps"], state["sums"])
    for role, sums in state["sums"].items():
        key = f"saliency.sums.{role}"
        if role not in get_args(Role):
            raise _wrong(key, "is unknown")
        _kind(key, sums, dict)
        _keys(f"saliency.steps.{role}", state["steps"][role], sums)
        for name, value in sums.items():
            if name not in shapes:
                raise _wrong(f"{key}.{name}", "is of nothing that is scored")
            _tensor(f"{key}.{name}", value, shapes[name], "float")
            _number(f"saliency.steps.{role}.{name}", state["steps"][role][name], whole=True)


def _units(state: Any, example: Mapping[str, Any]) -> None:
    _keys("units", state, example)
    for name, mine in example.items():
        key, found = f"units.{name}", state[name]
        if name == "tally":
            _kind(key, found, dict)
            for what, count in found.items():
                _number(f"{key}.{what}", count, whole=True)
        elif isinstance(mine, dict) and all(isinstance(mask, Tensor) for mask in mine.values()):
            _keys(key, found, mine)
            for group, mask in mine.items():
                _tensor(f"{key}.{group}", found[group], tuple(mask.shape), "bool")
        else:
            _kind(key, found, type(mine))


def _buffers(state: Any, own: Mapping[str, Tensor]) -> None:
    if state is None:
        return
    _keys("buffers", state, own)
    for name, mine in own.items():
        kinds = "float" if mine.is_floating_point() else str(mine.dtype).removeprefix("torch.")
        _tensor(f"buffers.{name}", state[name], tuple(mine.shape), kinds)


def _record(key: str, record: Any) -> None:
    _kind(key, record, dict)
    for name, value in record.items():
        if value is not None or name in _COUNTS:
            _number(f"{key}.{name}", value, whole=name in _COUNTS)


def _ledger(state: Any, weights: Mapping[str, WeightState], step: int) -> None:
    _kind("ledger", state, dict)
    for phase, entry in state.items():
        key = f"ledger.{phase}"
        sums_of = ("density_steps", "dense_density_steps", "gradient_density_steps")
        _keys(key, entry, ("trains", "steps", "dense_gradient_steps", *sums_of))
        if entry["trains"] not in get_args(Trains):
            raise _wrong(f"{key}.trains", f"is {entry['trains']!r}, but must be one of {', '.join(get_args(Trains))}")
        _number(f"{key}.steps", entry["steps"], whole=True)
        _number(f"{key}.dense_gradient_steps", entry["dense_gradient_steps"], whole=True)
        for sums in sums_of:
            _kind(f"{key}.{sums}", entry[sums], dict)
            for name, value in entry[sums].items():
                if name not in weights:
                    raise _wrong(f"{key}.{sums}.{name}", "is of no parameter")
                _number(f"{key}.{sums}.{name}", value)
    booked = sum(entry["steps"] for entry in state.values())
    if booked != step:
        raise _wrong("ledger", f"books {booked} steps, but {step} were done")
