"""How much each layer, or group of channels, can lose before the loss moves: prunes one at a time, and puts it back.

>>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
>>> held_out = [(torch.randn(16, 4), torch.randint(3, (16,)))]
>>> found = scan(net, held_out, sparsities=(0.5, 0.9))
>>> [(layer.name, layer.kept) for layer in found.layers]
[('0.weight', (16, 3)), ('2.weight', (12, 2))]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from regrow import batchnorm, names, shards
from regrow.coupling.couple import couple
from regrow.criteria import Criterion
from regrow.errors import UserError, percent
from regrow.groups import Coupling
from regrow.losses import Loss, MeanLoss, Measured, classification, left_as_it_was
from regrow.patterns.channel_saliency import ChannelSaliency
from regrow.patterns.channels import Channels
from regrow.patterns.entries import EntryPattern
from regrow.patterns.nm import NM
from regrow.patterns.pattern import Pattern
from regrow.patterns.weights import Weights
from regrow.saliency import Saliency, Scoring
from regrow.sensitivity import LayerScan, Scan
from regrow.shards import ALONE
from regrow.state import WeightState
from regrow.surgery import resize
from regrow.surgery.width import Masked
from regrow.units import Attached

SPARSITIES = (0.5, 0.7, 0.9, 0.95, 0.99)

Progress = Callable[[int, int], object]


def scan(
    model: nn.Module,
    batches: Iterable[Any],
    pattern: Pattern | None = None,
    *,
    loss: Loss | None = None,
    sparsities: Sequence[float] | None = None,
    criterion: str | Criterion | Callable[..., Tensor] = "magnitude",
    example_inputs: Any = None,
    recalibrate: Iterable[Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scan:
    """Measures how much each layer, or coupled group of channels, can lose before the loss moves.

    Each by itself is pruned at once to several sparsities, the loss is measured in eval mode, and what was there is put
    back. Afterwards all is as it was to the bit, also after an error or Ctrl-C: parameters, buffers, gradients, modes,
    and the random state of Python, NumPy and torch. It takes layers × sparsities × batches forward passes.

    Args:
        model: on any device, best a trained one; of one that is sparse already, removed weights go first.
        batches: held-out data, as ``loss`` takes it, all of which is used: ``itertools.islice(loader, 8)``.
        pattern: what is removed: `Weights` (the default, with all that it finds), `Blocks`, `NM` (to its own
            sparsity), `Channels`, or a pattern of entries of one's own. Only which units there are matters; sparsities,
            distributions, budgets, ``round_to`` and ``min_channels`` do not, and the first layer is scanned, too.
        loss: ``loss(model, batch)`` → the mean loss of a batch (a scalar tensor), or a pair of it and the accuracy (a
            fraction). Default: those of classification, for batches ``(inputs, labels)``. Batches count by their
            examples, the length of their first part.
        sparsities: increasing shares of a layer to remove, in (0, 1); default `SPARSITIES`. One unit stays at least.
        criterion: that ranks, as in `Sparsifier`. Gradients are those of the loss on ``batches`` in eval mode.
        example_inputs: one batch as the model takes it: needed for `Channels`, and as in `Sparsifier` for others.
        recalibrate: batches, as `regrow.recalibrate` takes them, from which statistics of batch norms are re-estimated
            before each measurement, that of the whole network too. None: they stay as they are.
        seed: of criteria that draw at random, and of what a model draws while it is measured (the same each time).
        progress: called with (measurements done, all of them).

    Returns:
        Losses by layer and sparsity, with `Scan.save`, and `Scan.distribution` for `Weights`.

    Raises:
        UserError: for arguments out of their range, a whole network without a finite loss, or a pattern that does not
            fit the model.
    """
    chosen = _pattern(pattern)
    shares, ranking = _sparsities(chosen, sparsities), Criterion.of(criterion)
    _refuse_shards(model)
    with torch.inference_mode(False), left_as_it_was(model):  # where tensors count their changes
        fresh = None if recalibrate is None else list(recalibrate)
        measure = MeanLoss(model, list(batches), loss or classification, fresh, seed)
        find = _groups if isinstance(chosen, Channels) else _layers
        parts = find(names.unwrap(model), chosen, example_inputs, ranking, measure, seed)  # type: ignore[arg-type]
        layers, whole = _measured(parts, shares, measure, progress)
    return Scan(
        chosen.name, ranking.name, shares, whole.loss, whole.accuracy, measure.count, measure.examples,
        fresh is not None, layers, type(names.unwrap(model)).__name__,
    )  # fmt: skip


def _refuse_shards(model: nn.Module) -> None:
    sharded = next((name for name, p in names.parameters(model).items() if shards.is_sharded(p)), None)
    if sharded is not None:
        raise UserError(f"{sharded} is sharded (a DTensor), which scan cannot prune: scan the model before sharding it")


# ---- arguments ----


def _pattern(pattern: Pattern | None) -> EntryPattern | Channels:
    """The pattern, with no layer left out for the sake of its distribution."""
    if pattern is None:
        return Weights(0.0, "er")
    if not isinstance(pattern, (EntryPattern, Channels)):
        raise UserError(f"pattern is {pattern!r}, but scan takes Weights, Blocks, NM or Channels, or one of one's own")
    if isinstance(pattern, Channels) and pattern.normalised:
        raise UserError("scan removes no channels that are normalised together: set normalised=False")
    if (
        is_dataclass(pattern)
        and getattr(pattern, "distribution", None) == "uniform"
        and isinstance(pattern, EntryPattern)
    ):
        return replace(pattern, distribution="er")
    return pattern


def _sparsities(pattern: Pattern, given: Sequence[float] | None) -> tuple[float, ...]:
    if isinstance(pattern, NM):
        if given is not None:
            raise UserError(
                f"NM({pattern.n}, {pattern.m}) has one sparsity, {pattern.sparsity:g}: leave out sparsities"
            )
        return (pattern.sparsity,)
    shares = tuple(SPARSITIES if given is None else given)
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise UserError(f"sparsities has {share!r}, but they must lie in (0, 1){percent(share)}")
    if not shares or any(a >= b for a, b in pairwise(shares)):
        raise UserError("sparsities must be one or several numbers that increase, as in (0.5, 0.9)")
    return tuple(float(share) for share in shares)


# ---- what is removed ----


@dataclass(frozen=True)
class _Part:
    """A layer or a group.

    Attributes:
        keep: sparsity → how many units stay.
        pruned: inside it, the network has so many of them, the best; afterwards all, to the bit.
    """

    name: str
    shape: tuple[int, ...]
    units: int
    keep: Callable[[float], int]
    pruned: Callable[[int], AbstractContextManager[None]]


def _layers(
    model: nn.Module, pattern: EntryPattern, example: Any, criterion: Criterion, measure: MeanLoss, seed: int
) -> list[_Part]:
    selection = pattern.select(model, example)
    states = _states(selection.parameters)
    saliency = Saliency(states, criterion, {"scan": (Scoring("prune", criterion),)}, seed)
    _observe(saliency, states, criterion, measure)

    @contextmanager
    def pruned(name: str, k: int) -> Iterator[None]:
        parameter, axis = selection.parameters[name].data, selection.axes.get(name, -1)
        scores = saliency.scores("prune", name, 0).movedim(axis, -1)
        nothing = torch.zeros_like(scores, dtype=torch.bool)
        stays = pattern.best(scores, k, ~nothing, nothing).movedim(-1, axis)
        before = parameter.clone()
        try:
            parameter.masked_fill_(~stays, 0)
            yield
        finally:
            parameter.copy_(before)

    return [
        _Part(
            name, tuple(p.shape), p.numel() // pattern.unit_size, partial(_kept, p.numel() // pattern.unit_size, 1),
            partial(pruned, name),
        )
        for name, p in selection.parameters.items()
    ]  # fmt: skip


def _groups(
    model: nn.Module, pattern: Channels, example: Any, criterion: Criterion, measure: MeanLoss, seed: int
) -> list[_Part]:
    if example is None:
        raise UserError("Channels follows a batch through the model; pass example_inputs=one batch to scan")
    coupling = couple(
        model, example, forbid=pattern.exclude, outputs=pattern.outputs, heads=pattern.heads,
        time_limit=pattern.time_limit,
    )  # fmt: skip
    if not coupling.groups:
        raise UserError("no channels of this model can be removed: regrow inspect --channels says why")
    cut = {part.name for group in coupling.groups for part in group.slices}
    states = _states({name: p for name, p in names.parameters(model).items() if name in cut})
    attached = Attached(states, [], criterion, {"scan": (Scoring("prune", criterion),)}, ALONE, seed)
    saliency = ChannelSaliency(model, coupling, attached, Masked(model, coupling, states, []))
    _observe(saliency, states, criterion, measure)
    tensors = names.tensors(model)

    @contextmanager
    def pruned(name: str, k: int) -> Iterator[None]:
        order = saliency.scores("prune", name, 0).sort(descending=True, stable=True).indices
        stays = torch.zeros(len(order), dtype=torch.bool)
        stays[order[:k]] = True
        alone, keep = Coupling((coupling[name],)), {name: stays}
        before = {touched: tensors[touched].detach().clone() for touched in alone.kept(keep, zeroed=True)}
        try:
            with torch.no_grad():
                resize.zero(model, alone, keep)
            yield
        finally:
            batchnorm.write(tensors, before)

    return [
        _Part(
            group.id, (group.size,), group.size, partial(_kept, group.size, group.multiple), partial(pruned, group.id)
        )
        for group in coupling.groups
    ]


def _states(parameters: Mapping[str, nn.Parameter]) -> dict[str, WeightState]:
    """As scores are asked of them; they change nothing."""
    return {name: WeightState(name, p, dict, holds_zero=False) for name, p in parameters.items()}


def _kept(units: int, multiple: int, sparsity: float) -> int:
    return min(units, max(1, round((1 - sparsity) * units / multiple)) * multiple)


def _observe(saliency: Saliency, states: Mapping[str, WeightState], criterion: Criterion, measure: MeanLoss) -> None:
    """Scores all batches, where the criterion needs their gradients."""
    for _ in measure.gradients() if criterion.uses_grad else ():
        there = {name: state for name, state in states.items() if state.grad is not None}
        finite = torch.stack([state.grad.sum(dtype=torch.float32) for state in there.values()]).isfinite().all()  # type: ignore[union-attr]
        saliency.observe(there, [Scoring("prune", criterion)], None, finite)
        saliency.close_step()


# ---- measuring ----


def _measured(
    parts: Sequence[_Part], sparsities: Sequence[float], measure: MeanLoss, progress: Progress | None
) -> tuple[tuple[LayerScan, ...], Measured]:
    whole = measure()
    if not math.isfinite(whole.loss):
        raise UserError(f"the loss of the whole network is {whole.loss}, so that nothing can be compared with it")
    tell = progress or (lambda done, total: None)
    layers, total, done = [], 1 + len(parts) * len(sparsities), 1
    tell(done, total)
    for part in parts:
        kept = tuple(part.keep(share) for share in sparsities)
        found: dict[int, Measured] = {part.units: whole}
        for count in kept:
            if count not in found:
                with part.pruned(count):
                    found[count] = measure()
            done += 1
            tell(done, total)
        accuracies = tuple(one for count in kept if (one := found[count].accuracy) is not None)
        losses = tuple(found[count].loss if math.isfinite(found[count].loss) else math.inf for count in kept)
        layers.append(LayerScan(part.name, part.shape, part.units, kept, losses, accuracies))
    return tuple(layers), whole
