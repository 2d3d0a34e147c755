"""Interrupts an optimizer's step while it crosses an update, at any Python call in regrow."""

from __future__ import annotations

import copy
import functools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import regrow
from engine import batches, loss_of, network

SOURCES = (str(Path(regrow.__file__).parent), str(Path(torch.optim.__file__).parent))
STEPS = 14
IEE = regrow.IEE(h=3, j=2, q=2, update_end=1.0, shadow_speed=0.0)

UNDOING = ("restore", "put", "<genexpr>")  # and generators that are being closed, where nobody hears it

Made = tuple[nn.Module, torch.optim.Optimizer, regrow.Sparsifier]


SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
ADAM = partial(torch.optim.AdamW, lr=0.01)


def _attached(pattern: Any, method: Any, criterion: str, kind: Callable[..., torch.optim.Optimizer] = SGD) -> Made:
    model = network()
    optimizer = kind(model.parameters())
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=pattern, method=method, criterion=criterion, total_steps=STEPS,
        example_inputs=batches(1)[0][0],
    )  # fmt: skip
    return model, optimizer, sparsifier


def weights() -> Made:
    return _attached(regrow.Weights(0.7, "erk"), regrow.RigL(interval=3, update_end=1.0), "magnitude")


def weights_explored() -> Made:
    return _attached(regrow.Weights(0.7, "erk"), IEE, "magnitude")


def weights_latent() -> Made:
    return _attached(regrow.Weights(0.7, "erk"), regrow.STE(every=3), "magnitude")


def weights_in_part() -> Made:
    method = regrow.STE.topkast(backward=0.4, every=3, candidates="random", scale=0.5)
    return _attached(regrow.Weights(0.7, "erk"), method, "magnitude", ADAM)


def weights_previewed() -> Made:
    return _attached(regrow.Weights(0.7, "erk"), regrow.IEE(h=4, update_end=1.0), "taylor")


def channels_masked() -> Made:
    return _attached(regrow.Channels(params=0.6, round_to=1, thin=False), IEE, "taylor")


def channels_thin() -> Made:
    return _attached(regrow.Channels(params=0.6, round_to=1), IEE, "taylor")


def weights_in_groups() -> Made:
    return _attached(regrow.NM(2, 4), regrow.SRSTE(every=3), "magnitude", ADAM)


def weights_in_blocks() -> Made:
    return _attached(regrow.Blocks((1, 2), 0.5), regrow.ACDC(sparse=3, dense=2), "magnitude")


KINDS: dict[str, Callable[[], Made]] = {
    "weights": weights, "weights explored": weights_explored, "weights latent": weights_latent,
    "weights previewed": weights_previewed, "weights in groups": weights_in_groups,
    "weights in blocks": weights_in_blocks, "weights in part": weights_in_part, "channels": channels_masked,
    "thin": channels_thin,
}  # fmt: skip


class Interrupted(BaseException):
    """Ctrl-C, as it were."""


