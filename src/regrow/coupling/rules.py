"""How channels pass through operations: one rule for each kind of aten operation.

A rule takes a `Call` and returns the labels of its outputs. Operations that only move data run on the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from regrow.coupling.labels import Label, Labels, Ledger, combine
from regrow.tracing.ops import FAMILIES, MEANS, family_of, is_pointwise
from regrow.tracing.trace import Operation


def get(tensor: Any) -> Labels:
    """The labels of a tensor; none for anything else."""
    return getattr(tensor, "_regrow_labels", ()) if isinstance(tensor, Tensor) else ()


@dataclass(frozen=True, kw_only=True)
class Call(Operation):
    """One operation of the forward pass, on tensors with labels.

    Attributes:
        ledger: where its demands go.
        attributes: the plain integers of the module that runs.
        lists: its tuples and lists of them.
        near: those of modules directly in it: (module, attribute) → number.
        given: the tensors that it was called with.
        narrow: whether heads lose width, all alike, rather than go whole.
    """

    ledger: Ledger
    attributes: dict[str, int]
    lists: Callable[[], dict[str, list[int]]]
    near: Callable[[], dict[tuple[str, str], int]]
    given: Sequence[Tensor]
    narrow: bool = False

    @property
    def x(self) -> Tensor:
        """The first operand."""
        return self.args[0] if isinstance(self.args[0], Tensor) else self.args[0][0]

    def at(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def where(self) -> str:
        """For reasons: the operation and the module that it runs in."""
        return f"{self.name} in {self.module or 'the model'}"

    def size(self, owner: Tensor | None, attribute: str, atoms: Tensor | None, position: int | None = None) -> None:
        """Notes an attribute that counts these atoms, of all modules that hold the parameter `owner`."""
        names = getattr(owner, "_regrow_names", None)
        modules = (self.module,) if names is None else dict.fromkeys(name.rpartition(".")[0] for name in names)
        if atoms is not None:
            self.ledger.sizes.extend((module, attribute, position, atoms) for module in modules)


Rule = Callable[[Call], Sequence[Labels]]
RULES: dict[str, Rule] = {}  # by family


def rule(*families: str) -> Callable[[Rule], Rule]:
    """Registers a rule for families of operations, as `regrow.tracing.ops` names them."""

    def register(function: Rule) -> Rule:
        assert set(families) <= FAMILIES.keys()
        RULES.update(dict.fromkeys(families, function))
        return function

    return register


def find(func: Any) -> Rule | None:
    """The rule of an operation of torch."""
    return RULES.get(family_of(func) or "", elementwise if is_pointwise(func) else None)


@rule("same memory", "same", "dropout")
def same(call: Call) -> Sequence[Labels]:
    """The same shape, every slice for itself; dropout also returns its mask."""
    return [get(call.x)] * len(call.results)


@rule("like another")
def alike(call: Call) -> Sequence[Labels]:
    """A new tensor of the shape of another."""
    return [tuple(Label(x.atoms, call.name.startswith("zeros")) for x in get(call.x))]


# what becomes of an operand whose removed slices are zero; for all others nothing is assumed
ZERO = {"mul": "any", "div": "first", "add": "all", "sub": "all", "neg": "all", "abs": "all", "sqrt": "all"}
ZERO |= dict.fromkeys(["relu", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish", "tanh"], "all")


@rule("pointwise without the tag")
def elementwise(call: Call) -> Sequence[Labels]:
    """Elementwise functions, with broadcasting."""
    operands = [t for t in tree_leaves((call.args, call.kwargs)) if isinstance(t, Tensor) and t.dim()]
    if not any(get(t) for t in operands):
        return [()]
    zero = ZERO.get(call.name.rstrip("_"), "none")
    if zero == "first" and len(operands) > 1:
        by_zero = [label for label in get(operands[1]) if label.zero]
        call.ledger.fix_all(by_zero, f"zeros would be divided by ({call.where})")
    if call.name.startswith(("add", "sub")) and len(operands) < 2:
        zero = "none"  # a number is added
    if call.name.startswith("pow") and isinstance(power := call.at(1, "exponent"), int | float) and power > 0:
        zero = "all"
    rank = max(t.dim() for t in operands)
    if call.name == "copy_" and is_blank(call.x):
        call.x._regrow_blank = False  # type: ignore[attr-defined]
        operands = operands[1:]
    reason = f"it meets a tensor of fixed width ({call.where})"
    pairs = [(labels, _lengths(t)) for t, labels in zip(operands, _apart(call, operands, rank), strict=True)]
    return [combine(call.ledger, pairs, rank, zero, reason)]


def is_blank(tensor: Tensor) -> bool:
    """Whether it is new and nothing has been written into it: it has whatever channels are put there."""
    return getattr(tensor, "_regrow_blank", False) and not get(tensor)


def is_live(tensor: Tensor) -> bool:
    """Whether it depends on the model's inputs."""
    return getattr(tensor, "_regrow_live", False)


