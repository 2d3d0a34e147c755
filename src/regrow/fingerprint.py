"""What a checkpoint belongs to, and whether it fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.methods.method import Method
from regrow.patterns.pattern import Pattern

KEYS = (
    "config", "step", "finished", "weights", "saliency", "units", "buffers", "history", "ledger",
)  # fmt: skip

_NOT_CHOSEN = {"table"}  # measured, and part of the state


def of(method: Method, pattern: Pattern | None, criterion: Criterion, total_steps: int, seed: int) -> dict[str, str]:
    """All that decides how a run goes on, as text."""
    return {
        "method": _text(method.name, method),
        "pattern": _text(pattern.name, pattern) if pattern else "none",
        "criterion": criterion.name,
        "total_steps": str(total_steps),
        "seed": str(seed),
    }


def check(state: Any, version: int, expected: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a state that is of something else.

    Args:
        state: what somebody hands in.
        version: of the format.
        expected: the fingerprint it must have.
        shapes: parameter name → shape, in order.

    Raises:
        UserError: naming the first thing that does not match.
    """
    if not isinstance(state, dict) or state.get("format") != version:
        raise UserError("this is not the state of a regrow.Sparsifier of this version")
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise UserError(f"the state is damaged: it lacks {missing[0]!r}")
    for key in ("config", "weights"):
        if not isinstance(state[key], dict):
            raise UserError(f"the state is damaged: {key} is a {type(state[key]).__name__}, not a dict")
    for key, value in expected.items():
        found = state["config"].get(key)
        if found != value:
            raise UserError(f"the state belongs to {key} {found}, but this sparsifier has {value}")
    if list(state["weights"]) != list(shapes):
        other = next(iter(set(state["weights"]) ^ set(shapes)), "the order of the parameters")
        raise UserError(f"the state is of another model: {other!r} does not match")
    for name, shape in shapes.items():
        if not isinstance(state["weights"][name], dict):
            raise UserError(f"the state is damaged: weights.{name} is a {type(state['weights'][name]).__name__}")
        found = tuple(state["weights"][name]["flags"].shape)
        if found != shape:
            raise UserError(f"the state has {name!r} of shape {found}, but the model's is {shape}")


def _text(name: str, options: Any) -> str:
    chosen = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in _NOT_CHOSEN}
    return json.dumps([name, chosen], default=_plain, sort_keys=True)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