@contextmanager
def interrupted_at(n: int, event: str = "call", files: tuple[str, ...] = SOURCES) -> Iterator[list[int]]:
    """Raises at the n-th (from 1) call of a function, or before the n-th line, of these files; the list counts them."""
    seen = [0]

    def trace(frame: FrameType, happened: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(files):
            return None
        if happened == event:
            if frame.f_code.co_name in UNDOING:  # a second Ctrl-C while the first is dealt with may do harm
                return None
            seen[0] += 1
            if seen[0] == n:
                raise Interrupted
        return trace if event == "line" else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


def backward(made: Made, batch: Any) -> None:
    model, optimizer, _ = made
    optimizer.zero_grad()
    loss_of(model, batch).backward()


def _just_before(kind: str, data: list[Any]) -> Made:
    """A run of this kind, just before the step of the last of these batches."""
    made = KINDS[kind]()
    for batch in data[:-1]:
        backward(made, batch)
        made[1].step()
    backward(made, data[-1])
    return made


def image(made: Made) -> dict[str, torch.Tensor]:
    """All that an update may change, in one dictionary."""
    model, optimizer, sparsifier = made
    found = {name: t.detach().clone() for name, t in model.state_dict().items()}
    for name, p in model.named_parameters():
        found |= {f"{name}/{k}": v.clone() for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}
    found |= {f"{name}/mask": mask for name, mask in sparsifier.masks.items()}
    return found | {"step": torch.tensor(sparsifier.step_count), "updates": torch.tensor(len(sparsifier.history))}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def boundaries(kind: str) -> list[int]:
    """The steps that end with a change of the structure."""
    timeline = KINDS[kind]()[2]._engine.timeline
    return [step for step in range(1, STEPS + 1) if timeline.ended_at(step)]


def reference(kind: str) -> dict[str, Any]:
    """Counts at the end of an uninterrupted run."""
    made = KINDS[kind]()
    for batch in batches(STEPS):
        backward(made, batch)
        made[1].step()
    made[2].finalize()
    return counts(made)


def counts(made: Made) -> dict[str, Any]:
    return {name: int(mask.sum()) for name, mask in made[2].masks.items()}


@functools.cache
def rehearsed(kind: str, step: int) -> tuple[int, dict[str, torch.Tensor]]:
    """How many calls the step with this number (from 1) takes, and what it leaves, where nobody interrupts it."""
    made = _just_before(kind, batches(STEPS)[:step])
    with interrupted_at(0) as seen:
        made[1].step()
    return seen[0], image(made)


def interrupt(kind: str, step: int, share: float, expected: dict[str, Any]) -> str:
    """One run that is interrupted in the step with this number (from 1) after this share of its calls.

    Returns:
        What went wrong; "" for nothing.
    """
    data = batches(STEPS + 1)
    calls, after = rehearsed(kind, step)
    made = _just_before(kind, data[:step])
    before = image(made)
    try:
        with interrupted_at(1 + int(share * calls)):
            made[1].step()
        return ""  # it came to its end before
    except Interrupted:
        pass
    left = image(made)
    structure = {name for name in before if name.endswith("/mask")}
    old, new = (all(torch.equal(left[n], state[n]) for n in structure) for state in (before, after))
    if not (old or new):
        return f"{kind}, step {step}, call at {share:.3f}: the structure is neither the old nor the new one"
    try:
        for batch in data[made[2].step_count :]:
            if made[2].step_count == STEPS:
                break
            backward(made, batch)
            made[1].step()
        made[2].finalize()
    except Exception as error:
        return f"{kind}, step {step}, call at {share:.3f}: then {type(error).__name__}: {error}"
    for name, mask in made[2].masks.items():
        with made[2].full_width():
            if bool((made[0].get_parameter(name)[~mask] != 0).any()):
                return f"{kind}, step {step}, call at {share:.3f}: {name} is not zero where it is pruned"
    if not kind.startswith("weights"):
        cost = made[2]._units.prices.cost({n: kept for n, (kept, _) in made[2].widths().items()})  # type: ignore[union-attr]
        within = all(cost[k] <= budget for k, budget in made[2]._units.budgets.amounts.items())  # type: ignore[union-attr]
        return "" if within else f"{kind}, step {step}, call at {share:.3f}: over budget"
    found = counts(made)
    return "" if found == expected else f"{kind}, step {step}, call at {share:.3f}: {found} instead of {expected}"


def resume(kind: str, step: int, share: float) -> str:
    """One run that is interrupted likewise, whose state is saved then, and another that goes on from there.

    Returns:
        What of the two differs at the end; "" for nothing.
    """
    data = batches(STEPS)
    calls, _ = rehearsed(kind, step)
    made = _just_before(kind, data[:step])
    with suppress(Interrupted), interrupted_at(1 + int(share * calls)):
        made[1].step()
    other = KINDS[kind]()
    with made[2].full_width(), other[2].full_width():
        saved = copy.deepcopy([one.state_dict() for one in made])
        for one, state in zip(other, saved, strict=True):
            one.load_state_dict(state)
    for one in (made, other):
        for batch in data[one[2].step_count :]:
            backward(one, batch)
            one[1].step()
    with made[2].full_width(), other[2].full_width():
        found, expected = image(made), image(other)
    return "" if same(found, expected) else f"{kind}, step {step}, call at {share:.3f}: resumed, it ends otherwise"


def attack(kind: str, count: int, seed: int = 0) -> list[str]:
    """So many interruptions; returns what went wrong."""
    source = random.Random(f"{kind} {seed}")
    steps, expected = boundaries(kind), reference(kind)
    tries = [(source.choice(steps), source.random()) for _ in range(count)]
    return [said for step, share in tries if (said := interrupt(kind, step, share, expected))]
