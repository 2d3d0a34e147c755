"""What methods may ask of channels: to prune below the budget, to reactivate, to grow back up to it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regrow import codes, names, optim_state
from regrow.actions import Explore, Final, Grow, Prune, Select, Start
from regrow.budgets.allocation import allocate, uniform
from regrow.budgets.limits import ChannelBudgets, left_dense
from regrow.coupling.couple import couple
from regrow.coupling.labels import FORBIDDEN, OUTPUT, TOKENS, UNUSED
from regrow.criteria import CRITERIA
from regrow.errors import UserError
from regrow.groups import Block
from regrow.latency.table import LatencyTable
from regrow.patterns.block_losses import BlockLosses, shared_out
from regrow.patterns.channel_options import ChannelOptions
from regrow.patterns.channel_saliency import ChannelSaliency
from regrow.patterns.gates import gated
from regrow.saliency import Role
from regrow.schedule import Span
from regrow.state import Init
from regrow.surgery.resize import Index
from regrow.surgery.width import Masked, Thin, Width, active_entries
from regrow.tracing.flops import count_flops
from regrow.units import Attached, Units, check_ranks_at_once

_PROFILE_SECONDS = 60.0
_MEASURES = "regrow measures what the layers of this model cost on this machine, which takes up to a minute"
_MEASURED = (
    "regrow has measured a latency table of this model and machine; sparsifier.latency_table.save('latency.json') "
    "keeps it for Channels(table='latency.json'), and `regrow profile` measures one more finely"
)

Masks = dict[str, Tensor]  # group → bool [channels]


class ChannelUnits(Units):
    """The coupled channels of one model.

    Sparsity is that of the tightest budget: 1 − budget / cost of the dense model. On the way there all budgets have
    gone the same share of theirs. An update prunes down to the budget less the churn (of what can be removed at all),
    and grows back up to it.

    Args:
        pattern: the budgets, and how channels are chosen.
        model: stays as it is.
        example_inputs: one batch, which is followed through the model.

    Raises:
        UserError: where no channels can be removed, or the budgets cannot be met.
    """

    saliency: ChannelSaliency

    def __init__(self, pattern: ChannelOptions, model: nn.Module, example_inputs: Any) -> None:
        super().__init__()
        self.pattern, self.model = pattern, model
        self.resizes = pattern.thin
        self.coupling = couple(
            model, example_inputs, forbid=pattern.exclude, normalised=pattern.normalised, outputs=pattern.outputs,
            blocks=bool(pattern.blocks), heads=pattern.heads, time_limit=pattern.time_limit,
        )  # fmt: skip
        if not self.coupling.groups:
            raise UserError(
                f"no channels of this model can be removed: {left_dense(model, self.coupling) or 'it has no layers'}"
            )
        self.dense, self.decided = self.coupling.dense, frozenset([FORBIDDEN, OUTPUT, TOKENS])
        if self.coupling.untrained:
            self.note = f"the channels were not tried in training mode: {self.coupling.untrained}"
        whole = [f"{name} cannot go whole: {why}" for name, why in self.coupling.whole.items()]
        if pattern.blocks and not (self.coupling.blocks or whole):
            whole = ["no block can go whole, as no branch of a residual sum has channels of its own"]
        self.note = "\n".join(filter(None, (self.note, *whole)))
        self.blocks = tuple(block.id for block in self.coupling.blocks)
        cut = {part.name for group in self.coupling.groups for part in group.slices}
        self.parameters = {name: p for name, p in names.parameters(model).items() if name in cut}
        self.flops = count_flops(model, example_inputs)
        table = _table_of(pattern, model, example_inputs) if "latency" in pattern.budgets else None
        units = {} if table is None else gated(model, example_inputs, self.coupling, table)
        self.budgets = ChannelBudgets(pattern, model, self.coupling, self.flops, table, units)
        if table is not None and pattern.table is None:  # once nothing is refused any more
            print(_MEASURED, file=sys.stderr)
        self.doubts = (*self.budgets.idle(), *self._unused())
        self.sizes = {group.id: group.size for group in self.coupling.groups}
        self.floor = {group.id: pattern.floor_of(group) for group in self.coupling.groups}
        self.steps = {group.id: pattern.step_of(group) for group in self.coupling.groups}
        self.steps |= dict.fromkeys(self.blocks, 1)
        self._price()

    def _unused(self) -> tuple[str, ...]:
        """A sentence on layers that the example inputs do not reach, as what they read may lose channels."""
        found = [name for name, why in self.dense.items() if why.startswith(UNUSED)]
        layers = [name for name, p in names.parameters(self.model).items() if name in found and p.dim() > 1]
        if not layers:
            return ()
        more = f" (and {len(layers) - 1} more)" if layers[1:] else ""
        return (
            f"the forward pass of the example inputs does not use {layers[0]}{more}: where that of other inputs does, "
            "it may read channels that are gone then; pass inputs that use all layers, or exclude those before",
        )

    def _price(self) -> None:
        self.prices, self.table = self.budgets.prices, self.budgets.table
        dense = self.prices.dense
        self._shares = {kind: min(1.0, amount / dense[kind]) for kind, amount in self.budgets.amounts.items()}
        self.target = 1 - min(self._shares.values())

    def attach(self, attached: Attached) -> None:
        for optimizer in attached.optimizers if self.blocks and self.pattern.thin else ():
            inner = optim_state.state_owner(optim_state.unwrap(optimizer))
            if error := optim_state.fails_without_entries(inner):
                raise UserError(
                    f"{type(inner).__name__} fails on parameters that have no entries, as those of a block have none "
                    f"while it is gone ({error}): take another optimizer, or Channels(thin=False)"
                )
        self.states = attached.states
        self.active: Masks = {name: torch.ones(size, dtype=torch.bool) for name, size in self.sizes.items()}
        self.previous = dict(self.active)
        self.grown: Masks = {name: ~mask for name, mask in self.active.items()}
        self.exploring = False
        kind = Thin if self.pattern.thin else Masked
        self._width: Width = kind(self.model, self.coupling, self.states, attached.optimizers)
        self._on_resize = attached.on_resize if self.pattern.thin else None
        self._inside = self._compacted = False
        self.saliency = ChannelSaliency(self.model, self.coupling, attached, self._width)
        self._agree = attached.ranks.agree
        self._losses = None
        if self.pattern.blocks == "loss" and attached.losses is not None:
            self._losses = BlockLosses(self.model, self.coupling, attached.losses)
            self._losses.check(self.saliency.criterion_of("prune"))

    def _limits(self, sparsity: float, churn: float = 0.0) -> dict[str, float]:
        """Kind → what may be spent at a sparsity, less the churn of what can be removed at all."""
        progress = 1.0 if self.target == 0 else min(sparsity / self.target, 1.0)
        dense = self.prices.dense
        limits = {
            kind: self.budgets.amounts[kind] if progress == 1 else (1 - progress * (1 - share)) * dense[kind]
            for kind, share in self._shares.items()
        }
        if not churn:
            return limits
        smallest = self.prices.smallest(self.budgets.least)
        return {
            kind: max(smallest[kind], smallest[kind] + (1 - churn) * (limit - smallest[kind]))
            for kind, limit in limits.items()
        }

    # -- transitions -------------------------------------------------------------------------------------------------

    def _start(self, action: Start, span: Span) -> None:
        limits = self._limits(action.sparsity)
        if all(limits[kind] >= self.prices.dense[kind] for kind in limits):
            return
        everything = {name: torch.ones(size, dtype=torch.bool) for name, size in self.sizes.items()}
        if action.how == "criterion":
            if self.step == 0:
                check_ranks_at_once(self.saliency.criterion)
            self._keep(everything, limits, self._by("prune"), "prune")
        elif any(self.prices.cost(self.floor)[kind] > limit for kind, limit in limits.items()):
            self._keep(
                everything, limits, lambda name: self._rank(CRITERIA["random"], name)
            )  # only without some blocks
        else:
            counts = uniform(self.prices, self.floor, self.steps, limits)
            noise = {name: self._rank(CRITERIA["random"], name) for name in self.sizes}
            self._become({name: _best(noise[name], everything[name], counts[name]) for name in self.sizes})

    def _prune(self, action: Prune, span: Span) -> None:
        self._keep(self.active, self._limits(action.sparsity, action.churn), self._by("prune"), "prune")

    def _explore(self, action: Explore, span: Span) -> None:
        self.exploring = True
        for state in self.states.values():
            code = torch.full_like(state.flags, codes.EXPLORED)
            code[state.active] = codes.FROZEN if span.trains == "removed" else codes.TRAINABLE
            state.transition(code, action.value)

    def _grow(self, action: Grow, span: Span) -> None:
        scores = {name: self._by("grow")(name) for name in self.sizes}
        worth = self._worth(self.active, scores, "grow")
        counts = self._counts(self.active, worth, self._limits(action.sparsity), grow=True)
        before = self.active
        missing = {name: counts[name] - int(before[name].sum()) for name in self.sizes}
        chosen = {name: before[name] | _best(scores[name], ~before[name], missing[name]) for name in self.sizes}
        self.exploring = False
        self._become(chosen, action.init)
        self.grown = {name: self.active[name] & ~before[name] for name in self.sizes}
        for name, new in self.grown.items():
            self._count(grown=[new], regrown=[new & self.previous[name]])

    def _select(self, action: Select, span: Span) -> None:
        raise UserError("channels that are removed have no scores of their own; use IEE, which explores them")

    def end_at_target(self, step: int, shares_out: bool = False) -> None:
        self.step = step
        self.exploring = False
        self._become(self.previous, "mru")
        criterion = self.saliency.criterion
        read = CRITERIA["magnitude"] if criterion.uses_grad else criterion
        self._keep(self.active, self._limits(self.target), lambda name: self._rank(read, name))
        self.mark()

    def _keep(
        self, among: Masks, limits: Mapping[str, float], scores: Callable[[str], Tensor], role: Role | None = None
    ) -> None:
        """The best of these channels that fit the budgets; `role` of the scores, where the method asks for them."""
        found = {name: scores(name) for name in self.sizes}
        worth = found if role is None else self._worth(among, found, role)
        counts = self._counts(among, worth, limits, grow=False)
        before = self.active
        self._become({name: _best(found[name], among[name], counts[name]) for name in self.sizes})
        for name in self.sizes:
            still, grown = self.active[name], self.grown[name]
            self._count(pruned=[before[name] & ~still], grown_before=[grown], survived=[grown & still])

    def _counts(
        self, among: Masks, scores: Mapping[str, Tensor], limits: Mapping[str, float], grow: bool
    ) -> dict[str, int]:
        """How many channels each group has afterwards: all of `among` and the best others, or the best of `among`."""
        now = {name: int(mask.sum()) for name, mask in among.items()}
        if self.pattern.distribution == "uniform":
            found = uniform(self.prices, self.floor, self.steps, limits)
            return {name: max(n, now[name]) if grow else min(n, now[name]) for name, n in found.items()}
        between, values = {}, {}
        for name, mask in among.items():
            least = min(self.floor[name], self.sizes[name]) if grow and not now[name] else now[name]
            between[name] = (least, self.sizes[name]) if grow else (min(self.floor[name], now[name]), now[name])
            ranked = scores[name][~mask if grow else mask].sort(descending=True).values.double().clamp(min=0).numpy()
            values[name] = np.concatenate([np.zeros(now[name]), ranked]) if grow else ranked
        together = [block.members for block in self._in_question(among, grow)]
        return allocate(
            self.prices, values, between, limits,
            now=now, round_to=self.steps, solver=self.pattern.solver, together=together,
        )  # fmt: skip

    def _in_question(self, among: Masks, grow: bool) -> list[Block]:
        """The blocks that may go, or come back; what is left of a block, once it is explored, stays."""
        return [block for block in self.coupling.blocks if bool(among[block.id].any()) != grow]

    def _worth(self, among: Masks, scores: Mapping[str, Tensor], role: Role) -> Mapping[str, Tensor]:
        """The scores, of blocks as the loss without them says it, where it is asked and scores have its unit."""
        if self._losses is None or self.saliency.criterion_of(role).signed is None:
            return scores
        grow = role == "grow"
        shown = {name: torch.ones_like(mask) for name, mask in among.items()} if grow else among
        losses = self._losses(shown, self._in_question(among, grow))
        return shared_out(scores, {name: ~mask if grow else mask for name, mask in among.items()}, losses)

    def _become(self, masks: Masks, init: Init = "zero") -> None:
        """Puts a structure in force, the same on all ranks."""
        device = next(iter(self.states.values())).param.device
        flat = torch.cat([masks[name] for name in self.sizes]).to(torch.uint8).to(device)
        parts = self._agree(flat).cpu().to(torch.bool).split(list(self.sizes.values()))
        self.active = {name: part.clone() for name, part in zip(self.sizes, parts, strict=True)}
        params = {name: state.param for name, state in self.states.items()}
        for name, mask in active_entries(self.coupling, self.active, params).items():
            self.states[name].transition(mask.to(torch.uint8) * codes.TRAINABLE, init)

    def _by(self, role: Role) -> Callable[[str], Tensor]:
        return lambda name: self.saliency.scores(role, name, self.step)

    def _rank(self, criterion: Any, name: str) -> Tensor:
        return self.saliency.rank(criterion, name, self.step)

    # -- what an update did ------------------------------------------------------------------------------------------

    def mark(self) -> None:
        self.previous = self.active
        self.tally = {}

    def _overlap(self) -> Iterable[tuple[Tensor, Tensor]]:
        return ((self.active[name], self.previous[name]) for name in self.sizes)

    def record(self, update: int) -> dict[str, float | int | None]:
        cost = self.prices.cost({name: kept for name, (kept, _) in self.widths().items()})
        return super().record(update) | {kind: cost[kind] / self.prices.dense[kind] for kind in cost}

    def index(self) -> Mapping[str, Index]:
        return self._width.index

    def active_of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        cut = {part.name for group in self.coupling.groups for part in group.slices}
        found = {name: tensor for name, tensor in tensors.items() if name in cut}
        return active_entries(self.coupling, self.active, found)

    def widths(self) -> dict[str, tuple[int, int]]:
        return {name: (int(mask.sum()), self.sizes[name]) for name, mask in self.active.items()}

    def planned(self) -> Final | None:
        if any(now > end * (1 + 1e-9) for now, end in self.costs().values()):
            return None  # which channels go is found out on the way
        return {name: (int(state.active.sum()), state.flags.numel()) for name, state in self.states.items()}

    def costs(self) -> dict[str, tuple[float, float]]:
        cost = self.prices.cost({name: kept for name, (kept, _) in self.widths().items()})
        return {kind: (cost[kind] / self.prices.dense[kind], share) for kind, share in self._shares.items()}

    # -- for the engine ----------------------------------------------------------------------------------------------

    @contextmanager
    def full_width(self) -> Iterator[None]:
        if self._inside or self._compacted:
            yield
            return
        shapes = [state.param.shape for state in self.states.values()]
        self._width.widen()
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
            for state in self.states.values():
                state.write_zeros()
            if not self.exploring:
                self._width.narrow(self.active)
            if self._on_resize and shapes != [state.param.shape for state in self.states.values()]:
                self._on_resize()

    def compact(self) -> None:
        if not self._compacted:
            self._width.compact(self.active)
        self._compacted = True
        for state in self.states.values():
            state.at_rest = True

    def parts(self) -> list[object]:
        return [*super().parts(), self._width, self.budgets]

    @property
    def resized(self) -> bool:
        return bool(self._width.index) and not self._compacted

    def state_dict(self) -> dict[str, Any]:
        masks = {"active": self.active, "previous": self.previous, "grown": self.grown}
        return {
            **super().state_dict(),
            "exploring": self.exploring,
            "table": self.table.to_json() if self.table else None,
            **{what: {name: mask.clone() for name, mask in by_name.items()} for what, by_name in masks.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.exploring = state["exploring"]
        if state["table"] is not None:  # what is measured a second time would be a little different
            self.budgets.adopt(LatencyTable.from_json(state["table"]))
            self._price()
        self.active, self.previous, self.grown = (dict(state[what]) for what in ("active", "previous", "grown"))


def _table_of(pattern: ChannelOptions, model: nn.Module, example_inputs: Any) -> LatencyTable:
    """The latency table that a pattern names, or one that is measured now."""
    given = pattern.table
    if isinstance(given, LatencyTable):
        return given
    if given is not None:
        return LatencyTable.load(given)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise UserError("several processes cannot measure latency at once; run `regrow profile` and give table=")
    from regrow.profiling import profile

    print(_MEASURES, file=sys.stderr)
    threads = torch.get_num_threads()
    table, _ = profile(model, example_inputs, threads=threads, time_limit=_PROFILE_SECONDS, check=1)
    return table


def _best(scores: Tensor, among: Tensor, count: int) -> Tensor:
    """bool: the highest scores among the candidates, ties by index."""
    order = scores.masked_fill(~among, -torch.inf).sort(descending=True, stable=True).indices
    chosen = torch.zeros_like(among)
    chosen[order[:count]] = True
    return chosen & among
