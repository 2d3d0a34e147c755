"""A network just before an update, copies of which are trained on in other ways, for exploration_oracle.py."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exploration_probe import Batch, Layers
from regrow.actions import kept
from regrow.selection import top_k
from regrow.training.run import Run, model_of, seed_step

SPEEDS = (0.0, 0.0125, 0.05, 0.2, 1.0)  # of memory
CHURN = 0.3
WINDOW = 100  # steps of an update, and of training on
MOMENTUM, DECAY = 0.9, 5e-4  # as in the recipe


@dataclass
class Snapshot:
    """The network one step before an update, and what has been gathered on the way.

    Attributes:
        active: what is active after pruning; outside: what was not before it, so the weights that may grow.
        unpruned: the active structure before it. counts: how many each layer grows.
        memory: speed → memory; "run": that of the run itself.
        gradients: sum of the dense gradients of the last `WINDOW` steps.
    """

    step: int
    lr: list[float]  # of this step and the following ones
    model: nn.Module
    momenta: Layers
    unpruned: Layers
    memory: dict[str, Layers]
    gradients: Layers
    active: Layers = field(default_factory=dict)
    outside: Layers = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, mask in self.unpruned.items():
            count = int(mask.sum())
            if count == mask.numel():
                continue
            weight = self.model.get_parameter(name)
            self.counts[name] = count - kept(count, mask.numel(), CHURN)
            self.active[name] = top_k(weight.detach().abs(), count - self.counts[name], mask)
            self.outside[name] = ~mask

    def pruned(self) -> nn.Module:
        """A copy of the network with only what is active."""
        model = copy.deepcopy(self.model)
        write(model, {name: model.get_parameter(name) * mask for name, mask in self.active.items()})
        return model

    def best(self, scores: Layers) -> Layers:
        """What a score would grow: bool."""
        return {name: top_k(scores[name], self.counts[name], self.outside[name]) for name in self.active}

    def values(self, of: Layers) -> Layers:
        """The same for weights that may grow, zero for all others."""
        return {name: of[name] * self.outside[name] for name in self.active}

    def random(self, generator: torch.Generator) -> Layers:
        return {name: torch.rand(mask.shape, generator=generator) for name, mask in self.outside.items()}


@torch.no_grad()
def write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        model.get_parameter(name).copy_(value)


def batches(run: Run, position: int, number: int) -> Iterator[Batch]:
    """Training batches, with augmentation."""
    for x, y in islice(run.stream.starting_at(position), number):
        yield x.contiguous(memory_format=torch.channels_last), y


def snapshots(run: Run, wanted: Sequence[int]) -> Iterator[Snapshot]:
    """Trains the run, and stops at these steps."""
    sparsifier, states = run.sparsifier, run.sparsifier._states
    memory: dict[float, Layers] = {  # without a preview, it holds the initial values
        speed: {name: state.values() * (state.active | (speed == 0)) for name, state in states.items()}
        for speed in SPEEDS
    }
    sums = {name: torch.zeros_like(state.memory) for name, state in states.items()}
    run.forward.train()
    started = time.monotonic()
    for x, y in batches(run, 0, max(wanted)):
        seed_step(run.recipe.seed, run.step, 0)
        lr = run.learning_rate(run.step)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        loss = F.cross_entropy(run.forward(x), y)
        run.accelerator.backward(loss)
        with torch.no_grad():
            if any(0 < stop - run.step <= WINDOW for stop in wanted):
                for name, state in states.items():
                    assert state.param.grad is not None
                    sums[name] += state.param.grad
            _remember(memory, states, lr)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.step += 1
        for layers in memory.values():
            for name, state in states.items():
                layers[name] = torch.where(state.active, state.param.detach(), layers[name])
        if run.step in wanted:
            print(f"step {run.step}: loss {float(loss.detach()):.3f}, {time.monotonic() - started:.0f} s", flush=True)
            yield _snapshot(run, sparsifier.masks, memory, sums)
            for total in sums.values():
                total.zero_()


@torch.no_grad()
def _remember(memory: dict[float, Layers], states: Mapping[str, Any], lr: float) -> None:
    """A preview by the dense gradients alone, at several speeds; without any, memory rests."""
    rate = lr / (1 - MOMENTUM)
    for speed, layers in memory.items():
        for name, state in states.items():
            if speed:
                layers[name] = layers[name] * (1 - rate * DECAY) - speed * rate * state.param.grad


def _snapshot(run: Run, masks: Layers, memory: dict[float, Layers], sums: Layers) -> Snapshot:
    model = model_of(run.recipe, run.data)  # its forward is its own, unlike that of a prepared model
    model.load_state_dict(run.model.state_dict())
    model = model.to(memory_format=torch.channels_last)
    momenta = {name: run.optimizer.state[p]["momentum_buffer"].clone() for name, p in run.model.named_parameters()}
    memories = {f"{speed:g}": {name: t.clone() for name, t in layers.items()} for speed, layers in memory.items()}
    memories["run"] = {name: state.values().clone() for name, state in run.sparsifier._states.items()}
    return Snapshot(
        run.step,
        [run.learning_rate(run.step + i) for i in range(1000)],
        model,
        momenta,
        {name: mask.clone() for name, mask in masks.items()},
        memories,
        {name: t.clone() for name, t in sums.items()},
    )


def train(
    model: nn.Module, data: Iterator[Batch], lr: Sequence[float], masks: Mapping[str, Tensor | None],
    momenta: Layers | None = None,
) -> Iterator[tuple[float, dict[str, Tensor], dict[str, Tensor]]]:  # fmt: skip
    """SGD with momentum and weight decay on some of the parameters; the model's mode stays as it is.

    Args:
        model: changed in place.
        masks: parameter → bool, the entries that train; None: all of them.
        momenta: where to go on from; default: zero.

    Yields:
        After each step: its loss, gradients, and the weights that they were taken at.
    """
    params = {name: p for name, p in model.named_parameters() if name in masks}
    buffers = {name: (momenta[name] * mask_of(masks[name]) if momenta else torch.zeros_like(p))
               for name, p in params.items()}  # fmt: skip
    for rate, (x, y) in zip(lr, data, strict=False):
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        before = {name: p.detach().clone() for name, p in params.items()}
        gradients = {name: p.grad for name, p in params.items() if p.grad is not None}
        with torch.no_grad():
            for name, p in params.items():
                step = (gradients[name] + DECAY * p) * mask_of(masks[name])
                p.sub_(buffers[name].mul_(MOMENTUM).add_(step), alpha=rate)
        yield float(loss.detach()), gradients, before


def mask_of(mask: Tensor | None) -> Tensor | float:
    return 1.0 if mask is None else mask
