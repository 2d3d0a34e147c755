"""The engine: masks and restores around the steps of optimizers, and crosses the ends of phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import attach, gradients, processes
from regrow.accounts import Accounts
from regrow.actions import Action
from regrow.batchnorm import HeldStatistics
from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.methods import Method
from regrow.optim_state import state_owner
from regrow.schedule import START, Boundary, Span, Timeline
from regrow.shards import local
from regrow.state import WeightState
from regrow.undo import Scope, all_or_nothing
from regrow.units import Units
from regrow.watch import OnTrial, OwnHook, Watch, WidthGuard


class Engine:
    """Runs a method on the units of a model, in the step hooks of its optimizers.

    Args:
        model: at its full width.
        method: what it asks for is carried out where its phases end.
        criterion: of the run.
        timeline: of the method.
        units: attached to the states of their parameters.
        optimizers: in the order in which they step.
        groups: id of a parameter → its optimizer, and the group that has it.
        on_resize: called after parameters have changed their shapes, or None.

    Attributes:
        step_count: steps done.
        records: of the updates done.
        finished: whether updates have been ended for good.
        inside_sparse: whether only the active structure is shown at present, and no step may come.
    """

    def __init__(
        self, model: nn.Module, method: Method, criterion: Criterion, timeline: Timeline, units: Units,
        optimizers: Sequence[Optimizer], groups: attach.Groups, on_resize: Callable[[], None] | None,
    ) -> None:  # fmt: skip
        self.model, self.method, self.criterion, self.timeline, self.units = model, method, criterion, timeline, units
        self.states: Mapping[str, WeightState] = units.states
        self.saliency = units.saliency
        self.optimizers = optimizers
        self._by_optimizer = {
            id(one): {n: s for n, s in self.states.items() if groups.get(id(s.holding.parameter), (None,))[0] is one}
            for one in optimizers
        }
        self._gradients = gradients.Gradients(self._by_optimizer, self.saliency)
        self._on_resize = on_resize
        self.step_count = 0
        self.records: tuple[dict[str, Any], ...] = ()
        self.finished = False
        self._skipped = False
        self._begun = False  # whether an optimizer is in the middle of its step
        self.inside_sparse = False
        self.statistics = HeldStatistics(model)  # of norms, as they were when exploration began
        self.accounts = Accounts(model, units.flops)
        with units.full_width():
            if timeline.start == 0:
                self._carry_out(method.at_start(units.target))
                self.units.enter(self.span)
            units.mark()
        self.loads = attach.LoadListener()
        self.watch = Watch(model, units.parameters, optimizers)
        self.guard = WidthGuard(units)

    @property
    def span(self) -> Span:
        """The phase of the coming step, and when."""
        if self.finished:
            return Span("fixed", self.step_count, max(self.timeline.total_steps, self.step_count + 1), None)
        return self.timeline.phase_at(self.step_count)

    def register(self) -> list[Any]:
        """Hooks on the model and its optimizers; returns their handles."""
        after_failure = OwnHook(self.make_good)
        handles: list[Any] = [
            self.model.register_forward_pre_hook(self.accounts.recorder, with_kwargs=True),
            self.model.register_load_state_dict_post_hook(self.loads),
            self.model.register_load_state_dict_pre_hook(self.guard),
            self.watch.hook(),
            self.model.register_forward_pre_hook(processes.refuse_join),
            self.model.register_forward_pre_hook(after_failure),
            self.model.register_state_dict_pre_hook(after_failure),
            self.model.register_state_dict_pre_hook(OnTrial(self.is_on_trial)),
            self.model.register_load_state_dict_pre_hook(after_failure),
        ]
        for one in self.optimizers:
            handles.append(state_owner(one).register_load_state_dict_pre_hook(self.guard))
            handles.append(state_owner(one).register_load_state_dict_post_hook(self.loads))
            # where the step is compiled, its tracer would follow them into selections, which it does not always survive
            handles.append(one.register_step_pre_hook(torch.compiler.disable(self._before_step)))
            handles.append(one.register_step_post_hook(torch.compiler.disable(self._after_step)))
        return handles

    def is_on_trial(self) -> bool:
        """Whether the model holds what is explored."""
        return self.span.explores and not self.inside_sparse

    # -- around a step -----------------------------------------------------------------------------------------------

    def prepare_all(self) -> None:
        """Scores and masks the gradients of this step, before any optimizer takes it."""
        for optimizer in self.optimizers:
            self.prepare(optimizer, None, after_skipped_step=True)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.inside_sparse:
            raise UserError("optimizer.step() inside sparse() would train what is only shown; step outside of it")
        self.watch.check()
        if self._begun:
            self.make_good()
        self.watch.stepping = True
        closure = gradients.closure_of(args, kwargs)
        if closure is not None:  # gradients come into being inside the step
            return gradients.with_closure(args, kwargs, lambda: self._prepare_after(closure))
        # fused optimizers get scaled gradients and may skip the step by themselves
        found_inf = getattr(optimizer, "found_inf", None)
        self._skipped = (found_inf is not None and bool(found_inf)) or self._is_rehearsal(optimizer)
        if self._skipped:
            return None
        scale = getattr(optimizer, "grad_scale", None)
        self.prepare(optimizer, None if scale is None else scale.reciprocal(), after_skipped_step=False)
        for state in self._by_optimizer[id(optimizer)].values():
            state.show_latent()
        self._begun = True
        return None

    def _is_rehearsal(self, optimizer: Optimizer) -> bool:
        """Whether a step only makes an optimizer's state, as `torch.distributed.checkpoint` has it done before loading:
        the first one, at no learning rate, of gradients that are zero everywhere, also in what is not sparsified: a
        head that starts at zero lets no gradient pass, but has one."""
        if optimizer.state or any(float(group.get("lr", 1)) != 0 for group in optimizer.param_groups):
            return False
        trained = [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]
        grads = [None if param.grad is None else local(param.grad) for param in trained]
        some = any(grad is None or bool(grad.any()) for grad in grads)
        return bool(grads) and bool(self.units.ranks.all(torch.tensor(not some)))

    def make_good(self, *_: object) -> None:
        """Ends what a step that has failed half-way has begun: latent values are hidden, what stands still stands."""
        for state in self.states.values():
            if self._begun:
                state.enforce()
            else:
                state.hide_latent()
        self._begun = False

    def _prepare_after(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            loss = closure()
        self.prepare_all()
        for state in self.states.values():
            state.show_latent()
        return loss

    def prepare(self, optimizer: Optimizer, unscale: Tensor | None, after_skipped_step: bool) -> None:
        if self.loads.unsettled:
            self._take_loaded()
        span = self.span
        due = self.saliency.due(span, self.step_count)
        self._gradients.prepare(optimizer, due, span, self.step_count, unscale, after_skipped_step)

    def _take_loaded(self) -> None:
        """Makes what has been loaded stand: it is what is frozen now, and zero where the structure is."""
        if any([state.adopt() for state in self.states.values()]):  # noqa: C419 (all of them)
            self.statistics.adopt()
        for state in self.states.values():
            state.fit_to_codes()
        self.loads.unsettled = False

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.watch.stepping = False
        if self._skipped:
            return
        closes = optimizer is self.optimizers[-1]
        ended = self.timeline.ended_at(self.step_count + 1) if closes and not self.finished else []
        for state in self._by_optimizer[id(optimizer)].values():
            state.enforce(update_follows=bool(ended))
        self._begun = False
        self._gradients.used(optimizer)
        if closes:
            self.saliency.close_step()
            with self._update_or_nothing() if ended else nullcontext():  # a step whose update fails is not counted
                self.step_count += 1
                for boundary in ended:
                    self._cross(boundary)
                if ended:
                    self.units.enter(self.span)
                for state in self.states.values():
                    state.hide_latent()

    # -- between phases ----------------------------------------------------------------------------------------------

    def all_or_nothing(self) -> AbstractContextManager[None]:
        parts = [self, *self.states.values(), self.statistics, self.accounts]
        parts += self.units.parts()
        keepers = [state_owner(one) for one in self.optimizers]
        return all_or_nothing(Scope(self.model, keepers, parts, self._on_resize))

    def _update_or_nothing(self) -> AbstractContextManager[None]:
        if not self.units.changes_states_alone:
            return self.all_or_nothing()
        parts = [self, self.statistics, self.accounts, *self.units.parts()]
        return all_or_nothing(Scope(self.model, (), parts, noting=tuple(self.states.values())))

    def _carry_out(self, actions: Sequence[Action]) -> None:
        """Does what the method asks for before the coming step, whose phase says what of it trains."""
        span = self.span
        for action in actions:
            self.units.carry_out(action, self.step_count, span)

    def _cross(self, boundary: Boundary) -> None:
        self.account()
        with self.units.full_width():
            if boundary.update == START:
                self._carry_out(self.method.at_start(self.units.target))
                self.units.mark()
            else:
                self.statistics.restore()
                self._carry_out(self.method.at_end(boundary, self.units.target))
                if self.span.trains == "removed":
                    self.statistics.hold()
            if boundary.last:
                if boundary.is_recorded:
                    self.records = (*self.records, self.units.record(boundary.update))
                else:
                    self.units.mark()
            self.saliency.forget()

    def densities(self) -> dict[str, float]:
        """Active / all entries of each sparsified parameter."""
        return {name: state.active_count / state.size for name, state in self.states.items()}

    def training_cost(self, example_inputs: Any = None) -> dict[str, float]:
        """As `regrow.Sparsifier.training_cost`."""
        self.account()
        with nullcontext() if example_inputs is None else self.units.full_width():
            return self.accounts.training_cost(example_inputs)

    def account(self) -> None:
        """Books the steps since the last call, all of one phase, for `training_cost`."""
        start, end = self.accounts.until, self.step_count
        if start == end:
            return
        span = self.timeline.phase_at(start)
        if self.finished:
            span = Span("fixed", start, end, None)
        dense = self.method.dense_gradient_steps(self.criterion, span, start, end)
        trained = self._trained_densities() if span.latent is not None and span.latent.backward else None
        self.accounts.book(end, span.phase, span.trains, dense, self.densities(), trained)

    def _trained_densities(self) -> dict[str, float]:
        """Entries that train / all entries of each sparsified parameter."""
        return {name: state.trainable_count / state.size for name, state in self.states.items()}

    def finish(self) -> None:
        """Ends updates for good, at the exact target."""
        with self.all_or_nothing():
            with self.units.full_width():
                self.statistics.restore()
                if self.step_count < self.timeline.end:
                    self.units.end_at_target(self.step_count, self.method.shares_out)
                    self.saliency.forget()
            self.finished = True
            for state in self.states.values():
                state.write_zeros()

    def stood_still(self) -> bool:
        """Whether the active structure was frozen in the step just done."""
        done = self.timeline.phase_at(max(0, self.step_count - 1))
        return done.trains == "removed" and not self.finished

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where it is, without what it belongs to."""
        return {
            "step": self.step_count,
            "finished": self.finished,
            "weights": {name: state.state_dict() for name, state in self.states.items()},
            "saliency": self.saliency.state_dict(),
            "units": self.units.state_dict(),
            "buffers": self.statistics.state_dict(),
            "history": list(self.records),
            "ledger": self.accounts.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores from `state_dict`, which has been checked; at full width."""
        if self.step_count == 0:
            for one in self.states.values():
                one.undo_start()  # the model may have been loaded before attaching pruned it
        self.step_count = state["step"]
        self.finished = state["finished"]
        for name, one in self.states.items():
            one.load_state_dict(state["weights"][name], self.span.latent)
        self.saliency.load_state_dict(state["saliency"])
        self.units.load_state_dict(state["units"])
        self.loads.unsettled = True
        self.records = tuple(dict(record) for record in state["history"])
        self.accounts.load_state_dict(state["ledger"], self.step_count)
        self.statistics.load_state_dict(state["buffers"])
