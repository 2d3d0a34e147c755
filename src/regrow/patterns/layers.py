"""Which layers a pattern of entries sparsifies: those that multiply, less what options leave out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from regrow import matrices, names
from regrow.errors import UserError, nearest, percent
from regrow.tracing.flops import ModelFlops, count_flops
from regrow.tracing.replica import NoReplica

FIRST = "the first layer, which distribution='uniform' keeps dense"
EXCLUDED = "excluded"
NOT_INCLUDED = "not among those of include="


@dataclass(frozen=True)
class Selection:
    """What a pattern of single entries does with the parameters of a model.

    Attributes:
        parameters: what is sparsified, by canonical name, in the model's order.
        dense: name → why not, for all others of two or more dimensions.
        flops: of the model at the example; None without one, or where the model cannot be copied.
        note: what there is to say about how they were found, or "".
        decided: which of the reasons somebody has decided for, in options or in what the model is for.
        axes: parameter → its axis that `choose` is to see as the last.
    """

    parameters: dict[str, nn.Parameter]
    dense: dict[str, str]
    flops: ModelFlops | None = None
    note: str = ""
    decided: frozenset[str] = frozenset()
    axes: Mapping[str, int] = field(default_factory=dict)

    @property
    def turned(self) -> dict[str, Tensor]:
        """The parameters as patterns see them: their axis of `axes`, if they have one, as the last."""
        return {name: p.detach().movedim(self.axes.get(name, -1), -1) for name, p in self.parameters.items()}


def check_sparsity(value: float, of: str) -> None:
    """Refuses what is no share of `of` to remove.

    Raises:
        UserError: saying so, also where per cent were meant.
    """
    if not 0 <= value < 1:
        raise UserError(f"sparsity is {value!r}, but must lie in [0, 1): the share of {of} to remove{percent(value)}")


def select(
    model: nn.Module,
    example_inputs: Any,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_first: bool = False,
    misfit: Callable[[Sequence[int]], str] | None = None,
) -> Selection:
    """The matrices of a model that a pattern sparsifies, and why others stay dense.

    Args:
        model: stays as it is.
        example_inputs: one batch, which tells what the model multiplies with; None where there is none.
        include, exclude: names of modules or parameters, ``*`` and ``?`` allowed.
        keep_first: leave the first layer dense.
        misfit: says why the pattern does not fit a matrix of this shape, inputs last, or ""; what it is then shown of
            parameters has their inputs last, too.

    Raises:
        UserError: where an option names nothing in the model, nothing is left to sparsify, or the model does not run
            on the example.
    """
    model = names.unwrap(model)
    flops, note = _traced(model, example_inputs)
    found = matrices.find(model, flops)
    everything = {name: p for name, p in names.parameters(model).items() if p.dim() > 1 and p.numel()}
    named = match(include, everything, "include")
    dense = dict(found.dense)
    if named:
        dense = {name: NOT_INCLUDED for name in everything if name not in named}
    elif keep_first and len(found.names) > 1 and found.first in found.names:
        dense[found.first] = FIRST
    for name in named:
        if not everything[name].requires_grad:
            raise UserError(f"include names {name!r}, which has requires_grad=False; let it train or leave it out")
    dense |= dict.fromkeys(match(exclude, everything, "exclude"), EXCLUDED)
    axes: dict[str, int] = {}
    unfit: dict[str, str] = {}
    if misfit is not None:
        axes = {name: input_axis(model, name, everything[name]) for name in (named or found.names) if name not in dense}
        shapes = {name: everything[name].movedim(axis, -1).shape for name, axis in axes.items()}
        unfit = {name: why for name, shape in shapes.items() if (why := misfit(shape))}
        dense |= unfit
    chosen = {name: everything[name] for name in (named or found.names) if name not in dense}
    if not chosen:
        raise UserError(
            "nothing is left to sparsify: the model has no trainable convolution or linear weight, or other "
            f"matrix, that is not excluded{_but(unfit)}; name parameters with include=[...]"
        )
    meant = {FIRST, EXCLUDED, NOT_INCLUDED, matrices.EMBEDDING, matrices.FROZEN, *unfit.values()} | {
        why for why in dense.values() if matrices.NOT_REAL in why
    }
    left = {name: dense[name] for name in everything if name in dense}
    return Selection(chosen, left, flops, note, frozenset(meant), {n: a for n, a in axes.items() if n in chosen})


def _but(unfit: Mapping[str, str]) -> str:
    """The first misfit, if there is one."""
    return "".join(f" and fits ({name}: {why})" for name, why in list(unfit.items())[:1])


def _traced(model: nn.Module, example_inputs: Any) -> tuple[ModelFlops | None, str]:
    """FLOPs of a forward pass at the example; None without one. And why there are none in spite of one, or "".

    Raises:
        UserError: the example is not what the model takes.
    """
    if example_inputs is None:
        return None, ""
    try:
        return count_flops(model, example_inputs), ""
    except NoReplica as error:  # which no other example would mend
        return None, f"matrices were found by layer, shape and name, as {error}"
    except UserError as error:
        raise UserError(f"{error}; without example_inputs, matrices are found by layer, shape and name") from error


def match(patterns: Sequence[str], names: Mapping[str, object], option: str) -> list[str]:
    """The parameter names that these patterns mean: by themselves, by their module, or by any module above it."""
    found: dict[str, None] = {}
    for pattern in patterns:
        hits = [
            name
            for name in names
            if any(fnmatchcase(".".join(name.split(".")[:depth]), pattern) for depth in range(1, name.count(".") + 2))
        ]
        if not hits:
            modules = {name.rpartition(".")[0] for name in names} - {""}
            raise UserError(
                f"{option} names {pattern!r}, which the model does not have{nearest(pattern, [*names, *modules])}"
            )
        found |= dict.fromkeys(hits)
    return list(found)


def input_axis(model: nn.Module, name: str, param: nn.Parameter) -> int:
    """The axis of a matrix that its products sum over: C_in of convolutions and linear layers, without kernels."""
    owner = names.modules(names.unwrap(model)).get(name.rpartition(".")[0])
    if getattr(owner, "transposed", False) or type(owner).__name__ == "Conv1D":  # transformers' has (in, out)
        return 0
    return 1 if isinstance(owner, nn.modules.conv._ConvNd) else param.dim() - 1
