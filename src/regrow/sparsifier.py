"""The engine: attaches to an optimizer, masks and restores around its steps, and crosses the boundaries of phases."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import attach, codes, fingerprint, gradients, lengths, names, processes, restoring
from regrow import summary as summaries
from regrow.accounts import Accounts
from regrow.actions import Action
from regrow.batchnorm import HeldStatistics, norm_buffers, write
from regrow.cost import PhaseSteps
from regrow.criteria import Criterion
from regrow.ema import SparseAverage
from regrow.errors import UserError
from regrow.inputs import first_line
from regrow.methods import Method
from regrow.optim_state import keeps_zero, normalizes, state_owner
from regrow.patterns.pattern import Pattern
from regrow.schedule import START, Boundary, Span
from regrow.state import WeightState
from regrow.summary import Summary
from regrow.undo import Scope, all_or_nothing
from regrow.units import Attached
from regrow.watch import Watch, WidthGuard

if TYPE_CHECKING:
    from regrow.latency.table import LatencyTable

FORMAT = 2  # of state_dict


class Sparsifier:
    """Makes a model sparse while an optimizer trains it. Lives in the optimizer's step hooks: the loop stays as it is.

    Args:
        model: trained by the optimizer; its parameters stay plain tensors under their names. It may be compiled or
            wrapped in DistributedDataParallel.
        optimizer: a torch optimizer, wrapped by Accelerate or not; or all of them, in the order in which they step.
        pattern: what is sparsified and how far, e.g. ``Weights(0.9, "erk")``. May be left out for ``"dense"`` only.
        method: how; an instance such as ``IEE(h=50, j=50, q=50)``, or a registered name for its defaults.
        criterion: importance, for pruning and for growing: ``"magnitude"``, ``"taylor"``, ``"gradient"``, ``"random"``,
            or a function of (weight) or (weight, grad).
        total_steps: optimizer steps of the whole run, which schedules stretch over.
        seed: of everything that is drawn at random.
        example_inputs: one batch as the model takes it: a tensor, a tuple of positional arguments, a dict of keyword
            arguments, or (args, kwargs); patterns of channels follow it through the model.
        on_resize: called after parameters have changed their shapes, for whoever must know (see `Channels`'s thin).

    Raises:
        UserError: for anything that cannot work, before anything is changed.

    >>> net = nn.Linear(8, 4)
    >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> sparsifier = Sparsifier(net, sgd, pattern=Weights(0.75), method="static", total_steps=10)
    >>> sparsifier.density(), int((net.weight != 0).sum())
    (0.25, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        pattern: Pattern | None = None,
        method: Method | str | None = None,
        criterion: str | Criterion | Callable[..., Tensor] = "magnitude",
        total_steps: int | None = None,
        seed: int = 0,
        example_inputs: Any = None,
        on_resize: Callable[[], None] | None = None,
    ) -> None:
        self.model = attach.model_of(model)
        attach.check_pattern(pattern)
        self.pattern = pattern
        self.method, self.criterion = attach.method(method, pattern, Criterion.of(criterion))
        self.seed = attach.seed(seed)
        attach.check_on_resize(on_resize)
        self._records: tuple[dict[str, Any], ...] = ()
        self.step_count = 0
        self._optimizers = attach.optimizers(optimizer, Sparsifier)
        groups = attach.parameter_groups(self._optimizers)
        attach.check_model(self.model, groups)
        scorings = self.method.scorings(self.criterion)
        attach.check_together(self.pattern, self.method, scorings, total_steps, example_inputs)
        self.total_steps = lengths.total_steps(total_steps)  # what no other length would mend has been refused by now
        self._timeline = lengths.timeline_of(self.method, self.total_steps)
        self._units = attach.bind(self.pattern, self.method, model, example_inputs, on_resize)
        params = self._units.parameters
        self._shapes = {name: tuple(p.shape) for name, p in names.parameters(self.model).items()}
        attach.check_weights(params, groups)
        attach.check_shadow(self.method, params, groups)

        self._states = {name: _state(name, param, groups.get(id(param))) for name, param in params.items()}
        self._by_optimizer = {
            id(one): {name: s for name, s in self._states.items() if groups.get(id(s.param), (None,))[0] is one}
            for one in self._optimizers
        }
        for state in self._states.values():
            processes.agree(state.param.data)
        self._units.attach(
            Attached(self._states, self._optimizers, self.criterion, scorings, processes.agree, seed, on_resize)
        )
        self._saliency = self._units.saliency
        self._gradients = gradients.Gradients(self._by_optimizer, self._saliency)
        self._on_resize = on_resize
        self._finished = self._compacted = False
        self._skipped = False
        self._begun = False  # whether an optimizer is in the middle of its step
        self._shown_sparse = self._inside_sparse = False
        self._statistics = HeldStatistics(self.model)  # of norms, as they were when exploration began
        self._accounts = Accounts(self.model, self._units.flops)
        with self._units.full_width():
            if self._timeline.start == 0:
                self._carry_out(self.method.at_start(self._units.target))
            self._units.mark()
        self._loads = attach.LoadListener()
        self._watch = Watch(self.model, params, self._optimizers)
        self._guard = WidthGuard(self._units)
        self._handles = self._register()
        self._warn()

    def _warn(self) -> None:
        """Of what is allowed, and probably not meant."""
        lengths.warn_of_few_updates(self.method, self._timeline)
        left = {n: why for n, why in self._units.dense.items() if n not in self._states}
        sizes = {name: math.prod(shape) for name, shape in self._shapes.items()}
        said = summaries.unseen(summaries.reasons(left, sizes), sum(sizes.values()), self._units.decided)
        if said:
            warnings.warn(said, stacklevel=4)

    def _register(self) -> list[Any]:
        """Hooks on the model and its optimizers; returns their handles."""
        after_failure = attach.OwnHook(self._make_good)
        handles: list[Any] = [
            self.model.register_forward_pre_hook(self._accounts.recorder, with_kwargs=True),
            self.model.register_load_state_dict_post_hook(self._loads),
            self.model.register_load_state_dict_pre_hook(self._guard),
            self._watch.hook(),
            self.model.register_forward_pre_hook(processes.refuse_join),
            self.model.register_forward_pre_hook(after_failure),
            self.model.register_state_dict_pre_hook(after_failure),
            self.model.register_load_state_dict_pre_hook(after_failure),
        ]
        for one in self._optimizers:
            handles.append(state_owner(one).register_load_state_dict_pre_hook(self._guard))
            handles.append(state_owner(one).register_load_state_dict_post_hook(self._loads))
            handles.append(one.register_step_pre_hook(self._before_step))
            handles.append(one.register_step_post_hook(self._after_step))
        return handles

    # -- what users look at ------------------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """The phase of the coming step; "fixed" once updates have ended."""
        return self._span.phase

    @property
    def _span(self) -> Span:
        """The phase of the coming step, and when."""
        if self._finished:
            return Span("fixed", self.step_count, max(self.total_steps, self.step_count + 1), None)
        return self._timeline.phase_at(self.step_count)

    def __repr__(self) -> str:
        return f"Sparsifier: {self.summary().head()}"

    def summary(self) -> Summary:
        """What is sparsified and how far, what stays dense and why, when structures change, and what all of it costs:
        ``print(sparsifier.summary())``. ``print(sparsifier)`` shows its first lines."""
        return summaries.of(self)

    def dense_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter of the model at full width, by canonical name."""
        return self._shapes

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name → bool mask of the active structure (what is only being explored is not in it)."""
        return {name: state.active for name, state in self._states.items()}

    @property
    def history(self) -> list[dict[str, Any]]:
        """What each update pruned and grew, how much of the last growth survived, and the density then. Of more than
        10,000 updates every n-th is recorded, and the last, so that no more than these are kept."""
        return list(self._records)

    def density(self) -> float:
        """Active / all sparsified entries; 1.0 where nothing is sparsified."""
        return self._units.density()

    def layer_density(self) -> dict[str, float]:
        """The same, for each sparsified parameter."""
        return {name: codes.count(state.active) / state.flags.numel() for name, state in self._states.items()}

    def widths(self) -> dict[str, tuple[int, int]]:
        """Group of channels → (how many are active, how many there are); empty for other patterns."""
        return self._units.widths()

    @property
    def latency_table(self) -> LatencyTable | None:
        """What prices the latency of channels, as given or as measured when attaching (`LatencyTable.save` keeps it);
        None where there is no such budget."""
        return self._units.table

    def training_cost(self, example_inputs: Any = None) -> dict[str, float]:
        """Training FLOPs so far × those of as many dense steps: by phase, and "total" (`paper` formulas in cost.py).

        Args:
            example_inputs: what the model is called with; by default, what it was called with first.

        Raises:
            UserError: where neither is known: before the first batch, or for a model that was compiled from the start;
                where inputs are given for a model that has been compacted.
        """
        if example_inputs is not None and self._compacted:
            raise UserError("the dense model to compare with is gone; call training_cost() without inputs, or earlier")
        self._account()
        with nullcontext() if example_inputs is None else self.full_width():
            return self._accounts.training_cost(example_inputs)

    @property
    def ledger(self) -> dict[str, PhaseSteps]:
        """Phase → the steps done in it and the densities they ran at: what `regrow.cost.training_cost` takes."""
        self._account()
        return self._accounts.ledger

    # -- around a step -----------------------------------------------------------------------------------------------

    def prepare_step(self) -> None:
        """Scores and masks the gradients of this step. The optimizer's step does it by itself; call it before clipping
        gradients (and after unscaling them), so that their norm is that of the weights that train. Idempotent."""
        for optimizer in self._optimizers:
            self._prepare(optimizer, None, after_skipped_step=True)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._inside_sparse:
            raise UserError("optimizer.step() inside sparse() would train what is only shown; step outside of it")
        self._watch.check()
        if self._begun:
            self._make_good()
        self._watch.stepping = True
        closure = gradients.closure_of(args, kwargs)
        if closure is not None:  # gradients come into being inside the step
            return gradients.with_closure(args, kwargs, lambda: self._prepare_after(closure))
        # fused optimizers get scaled gradients and may skip the step by themselves
        found_inf = getattr(optimizer, "found_inf", None)
        self._skipped = found_inf is not None and bool(found_inf)
        if self._skipped:
            return None
        scale = getattr(optimizer, "grad_scale", None)
        self._prepare(optimizer, None if scale is None else scale.reciprocal(), after_skipped_step=False)
        for state in self._by_optimizer[id(optimizer)].values():
            state.show_latent()
        self._begun = True
        return None

    def _make_good(self, *_: object) -> None:
        """Ends what a step that has failed half-way has begun: latent values are hidden, what stands still stands."""
        for state in self._states.values():
            if self._begun:
                state.enforce()
            else:
                state.hide_latent()
        self._begun = False

    def _prepare_after(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            loss = closure()
        self.prepare_step()
        for state in self._states.values():
            state.show_latent()
        return loss

    def _prepare(self, optimizer: Optimizer, unscale: Tensor | None, after_skipped_step: bool) -> None:
        if self._loads.unsettled:
            self._take_loaded()
        span = self._span
        due = self._saliency.due(span, self.step_count)
        shadow = self.method.shadow_at(span, self.step_count)
        self._gradients.prepare(optimizer, due, span, self.step_count, shadow, unscale, after_skipped_step)

    def _take_loaded(self) -> None:
        """Makes what has been loaded stand: it is what is frozen now, and zero where the structure is."""
        if any([state.adopt() for state in self._states.values()]):  # noqa: C419 (all of them)
            self._statistics.adopt()
        for state in self._states.values():
            state.fit_to_codes()
        shadow = self.method.shadow
        if self.step_count == 0 and shadow is not None and shadow.fresh:
            for state in self._states.values():
                state.memory.zero_()  # what was never in use starts its preview from nothing
        self._loads.unsettled = False

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._watch.stepping = False
        if self._skipped:
            return
        closes = optimizer is self._optimizers[-1]
        ended = self._timeline.ended_at(self.step_count + 1) if closes and not self._finished else []
        for state in self._by_optimizer[id(optimizer)].values():
            state.enforce(update_follows=bool(ended))
        self._begun = False
        self._gradients.used(optimizer)
        if closes:
            self._saliency.close_step()
            with self._update_or_nothing() if ended else nullcontext():  # a step whose update fails is not counted
                self.step_count += 1
                for boundary in ended:
                    self._cross(boundary)
                for state in self._states.values():
                    state.hide_latent()

    # -- between phases ----------------------------------------------------------------------------------------------

    def _all_or_nothing(self) -> AbstractContextManager[None]:
        parts = [self, *self._states.values(), self._statistics, self._accounts]
        parts += self._units.parts()
        keepers = [state_owner(one) for one in self._optimizers]
        return all_or_nothing(Scope(self.model, keepers, parts, self._on_resize))

    def _update_or_nothing(self) -> AbstractContextManager[None]:
        if not self._units.changes_states_alone:
            return self._all_or_nothing()
        parts = [self, self._statistics, self._accounts, *self._units.parts()]
        return all_or_nothing(Scope(self.model, (), parts, noting=tuple(self._states.values())))

    def _carry_out(self, actions: Sequence[Action]) -> None:
        """Does what the method asks for before the coming step, whose phase says what of it trains."""
        span = self._span
        for action in actions:
            self._units.carry_out(action, self.step_count, span)
        self._units.enter(span)

    def _cross(self, boundary: Boundary) -> None:
        self._account()
        with self._units.full_width():
            if boundary.update == START:
                self._carry_out(self.method.at_start(self._units.target))
                self._units.mark()
            else:
                self._statistics.restore()
                self._carry_out(self.method.at_end(boundary, self._units.target))
                if self._span.trains == "removed":
                    self._statistics.hold()
            if boundary.last:
                if boundary.is_recorded:
                    self._records = (*self._records, self._units.record(boundary.update))
                else:
                    self._units.mark()
            self._saliency.forget()

    def _account(self) -> None:
        """Books the steps since the last call, all of one phase, for `training_cost`."""
        start, end = self._accounts.until, self.step_count
        if start == end:
            return
        span = self._timeline.phase_at(start)
        if self._finished:
            span = Span("fixed", start, end, None)
        dense = self.method.dense_gradient_steps(self.criterion, span, start, end)
        self._accounts.book(end, span.phase, span.trains, dense, self.layer_density())

    # -- evaluation, end, checkpoints --------------------------------------------------------------------------------

    @contextmanager
    def sparse(self) -> Iterator[None]:
        """Inside it, the model computes as its active structure, also while others are explored: for evaluating and
        saving. Afterwards everything is as it was, bit for bit."""
        self._make_good()
        for state in self._states.values():
            state.write_zeros()
        outermost, self._inside_sparse = not self._inside_sparse, True
        try:
            with self._active_only() if self._span.explores and outermost else nullcontext():
                yield
        finally:
            self._inside_sparse = not outermost

    @contextmanager
    def _active_only(self) -> Iterator[None]:
        weights = {name: state.hide_explored() for name, state in self._states.items()}
        self._shown_sparse = True
        try:
            with self._statistics.shown():
                yield
        finally:
            write({name: state.param for name, state in self._states.items()}, weights)
            self._shown_sparse = False

    def average(self, averaged: Any) -> SparseAverage:
        """Keeps a moving average of the weights as sparse, and as thin, as the model: call its ``update()`` after each
        step instead of the average's own, and evaluate and save inside its ``shown()``.

        Args:
            averaged: torch's `AveragedModel`, timm's `ModelEmaV3` or the like, made of the model before attaching.

        Raises:
            UserError: where it is no average of this model at full width.
        """
        return SparseAverage(self.model, self._units, averaged, self.sparse, self._stood_still)

    def _stood_still(self) -> bool:
        """Whether the active structure was frozen in the step just done."""
        done = self._timeline.phase_at(max(0, self.step_count - 1))
        return done.trains == "removed" and not self._finished

    def finalize(self) -> None:
        """Ends updates at the exact target, also in the middle of one; the structure stays fixed and enforced."""
        self._account()
        if self._finished:
            return
        with self._all_or_nothing():
            with self.full_width():
                self._statistics.restore()
                if self.step_count < self._timeline.end:
                    self._units.end_at_target(self.step_count)
                    self._saliency.forget()
            self._finished = True
            for state in self._states.values():
                state.write_zeros()

    def full_width(self) -> AbstractContextManager[None]:
        """Inside it, a model that trains thin has its full width: for saving and loading checkpoints of model and
        optimizer, whose shapes then do not depend on when. For patterns that resize nothing it does nothing."""
        return self._units.full_width()

    def compact(self) -> nn.Module:
        """Finalizes, takes the removed channels out of the model for good, and detaches. Returns the model (the same
        object, changed in place), for evaluating, exporting or `regrow.save`; to train it on, make a new optimizer.

        Raises:
            UserError: where the pattern is not one of channels.
        """
        if not self._units.widths():
            raise UserError("compact() takes out channels, but the pattern is not regrow.Channels")
        self.detach()
        self._units.compact()
        self._compacted = True
        return self.model

    def detach(self) -> None:
        """Finalizes and leaves: the model keeps its zeros, but nothing holds them any more."""
        self.finalize()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs beside model and optimizer: tensors, numbers, strings, lists and dicts only."""
        if self._shown_sparse:
            raise UserError("state_dict() inside sparse() would lose what is being explored; take it outside")
        self._guard.check()
        self._make_good()
        self._account()
        return {
            "format": FORMAT,
            "config": self._fingerprint(),
            "step": self.step_count,
            "finished": self._finished,
            "weights": {name: state.state_dict() for name, state in self._states.items()},
            "saliency": self._saliency.state_dict(),
            "units": self._units.state_dict(),
            "buffers": self._statistics.state_dict(),
            "history": self.history,
            "ledger": self._accounts.state_dict(),
        }

    def __deepcopy__(self, memo: object) -> Sparsifier:
        raise TypeError("a Sparsifier belongs to one optimizer; attach a new one and give it this one's state_dict()")

    def __reduce__(self) -> str:
        raise TypeError("a Sparsifier cannot be pickled; save its state_dict()")

    def _fingerprint(self) -> dict[str, str]:
        return fingerprint.of(
            self.method, self.pattern if self._states else None, self.criterion, self.total_steps, self.seed
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, bit for bit, once model and optimizer have been loaded (in any order;
        all three inside `full_width` where channels are trained thin).

        Raises:
            UserError: where it is of another model, method, pattern or run; nothing is changed then.
        """
        shapes = {name: tuple(one.flags.shape) for name, one in self._states.items()}
        try:
            fingerprint.check(state, FORMAT, self._fingerprint(), shapes)
            with self._all_or_nothing(), self.full_width():
                example = {"units": self._units.state_dict()}
                restoring.check(state, example, self._states, self._saliency.shapes, norm_buffers(self.model))
                self._load(state)
        except UserError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            raise UserError(f"the state is damaged: {first_line(error)}") from error

    def _load(self, state: Mapping[str, Any]) -> None:
        if self.step_count == 0:
            for one in self._states.values():
                one.undo_start()  # the model may have been loaded before attaching pruned it
        self.step_count = state["step"]
        self._finished = state["finished"]
        for name, one in self._states.items():
            one.load_state_dict(state["weights"][name], self._span.latent)
        self._saliency.load_state_dict(state["saliency"])
        self._units.load_state_dict(state["units"])
        self._loads.unsettled = True
        self._records = tuple(dict(record) for record in state["history"])
        self._accounts.load_state_dict(state["ledger"], self.step_count)
        self._statistics.load_state_dict(state["buffers"])


def _state(name: str, param: nn.Parameter, held: tuple[Optimizer, dict[str, Any]] | None) -> WeightState:
    """The state of a parameter in the hands of an optimizer's group, or of a frozen one that is in none's."""
    if held is None:
        return WeightState(name, param, dict, holds_zero=True)
    optimizer, group = held

    def optimizer_state() -> Any:
        return state_owner(optimizer).state.get(param, {})

    return WeightState(name, param, optimizer_state, keeps_zero(optimizer, group, param.dtype), normalizes(group))
