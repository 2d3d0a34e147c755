"""One small job, for every loop that may train it: the same batches, gradient clipping, and three updates of IEE."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from engine import batches, loss_of, network

STEPS = 60
CLIP = 0.5
CRITERIA = ("magnitude", "taylor")
OPTIONS: dict[str, Any] = {"pattern": regrow.Weights(0.7, "erk"), "method": regrow.IEE(h=5, j=4, q=3)}
EXPLORING = 10  # a step inside an exploration
DATA = batches(STEPS)
EXAMPLE = DATA[0][0]
CHANNELS: dict[str, Any] = {**OPTIONS, "pattern": regrow.Channels(params=0.6, round_to=1), "example_inputs": EXAMPLE}

State = dict[str, Tensor]


def dataset() -> torch.utils.data.TensorDataset:
    """All batches one after the other."""
    return torch.utils.data.TensorDataset(*(torch.cat(parts) for parts in zip(*DATA, strict=True)))


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def state_of(model: nn.Module, sparsifier: regrow.Sparsifier) -> State:
    """Weights, buffers and masks, copied; at full width, whatever shape they have now."""
    with sparsifier.full_width():
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return weights | {f"mask of {name}": mask.clone() for name, mask in sparsifier.masks.items()}


@functools.cache
def plain(criterion: str) -> Sequence[State]:
    """The states after each step of a plain loop."""
    model, seen = network(), []
    optimizer = sgd(model)
    sparsifier = regrow.Sparsifier(model, optimizer, **OPTIONS, criterion=criterion, total_steps=STEPS)
    for batch in DATA:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        sparsifier.prepare_step()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        seen.append(state_of(model, sparsifier))
    assert len(sparsifier.history) == 3
    masks = [{name: value for name, value in state.items() if name.startswith("mask")} for state in seen]
    assert sum(any(not torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(masks)) >= 6
    return tuple(seen)


@functools.cache
def shown(criterion: str, steps: int = EXPLORING) -> Tensor:
    """What the active structure computes of `EXAMPLE` after these steps of a plain loop, in the middle of a phase."""
    model = network()
    optimizer = sgd(model)
    sparsifier = regrow.Sparsifier(model, optimizer, **OPTIONS, criterion=criterion, total_steps=STEPS)
    for batch in DATA[:steps]:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        sparsifier.prepare_step()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    explored = model.eval()(EXAMPLE)
    with sparsifier.sparse(), torch.no_grad():
        found = model(EXAMPLE)
    assert (sparsifier.phase == "explore") == (not torch.equal(found, explored))
    return found


def same_states(found: Sequence[State], expected: Sequence[State]) -> bool:
    """Whether all tensors of all steps are equal, bit for bit."""
    return len(found) == len(expected) and all(
        list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(found, expected, strict=True)
    )


class Stop(Exception):
    """Ends a run in the middle, as a crash does."""


def stop_at(step: int | None) -> Callable[[int], None]:
    """What raises once this many steps are done."""

    def look(done: int) -> None:
        if done == step:
            raise Stop

    return look
