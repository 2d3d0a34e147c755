"""What users attach to a model and its optimizer: what they see of it, evaluation, the end, and checkpoints."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import aliases, attach, fingerprint, lengths, metrics, names, processes, rehearsal, resharding, restoring
from regrow import summary as summaries
from regrow.batchnorm import norm_buffers, write
from regrow.cost import PhaseSteps
from regrow.criteria import Criterion
from regrow.ema import SparseAverage
from regrow.engine import Engine
from regrow.errors import UserError
from regrow.inputs import first_line
from regrow.losses import Loss
from regrow.methods import Method
from regrow.optim_state import keeps_zero, normalizes, state_owner
from regrow.patterns.pattern import Pattern
from regrow.shards import Ranks
from regrow.state import WeightState
from regrow.summary import Summary
from regrow.units import Attached

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
        batches: a few batches of training data, as `loss` takes them, which are kept: what losses are measured on, only
            for patterns that do so (``Channels(blocks="loss")``).
        loss: ``loss(model, batch)`` → the mean loss of a batch, as the model trains by it. Default: cross-entropy of
            batches ``(inputs, labels)``.

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
        batches: Iterable[Any] | None = None,
        loss: Loss | None = None,
    ) -> None:
        self.model = attach.model_of(model)
        attach.check_pattern(pattern)
        self.pattern = pattern
        self.method, self.criterion = attach.method(method, pattern, Criterion.of(criterion))
        self.seed = attach.seed(seed)
        attach.check_on_resize(on_resize)
        optimizers = attach.optimizers(optimizer, Engine)
        groups = attach.parameter_groups(optimizers)
        attach.check_model(self.model, groups)
        scorings = self.method.scorings(self.criterion)
        attach.check_together(self.pattern, self.method, scorings, total_steps, example_inputs)
        losses = attach.losses(pattern, self.model, batches, loss, seed)
        self.total_steps = lengths.total_steps(total_steps)  # what no other length would mend has been refused by now
        lengths.timeline_of(self.method, self.total_steps)  # refuses what is too short before the model is looked at
        self._units = attach.bind(self.pattern, self.method, model, example_inputs, on_resize)
        self.method = self.method.at_target(self._units.target)
        timeline = lengths.timeline_of(self.method, self.total_steps)
        rehearsal.check(self.method, scorings, timeline, self._units.final, self._units.target)
        params = self._units.parameters
        self._shapes = {name: tuple(p.shape) for name, p in names.parameters(self.model).items()}
        attach.check_weights(params, groups)
        aliases.check_memory(self.model, params)
        ranks = attach.ranks(self.pattern, self._units, scorings, self.criterion)
        self._states = {name: _state(name, param, groups.get(id(param)), ranks) for name, param in params.items()}
        if params:
            ranks.require_same(self._fingerprint(), next(iter(params.values())).device)
        if not ranks.several:
            for state in self._states.values():
                processes.agree(state.param.data)
        self._units.attach(Attached(self._states, optimizers, self.criterion, scorings, ranks, seed, on_resize, losses))
        self._compacted = self._shown_sparse = False
        self._engine = Engine(
            self.model, self.method, self.criterion, timeline, self._units, optimizers, groups, on_resize
        )
        self._handles = self._engine.register()
        self._warn()

    def _warn(self) -> None:
        """Of what is allowed, and probably not meant."""
        lengths.warn_of_few_updates(self.method, self._engine.timeline)
        left = {n: why for n, why in self._units.dense.items() if n not in self._states}
        sizes = {name: math.prod(shape) for name, shape in self._shapes.items()}
        said = summaries.unseen(summaries.reasons(left, sizes), sum(sizes.values()), self._units.decided)
        for sentence in (said, *self._units.doubts):
            if sentence:
                warnings.warn(sentence, stacklevel=3)

    # -- what users look at ------------------------------------------------------------------------------------------

    @property
    def step_count(self) -> int:
        """Optimizer steps done."""
        return self._engine.step_count

    @property
    def phase(self) -> str:
        """The phase of the coming step; "fixed" once updates have ended."""
        return self._engine.span.phase

    def __repr__(self) -> str:
        return f"Sparsifier: {self.summary().head()}"

    def summary(self) -> Summary:
        """What is sparsified and how far, what stays dense and why, when structures change, and what all of it costs:
        ``print(sparsifier.summary())``. ``print(sparsifier)`` shows its first lines."""
        return summaries.of(self._engine, self.pattern, self._shapes)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name → bool mask of the active structure (what is only being explored is not in it); a DTensor like
        the parameter where that is one."""
        return {name: state.holding.whole(state.active) for name, state in self._states.items()}

    @property
    def history(self) -> list[dict[str, Any]]:
        """What each update pruned and grew, how much of the last growth survived, and the density then. Of more than
        10,000 updates every n-th is recorded, and the last, so that no more than these are kept."""
        return list(self._engine.records)

    def density(self) -> float:
        """Active / all sparsified entries; 1.0 where nothing is sparsified."""
        return self._units.density()

    @property
    def target_sparsity(self) -> float:
        """The sparsity that the run ends at; of channels, the share that the tightest budget takes off the dense model.
        0.0 where nothing is sparsified."""
        return self._units.target

    def layer_density(self) -> dict[str, float]:
        """The same, for each sparsified parameter."""
        return self._engine.densities()

    def metrics(self) -> dict[str, float]:
        """Where the run is, as numbers for any logger, by names that begin with "regrow/".

        ``density``; ``updates`` done; ``phase_NAME``, 1.0 for the phase of the coming step and 0.0 for the others;
        ``budget``, the share of the active units that an update at this step replaces; ``iou`` of the last update with
        the structure before it and ``survival`` of what was grown before it, once there are; of channels, each kind of
        cost that is bounded (``flops``, ``latency``, ``params``) as a share of the dense model's.
        """
        return metrics.of(self._engine)

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
        return self._engine.training_cost(example_inputs)

    @property
    def ledger(self) -> dict[str, PhaseSteps]:
        """Phase → the steps done in it and the densities they ran at: what `regrow.cost.training_cost` takes."""
        self._engine.account()
        return self._engine.accounts.ledger

    # -- around a step -----------------------------------------------------------------------------------------------

    def prepare_step(self) -> None:
        """Scores and masks the gradients of this step. The optimizer's step does it by itself; call it before clipping
        gradients (and after unscaling them), so that their norm is that of the weights that train. Idempotent."""
        self._engine.prepare_all()

    # -- evaluation, end, checkpoints --------------------------------------------------------------------------------

    @contextmanager
    def sparse(self) -> Iterator[None]:
        """Inside it, the model computes as its active structure, also while others are explored: for evaluating and
        saving. Afterwards everything is as it was, bit for bit."""
        self._engine.make_good()
        for state in self._states.values():
            state.write_zeros()
        on_trial = self._engine.is_on_trial()
        outermost, self._engine.inside_sparse = not self._engine.inside_sparse, True
        try:
            with self._active_only() if on_trial else nullcontext():
                yield
        finally:
            self._engine.inside_sparse = not outermost

    @contextmanager
    def _active_only(self) -> Iterator[None]:
        weights = {name: state.hide_explored() for name, state in self._states.items()}
        self._shown_sparse = True
        try:
            with self._engine.statistics.shown():
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
        return SparseAverage(self.model, self._units, averaged, self.sparse, self._engine.stood_still)

    def finalize(self) -> None:
        """Ends updates at the exact target, also in the middle of one; the structure stays fixed and enforced."""
        self._engine.account()
        if self._engine.finished:
            return
        self._engine.finish()

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
        """All that resuming needs beside model and optimizer: tensors, numbers, strings, lists and dicts only. Of
        parameters that are sharded, in a form for `torch.distributed.checkpoint`, which loads it into a state like this
        one on any number of processes (docs/scale.md)."""
        if self._shown_sparse:
            raise UserError("state_dict() inside sparse() would lose what is being explored; take it outside")
        self._engine.guard.check()
        self._engine.make_good()
        self._engine.account()
        state = {"format": FORMAT, "config": self._fingerprint(), **self._engine.state_dict()}
        if not self._units.ranks.several:
            return state
        return resharding.pack(state, self._states, self._units.saliency.roles, norm_buffers(self.model))

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
        shapes = {name: one.holding.shape_of(one.flags) for name, one in self._states.items()}
        try:
            state = resharding.unpack(state) if resharding.is_packed(state) else state
            fingerprint.check(state, FORMAT, self._fingerprint(), shapes)
            with self._engine.all_or_nothing(), self.full_width():
                example = {"units": self._units.state_dict()}
                shapes_of_scores = self._units.saliency.shapes
                restoring.check(state, example, self._states, shapes_of_scores, norm_buffers(self.model))
                self._engine.load_state_dict(state)
        except UserError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            raise UserError(f"the state is damaged: {first_line(error)}") from error


def _state(name: str, param: nn.Parameter, held: tuple[Optimizer, dict[str, Any]] | None, ranks: Ranks) -> WeightState:
    """The state of a parameter in the hands of an optimizer's group, or of a frozen one that is in none's."""
    if held is None:
        return WeightState(name, param, dict, holds_zero=True, ranks=ranks)
    optimizer, group = held

    def optimizer_state() -> Any:
        return state_owner(optimizer).state.get(param, {})

    keeps = keeps_zero(optimizer, group, param.dtype)
    return WeightState(name, param, optimizer_state, keeps, normalizes(group), ranks)
