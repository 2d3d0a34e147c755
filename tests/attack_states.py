"""Damages the state of a sparsifier in memory: it is refused with nothing changed, or training goes on."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch import Tensor

import attack_updates
from engine import batches
from regrow.errors import UserError

Path = tuple[Any, ...]
STOPS = (2, 4, 6, 8)  # steps after which states are taken: in every phase


def leaves(value: Any, path: Path = ()) -> list[Path]:
    """The paths of everything in nested dicts and lists, containers too."""
    found = [path] if path else []
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in parts:
        found += leaves(one, (*path, key))
    return found


def damaged(state: Any, source: random.Random) -> tuple[Any, str]:
    """A copy with one thing in it changed, and what."""
    state = copy.deepcopy(state)
    path = source.choice(leaves(state))
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    key, old = path[-1], holder[path[-1]]
    kind = source.choice(["gone", "other type", "number", "extra", "tensor"])
    if kind == "gone":
        del holder[key]
    elif kind == "extra" and isinstance(old, dict):
        old["surprise"] = 1
    elif kind == "tensor" and isinstance(old, Tensor):
        holder[key] = source.choice([
            old.flatten()[:-1], old.to(torch.int64), old.unsqueeze(0), old.to(torch.complex64),
            torch.full_like(old, 255), torch.zeros(0), old.to_sparse(),
        ])  # fmt: skip
    elif kind == "number" or isinstance(old, int | float):
        holder[key] = source.choice([-7, 10**30, float("nan"), float("inf"), 0.5, True])
    else:
        holder[key] = source.choice([None, "text", [], {}, 3, [1, 2], {"a": 1}, torch.ones(2), b"bytes"])
    return state, f"{'.'.join(map(str, path))} {kind}"


def everything(made: attack_updates.Made) -> Any:
    with made[2].full_width():
        return attack_updates.image(made), made[2].state_dict()


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype is b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def run(kind: str, steps: int) -> attack_updates.Made:
    made = attack_updates.KINDS[kind]()
    for batch in batches(steps):
        attack_updates.backward(made, batch)
        made[1].step()
    return made


def attack(kind: str, count: int, seed: int = 0) -> list[str]:
    """So many damaged states; returns what went wrong."""
    source = random.Random(f"{kind} {seed}")
    states = {}
    for stop in STOPS:
        made = run(kind, stop)
        with made[2].full_width():
            states[stop] = copy.deepcopy(made[2].state_dict())
    failed = []
    receiver, before = run(kind, 3), None
    for _ in range(count):
        state, what = damaged(states[source.choice(STOPS)], source)
        before = everything(receiver) if before is None else before
        try:
            receiver[2].load_state_dict(state)
        except UserError:
            if not equal(everything(receiver), before):
                failed.append(f"{kind}: {what}: refused, but something has changed")
            continue
        except Exception as error:
            failed.append(f"{kind}: {what}: {type(error).__name__}: {error}")
            receiver, before = run(kind, 3), None
            continue
        try:
            for batch in batches(attack_updates.STEPS)[receiver[2].step_count :]:
                attack_updates.backward(receiver, batch)
                receiver[1].step()
            receiver[2].finalize()
        except Exception as error:
            failed.append(f"{kind}: {what}: accepted, and then {type(error).__name__}: {error}")
        receiver, before = run(kind, 3), None
    return failed
