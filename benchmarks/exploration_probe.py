"""What single weights of a wide residual network are worth, for exploration_oracle.py: the loss with one changed.

Only one output channel of one layer changes with a weight, so that block is mended instead of computed anew.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from regrow import recalibrate

Batch = tuple[Tensor, Tensor]
Layers = dict[str, Tensor]  # parameter name → a tensor of its shape


@dataclass(frozen=True)
class Candidate:
    """One entry of a parameter, and who nominated it: "random", or the score whose choice it is one of."""

    layer: str
    index: tuple[int, int, int, int]
    source: str


class Probe:
    """The loss over fixed images as a function of one weight, all others as they are; fp32, summed in fp64.

    Args:
        model: a WideResNet; copied.
        batches: the images, in batches.
        batch_statistics: normalise by those of each batch, as in training; otherwise by running statistics that are
            estimated on these images.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], batch_statistics: bool) -> None:
        self.model: Any = copy.deepcopy(model)
        self.batches = batches
        self.batch_statistics = batch_statistics
        recalibrate(self.model, batches)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0
        self.model.train(batch_statistics)
        stages: Any = self.model.stages
        self.blocks = [block for stage in stages for block in stage]
        self.names = [f"stages.{s}.{b}" for s, stage in enumerate(stages) for b in range(len(stage))]
        with torch.no_grad():
            self._cache = [self._activations(x) for x, _ in batches]
            self.loss = self._mean(cache[-1][3] for cache in self._cache)

    def gradient(self) -> dict[str, Tensor]:
        """The gradient of the loss by every parameter."""
        self.model.zero_grad()
        for x, y in self.batches:
            (F.cross_entropy(self.model(x), y) / len(self.batches)).backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters()}

    @torch.no_grad()
    def loss_at(self, candidate: Candidate, value: float) -> float:
        """The loss where this weight has this value."""
        name, _, kind = candidate.layer.removesuffix(".weight").rpartition(".")
        at = self.names.index(name)
        block, later = self.blocks[at], self.blocks[at + 1 :]
        conv = getattr(block, kind)
        out, into, *place = candidate.index
        kernel = torch.zeros(1, 1, *conv.kernel_size)
        kernel[0, 0, place[0], place[1]] = value - float(conv.weight[candidate.index])

        def outputs() -> Any:
            for cache in self._cache:
                entry, first, middle, last = cache[at]
                source = middle if kind == "conv2" else entry
                change = F.conv2d(source[:, into : into + 1], kernel, stride=conv.stride, padding=conv.padding)
                if kind == "conv1":
                    hidden = torch.relu(self._norm(block.norm2, first[:, out : out + 1] + change, out))
                    hidden -= middle[:, out : out + 1]
                    result = last + F.conv2d(hidden, block.conv2.weight[:, out : out + 1], padding=1)
                else:
                    result = last.clone()
                    result[:, out : out + 1] += change
                for follower in later:
                    result = follower(result)
                yield result

        return self._mean(outputs())

    def _norm(self, norm: nn.BatchNorm2d, x: Tensor, channel: int) -> Tensor:
        mean, var, weight, bias = (
            t[channel : channel + 1].clone() for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)  # type: ignore[index]
        )  # fmt: skip
        return F.batch_norm(x, mean, var, weight, bias, self.batch_statistics, 0.0, norm.eps)

    def _activations(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For each block: its normalised input, what its first convolution gives, that normalised, and its output."""
        found = []
        x = self.model.stem(x)
        for block in self.blocks:
            entry = torch.relu(block.norm1(x))
            first = block.conv1(entry)
            middle = torch.relu(block.norm2(first))
            x = (x if block.shortcut is None else block.shortcut(entry)) + block.conv2(middle)
            found.append((entry, first, middle, x))
        return found

    def _mean(self, outputs: Any) -> float:
        total = 0.0
        for x, (_, y) in zip(outputs, self.batches, strict=True):
            logits = self.model.head(torch.relu(self.model.norm(x)).mean((2, 3)))
            total += float(F.cross_entropy(logits.double(), y, reduction="sum"))
        return total / sum(len(y) for _, y in self.batches)


@torch.no_grad()
def loss_of(model: nn.Module, batches: Sequence[Batch], batch_statistics: bool) -> float:
    """The same loss of a model as it is."""
    model = copy.deepcopy(model)
    if not batch_statistics:
        recalibrate(model, batches)
    model.train(batch_statistics)
    total = sum(float(F.cross_entropy(model(x).double(), y, reduction="sum")) for x, y in batches)
    return total / sum(len(y) for _, y in batches)


def sample(
    outside: Mapping[str, Tensor], counts: Mapping[str, int], choices: Mapping[str, Layers], each: int,
    generator: torch.Generator,
) -> list[Candidate]:  # fmt: skip
    """Candidates, in each layer in proportion to what is grown there.

    Args:
        outside: bool, the weights that may grow.
        counts: how many are grown per layer.
        choices: score → what it would grow (bool).
        each: how many of each choice; as many as of all of them are drawn from all of `outside`.
    """
    pools = {"random": (dict(outside), each * len(choices))}
    pools |= {name: (dict(choice), each) for name, choice in choices.items()}
    taken: set[tuple[str, int]] = set()
    found = []
    for source, (pool, number) in pools.items():
        for layer, count in counts.items():
            flat = pool[layer].flatten().nonzero().flatten()
            share = max(1, round(number * count / sum(counts.values())))
            for i in flat[torch.randperm(len(flat), generator=generator)[:share]].tolist():
                if (layer, i) not in taken or source != "random":
                    index = tuple(int(n) for n in torch.unravel_index(torch.tensor(i), pool[layer].shape))
                    found.append(Candidate(layer, index, source))  # type: ignore[arg-type]
                taken.add((layer, i))
    return found


def correlations(
    scores: Mapping[str, Sequence[float]], worth: Sequence[float], candidates: Sequence[Candidate], least: int = 6
) -> dict[str, dict[str, float]]:
    """Score → Spearman's correlation with `worth`: over all candidates and over the random ones, pooled and within
    layers (mean over layers of at least `least`, weighted by their candidates)."""
    subsets = {
        "random": [i for i, c in enumerate(candidates) if c.source == "random"],
        "all": list(range(len(candidates))),
    }
    found: dict[str, dict[str, float]] = {name: {} for name in scores}
    for label, subset in subsets.items():
        layers = {candidates[i].layer for i in subset}
        for name, values in scores.items():
            found[name][f"{label}_pooled"] = _spearman([values[i] for i in subset], [worth[i] for i in subset])
            weighted = weight = 0.0
            for layer in sorted(layers):
                inside = [i for i in subset if candidates[i].layer == layer]
                if len(inside) >= least:
                    weighted += len(inside) * _spearman([values[i] for i in inside], [worth[i] for i in inside])
                    weight += len(inside)
            found[name][f"{label}_layers"] = weighted / max(weight, 1.0)
    return found


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    if len(set(a)) < 2 or len(set(b)) < 2 or not all(map(math.isfinite, (*a, *b))):
        return 0.0
    return float(spearmanr(a, b).statistic)