def _apart(call: Call, operands: Sequence[Tensor], rank: int) -> list[Labels]:
    """The labels of operands, where a constant that all heads share (rotary embeddings, the scale of a norm of queries)
    ties no heads to each other: inside of heads nothing vanishes then, unless they lose width, all alike."""
    found = [get(t) for t in operands]
    for i, constant in enumerate(operands):
        if call.narrow or is_live(constant):
            continue
        for mine in found[i]:
            shared = frozenset(d + rank - constant.dim() for d in mine.dims)
            for j, t in enumerate(operands):
                if not is_live(t):
                    continue
                lift = rank - t.dim()
                if any(_within_heads(shared, label, lift) for label in found[j]):
                    call.ledger.fix(mine.atoms, f"all heads share it ({call.where})")
                    found[i] = tuple(x for x in found[i] if x is not mine)
                    found[j] = call.ledger.collapse_all(
                        found[j], [d - lift for d in shared], f"inside of heads, all share a tensor ({call.where})"
                    )
                    break
    return found


def _within_heads(shared: frozenset[int], label: Label, lift: int) -> bool:
    """Whether labels along some dimensions are inside the parts (heads) into which those of another tensor are cut."""
    dims = {d + lift for d in label.dims}
    return shared < dims and min(dims) not in shared


def _lengths(tensor: Tensor) -> list[int]:
    """Its shape, with 1 where one number has been expanded: it broadcasts."""
    return [1 if stride == 0 else n for n, stride in zip(tensor.shape, tensor.stride(), strict=True)]


@rule("new of a size")
def like(call: Call) -> Sequence[Labels]:
    """A new tensor that takes its widths from another, as the masks of dropout do; if they are numbers of its own, it
    will not fit when channels go."""
    if call.out.dim() != call.x.dim():
        return [()]
    alike = {d for d, n in enumerate(call.out.shape) if n == call.x.shape[d]}
    return [tuple(Label(x.atoms, call.name == "new_zeros") for x in get(call.x) if x.dims <= alike)]


@rule("reductions")
def reduce(call: Call) -> Sequence[Labels]:
    """Reductions and other functions of whole slices: what goes into one number cannot vanish in part."""
    x = call.x
    if isinstance(call.at(1, "other"), Tensor):  # the larger of two tensors
        return elementwise(call)
    position = 2 if "norm" in call.name else 1
    given = call.at(position, "dim", None)
    if given is None or isinstance(given, bool):
        given = list(range(x.dim()))
    if call.name in ("topk", "kthvalue"):
        given = call.at(2, "dim", -1)
    dims = sorted({d % x.dim() for d in (given if isinstance(given, (list, tuple)) else [given])} or range(x.dim()))
    labels = get(x)
    if call.name in ("sum", "norm", "linalg_vector_norm"):  # zeros add nothing
        labels = tuple(label for label in labels if not (label.zero and label.dims <= set(dims)))
    soft = call.name in MEANS  # norms that are written by hand
    left = call.ledger.collapse_all(labels, dims, f"it is reduced over ({call.where})", soft)
    for label in labels if soft and dims == [x.dim() - 1] else ():
        call.size(None, "normalized_shape", label.atoms.reshape(-1) if label.dims == {x.dim() - 1} else None, 0)
    out = tree_leaves(call.out)[0]
    if out.dim() != x.dim():
        left = tuple(Label(label.atoms.squeeze(dims), label.zero) for label in left)
    return [tuple(Label(label.atoms) for label in left)] * len(tree_leaves(call.out))


@rule("max pools", "adaptive pools", "pools", "interpolation", "samplers")
def pool(call: Call) -> Sequence[Labels]:
    """Functions of the spatial dimensions, each channel for itself."""
    rank = call.x.dim()
    spatial = next((k for k in (1, 2, 3) if f"{k}d" in call.name), 2)
    reason = f"it is mixed over space ({call.where})"
    left = call.ledger.collapse_all(get(call.x), range(rank - spatial, rank), reason)
    return [left, *[tuple(Label(x.atoms) for x in left)] * (len(call.results) - 1)]  # beside a maximum, its place


@rule("unpools")
def unpool(call: Call) -> Sequence[Labels]:
    """What a pool took back to its place, each channel for itself; zero elsewhere."""
    rank = call.x.dim()
    reason = f"it is mixed over space ({call.where})"
    space = range(rank - (3 if "3d" in call.name else 2), rank)
    pairs = [(call.ledger.collapse_all(get(t), space, reason), t.shape) for t in call.args[:2]]
    return [combine(call.ledger, pairs, rank, "first", f"it meets a tensor of fixed width ({call.where})")]


def unknown(call: Call) -> Sequence[Labels]:
    """An operation without a rule: nothing that goes in can vanish."""
    for t in tree_leaves((call.args, call.kwargs)):
        call.ledger.fix_all(
            get(t), f"regrow has no rule for the operation {call.func} (in {call.module or 'the model'})"
        )
    return [()]


def disjoint(call: Call, labels: Labels) -> Labels:
    """Labels that came to share a dimension are cut down to what they can say together."""
    seen: set[int] = set()
    result = []
    for label in labels:
        if label.dims & seen:
            kept = call.ledger.collapse(label, label.dims & seen, f"its channels are interleaved ({call.where})")
            if kept is None or kept.dims & seen:
                continue
            label = kept
        seen |= label.dims
        result.append(label)
    return tuple(result)


def tie(call: Call, channels: Tensor | None, weight: Tensor | None) -> None:
    """What comes in and the dimension of the weight that takes it."""
    if channels is not None and weight is not None:
        call.ledger.same(channels, weight, "it comes from a tensor of fixed width")
    elif channels is not None:
        call.ledger.fix(
            channels, f"the weight that takes it is computed from all of its inputs together ({call.where})"
        )
    elif weight is not None:
        call.ledger.fix(weight, "it takes the model's input, or a tensor of fixed width")
