"""The state of a sparsifier of sharded parameters, in the form that `torch.distributed.checkpoint` takes.

That fills in what the state of the one who loads has, key by key, and knows nothing of others. So there is a tensor for
all that there may be at any step, a DTensor wherever the parameter is one, and one text for all else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from regrow.state import WeightState

_TEXT = "regrow"  # the key of all that is no tensor


def is_packed(state: Any) -> bool:
    """Whether `pack` has made this."""
    return isinstance(state, dict) and isinstance(state.get(_TEXT), str) and isinstance(state.get("tensors"), dict)


def pack(
    state: Mapping[str, Any],
    weights: Mapping[str, WeightState],
    roles: tuple[str, ...],
    buffers: Mapping[str, Tensor],
) -> dict[str, Any]:
    """A sparsifier's state with the same keys at every step, and tensors of the same shapes on any number of processes.

    What frozen entries are held to in the optimizer's state is left out: it is there as well.

    Args:
        state: as the sparsifier of plain parameters gives it.
        weights: of the parameters.
        roles: what sums of scores there may be for.
        buffers: the model's running statistics, whatever of them is held.
    """
    sums = state["saliency"]["sums"]
    tensors = {
        "flags": {name: one["flags"] for name, one in state["weights"].items()},
        "memory": {name: one["memory"] for name, one in state["weights"].items()},
        "sums": {
            role: {name: _sum(sums.get(role, {}).get(name), one) for name, one in weights.items()} for role in roles
        },
        "buffers": dict(state["buffers"] if state["buffers"] is not None else buffers),
    }
    rest = {key: value for key, value in state.items() if key not in ("weights", "saliency", "buffers")}
    rest |= {"steps": state["saliency"]["steps"], "holds_buffers": state["buffers"] is not None}
    return {_TEXT: json.dumps(rest), "tensors": {kind: found for kind, found in tensors.items() if found}}


def _sum(found: Tensor | None, of: WeightState) -> Tensor:
    if found is not None:
        return found
    return of.holding.whole(torch.zeros_like(of.param, dtype=torch.float32, requires_grad=False))


def unpack(state: Mapping[str, Any]) -> dict[str, Any]:
    """What `pack` was given.

    Raises:
        KeyError, TypeError, ValueError: for what it cannot have made.
    """
    rest, tensors = json.loads(state[_TEXT]), state["tensors"]
    steps, holds = rest.pop("steps"), rest.pop("holds_buffers")
    sums = {role: {name: tensors["sums"][role][name] for name in counts} for role, counts in steps.items()}
    return {
        **rest,
        "weights": {
            name: {"flags": flags, "memory": tensors["memory"][name], "held": {}}
            for name, flags in tensors["flags"].items()
        },
        "saliency": {"sums": sums, "steps": steps},
        "buffers": dict(tensors.get("buffers", {})) if holds else None,
    }
