"""What is checked at the door, before anything is changed: the optimizer, its parameters, and who else holds them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import hints, lengths, names, optim_state, shards
from regrow.criteria import Criterion
from regrow.errors import UserError, closest, nearest
from regrow.losses import MeanLoss, classification
from regrow.methods import IEE, METHODS, Method
from regrow.patterns.pattern import PATTERNS, Pattern
from regrow.saliency import Scoring
from regrow.schedule import Phase
from regrow.units import NoUnits, Units

_LONG = 2**32  # steps; every method has an update in so many

Scorings = Mapping[str, tuple[Scoring, ...]]
Groups = dict[int, tuple[Optimizer, dict[str, Any]]]  # id of a parameter → its optimizer and group


def optimizers(given: Any, owner: type) -> list[Optimizer]:
    """The torch optimizers meant by one optimizer or a sequence of them, wrapped or not.

    Args:
        given: what the user passed.
        owner: the class whose hooks on an optimizer mean that it is taken.

    Raises:
        UserError: for something that is no optimizer, one that cannot work, or one that is taken.
    """
    found = [optim_state.unwrap(one) for one in (given if isinstance(given, Sequence) else [given])]
    if not found:
        raise UserError("optimizer is an empty list; pass the optimizer (or all of them) that trains the model")
    for one in found:
        if not isinstance(one, Optimizer):
            raise UserError(f"optimizer must be a torch.optim.Optimizer (or a list of them), not {_kind(one)}")
        hooks = one._optimizer_step_post_hooks.values()
        if any(isinstance(getattr(inspect.unwrap(hook), "__self__", None), owner) for hook in hooks):
            raise UserError("this optimizer already has a sparsifier attached; call its detach() first")
    return found


def model_of(given: Any) -> nn.Module:
    """The model inside of its wrappers.

    Raises:
        UserError: it is no model.
    """
    if not isinstance(given, nn.Module):
        hint = "; the model comes first, then its optimizer" if isinstance(given, Optimizer) else ""
        raise UserError(f"model must be a torch.nn.Module, not {_kind(given)}{hint}")
    return names.unwrap(given)


def check_pattern(given: Any) -> None:
    """Refuses what is no pattern.

    Raises:
        UserError: saying what a pattern is.
    """
    if given is None or isinstance(given, Pattern):
        return
    name = closest(given, PATTERNS) if isinstance(given, str) else None
    share = isinstance(given, int | float) and not isinstance(given, bool) and 0 < given < 1
    example = f"regrow.Weights({given:g})" if share else "regrow.Weights(0.9)"
    if isinstance(given, type) and issubclass(given, Pattern):
        example = f"{given.__name__}(...) with its options"
    if name is not None:
        example = f"regrow.{PATTERNS[name].__name__}(...) with its options"
    raise UserError(
        f"pattern is {_kind(given)}, but must say what to sparsify and how far: pass {example}, or "
        "regrow.Channels(flops=0.5) for whole channels"
    )


def _kind(given: Any) -> str:
    """What something is, in a few words."""
    if given is None or isinstance(given, bool | int | float | str):
        return hints.show(given, 40)
    return f"the class {given.__name__}" if isinstance(given, type) else f"of type {type(given).__name__}"


def method(value: Method | str | None, pattern: Pattern | None, criterion: Criterion) -> tuple[Method, Criterion]:
    """The method that is meant by an instance, a registered name, or nothing, and the criterion that it ranks by.

    Raises:
        UserError: for anything else.
    """
    found = named(value)
    ranking = found.ranks_by(criterion)
    return (found if pattern is None else found.resolve(pattern, ranking)), ranking


def named(value: Method | str | None) -> Method:
    """The same, its options as they are given."""
    if value is None:
        return IEE()
    if isinstance(value, str):
        if value not in METHODS:
            raise UserError(f"method {hints.show(value)} is unknown{nearest(value, METHODS)}")
        return METHODS[value]()
    if not isinstance(value, Method):
        example = "regrow.RigL"
        if isinstance(value, type) and issubclass(value, Method):
            example = f"{value.__name__}"
        raise UserError(f"method must be a name or an instance such as {example}(), not {_kind(value)}")
    return value


def seed(value: int) -> int:
    """What randomness is drawn from, checked.

    Raises:
        UserError: where it is no whole number.
    """
    hints.check_value("seed", value, int)
    return value


def check_on_resize(given: Any) -> None:
    """Refuses what cannot be called.

    Raises:
        UserError: saying so.
    """
    if given is not None and not callable(given):
        raise UserError(f"on_resize is {_kind(given)}, but must be a function without arguments, or None")


def check_together(
    pattern: Pattern | None, how: Method, scorings: Scorings, steps: int | None, example_inputs: Any
) -> None:
    """Refuses a pattern that a method cannot work with in a run of any length.

    Args:
        steps: of the run, as given; it may be wrong, or too short.

    Raises:
        UserError: naming what is missing, or does not go together.
    """
    if not how.sparsifies:
        return
    if pattern is None:
        raise UserError("pattern is missing; say what to sparsify, e.g. pattern=regrow.Weights(0.9, 'erk')")
    how.check_pattern(pattern)
    cycle = _cycle(how, steps)
    if pattern.blind:
        check_growth(how, scorings, cycle)
    check_projection(how, scorings, cycle)
    pattern.check_example(example_inputs)


def losses(pattern: Pattern | None, model: nn.Module, batches: Any, loss: Any, seed: int) -> MeanLoss | None:
    """What measures the model's loss, for a pattern that needs it.

    Args:
        batches: as given; all of them are kept.
        loss: as given, a function of (model, batch); None for classification.
        seed: of what the model draws while it is measured.

    Raises:
        UserError: naming what is missing, or not needed.
    """
    asked = "" if pattern is None else pattern.measures
    if not asked:
        for name, given in {"batches": batches, "loss": loss}.items():
            if given is not None:
                raise UserError(f"{name}= is for patterns that measure losses, Channels(blocks='loss'): leave it out")
        return None
    if batches is None:
        raise UserError(
            f"{asked} measures the loss of the model, so give Sparsifier batches=, a few batches of training data, and "
            "loss=, a function of (model, batch), where that is not classification"
        )
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | str | Mapping):
        raise UserError(f"batches is {_kind(batches)}, but must be a list of batches, or yield a few")
    if loss is not None and not callable(loss):
        raise UserError(f"loss is {_kind(loss)}, but must be a function of (model, batch), or None for classification")
    return MeanLoss(model, list(batches), loss or classification, None, seed)


def bind(pattern: Pattern | None, how: Method, model: nn.Module, example_inputs: Any, on_resize: Any) -> Units:
    """What the pattern makes of the model.

    Args:
        model: as the user gave it, in its wrapper.
        on_resize: what the user wants to be called when parameters change their shapes, or None.

    Raises:
        UserError: where pattern and model do not go together.
    """
    if pattern is None or not how.sparsifies:
        return NoUnits()
    check_sharded(pattern, names.unwrap(model))
    units = pattern.bind(names.unwrap(model), example_inputs)
    if units.resizes and on_resize is None:
        check_unwrapped(model)
    return units


def parameter_groups(found: Iterable[Optimizer]) -> Groups:
    """Who trains each parameter.

    Raises:
        UserError: where two groups hold the same one, or autograd is to record what an optimizer does.
    """
    groups: Groups = {}
    for optimizer in found:
        for group in optimizer.param_groups:
            if group.get("differentiable"):  # torch refuses it, too, in the first step and in words of its own
                raise UserError(
                    f"{type(optimizer).__name__} has differentiable=True, but autograd cannot record a step that "
                    "changes a model's own parameters in place; make it without, or with differentiable=False"
                )
            for param in group["params"]:
                if id(param) in groups:
                    raise UserError(f"a parameter of shape {tuple(param.shape)} is in two optimizers; give it to one")
                groups[id(param)] = (optimizer, group)
    return groups


def check_model(model: nn.Module, groups: Groups) -> None:
    """Refuses a model whose parameters are not ready, or not all in the hands of these optimizers.

    Raises:
        UserError: naming the parameter.
    """
    parameters = names.parameters(model)
    for name, param in parameters.items():
        if isinstance(param, nn.parameter.UninitializedParameter):
            raise UserError(f"{name} has no shape yet (a lazy module); run one batch through the model first")
    trained = [id(param) for param in parameters.values() if param.requires_grad]
    if trained and groups.keys().isdisjoint(trained):
        raise UserError(
            "the optimizer trains none of this model's parameters; make it of model.parameters(), once the model is "
            "what it is to be (moved, wrapped, with its head)"
        )
    for name, param in parameters.items():
        if param.requires_grad and id(param) not in groups:
            raise UserError(
                f"{name} is in no optimizer that was given; pass all optimizers as a list, or set requires_grad_(False)"
            )


def check_weights(sparsified: Mapping[str, Tensor], groups: Groups | None = None) -> None:
    """Refuses weights that cannot be masked, or that train in no optimizer's hands. Frozen ones lose channels too.

    Raises:
        UserError: naming the parameter.
    """
    for name, param in sparsified.items():
        if groups is not None and id(param) not in groups and param.requires_grad:
            raise UserError(f"{name} is to be sparsified but in no optimizer; give it to one, or exclude it")
        for kind in type(groups[id(param)][0]).__mro__ if groups and id(param) in groups else ():
            if kind.__name__ in optim_state.REFUSED:
                raise UserError(
                    f"{kind.__name__} does not work with regrow, and it trains {name}, which is to be sparsified: "
                    f"{optim_state.REFUSED[kind.__name__]}"
                )
        if groups and id(param) in groups and groups[id(param)][1].get("eps") == 0:
            raise UserError(
                f"the optimizer's eps for {name} is 0, and it divides by the size of gradients, which are zero where "
                "weights have been removed; use one above 0, such as 1e-8"
            )
        if param.layout is not torch.strided or not param.is_floating_point():
            raise UserError(
                f"{name} is {param.dtype} in layout {param.layout}, but only dense floating-point weights can be "
                f"sparsified; leave it out with exclude=[{name!r}]"
            )


def check_sharded(pattern: Pattern, model: nn.Module) -> None:
    """Refuses a pattern whose units do not lie within shards, for a model that has any.

    Raises:
        UserError: naming a parameter.
    """
    sharded = next((name for name, p in names.parameters(model).items() if shards.is_sharded(p)), None)
    if sharded is not None and not getattr(pattern, "shards", False):
        raise UserError(
            f"{sharded} is sharded (a DTensor), which {type(pattern).__name__} cannot work on: use regrow.Weights or "
            "regrow.NM with fully_shard, or DistributedDataParallel"
        )


def ranks(pattern: Pattern | None, units: Units, scorings: Scorings, criterion: Criterion) -> shards.Ranks:
    """The processes that hold the parameters.

    Raises:
        UserError: where these are sharded, naming what cannot be done without whole layers.
    """
    found = shards.ranks_of(units.parameters)
    if not found.several or pattern is None:
        return found
    for name, axis in units.axes.items():
        if axis == 0:
            raise UserError(
                f"{name} has its inputs along the first dimension, which is sharded, so that its groups lie across "
                f"processes; leave it out with exclude=[{name!r}]"
            )
    if getattr(pattern, "ramp", None) == "groups":
        raise UserError("ramp='groups' ranks the groups of whole layers, but these are sharded; use ramp='n'")
    for one in [criterion, *(scoring.criterion for of_phase in scorings.values() for scoring in of_phase)]:
        if not one.by_entry:
            raise UserError(
                f"criterion {one.name!r} may need a whole layer, and layers are sharded: use one that scores each "
                "entry by itself, such as 'magnitude' or 'taylor', or say so of yours: dataclasses.replace("
                "regrow.criteria.Criterion.of(function), by_entry=True)"
            )
    return found


def check_unwrapped(model: nn.Module) -> None:
    """Refuses a model in a wrapper that cannot follow changes of shape.

    Raises:
        UserError: it is wrapped in DistributedDataParallel.
    """
    if type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
        raise UserError(
            f"thin training changes the shapes of parameters, which {type(model).__name__} cannot follow; "
            "use Channels(thin=False), or pass on_resize=, a function that wraps the model anew"
        )


def _cycle(how: Method, steps: int | None) -> tuple[Phase, ...]:
    """The phases of an update, in a longer run where this one has none."""
    for length in (steps, _LONG):
        with suppress(UserError):
            return getattr(how.timeline(lengths.total_steps(length)), "cycle", ())  # or no timeline, as is said later
    return ()


def check_growth(how: Method, scorings: Scorings, cycle: Sequence[Phase]) -> None:
    """Refuses a method that ranks removed units by gradients which the pattern does not have.

    Raises:
        UserError: naming the method.
    """
    unexplored = [phase.name for phase in cycle if phase.trains == "active"]
    latent = any(phase.latent is not None for phase in cycle)
    blind = any(s.role == "grow" and s.criterion.uses_grad for name in unexplored for s in scorings.get(name, ()))
    if blind or latent:
        way_out = "it without a preview (shadow_speed, p, previews, backward)" if how.name == IEE.name else "IEE"
        raise UserError(
            f"{how.name} needs the gradients of what was removed, but removed channels have none; use {way_out}, which "
            "explores them"
        )


def check_projection(how: Method, scorings: Scorings, cycle: Sequence[Phase]) -> None:
    """Refuses a projection that shrinks weights by the largest removed one where these are not the small ones.

    Raises:
        UserError: naming the method and the criterion.
    """
    soft = [phase for phase in cycle if phase.latent is not None and not phase.latent.hard]
    for criterion in [scoring.criterion for phase in soft for scoring in scorings.get(phase.name, ())]:
        if not criterion.by_size:
            raise UserError(
                f"{how.name} computes with what weights are above the largest removed one, and criterion "
                f"{criterion.name!r} may keep weights below it, which would all become zero; use "
                "criterion='magnitude', or p=None with any other"
            )


class LoadListener:
    """Notes that weights or optimizer state have been loaded, after which they may not fit the codes.

    A copy of it, which a deepcopy or pickle of the model takes along, is a new one that its sparsifier does not ask.
    """

    def __init__(self) -> None:
        self.unsettled = True  # as after attaching

    def __call__(self, *args: object) -> None:
        """Notes; called by a model or an optimizer that has loaded its state."""
        self.unsettled = True

    def __deepcopy__(self, memo: object) -> LoadListener:
        return LoadListener()

    def __reduce__(self) -> tuple[type[LoadListener], tuple[()]]:
        return LoadListener, ()
