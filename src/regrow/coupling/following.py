"""Runs a copy of a model once and follows the channels of its parameters through every operation."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from regrow import names
from regrow.coupling import rules, rules_norm, rules_product, rules_shape, rules_writes
from regrow.coupling.labels import OUTPUT, UNUSED, Label, Ledger, axis
from regrow.coupling.layers_of_torch import modules_of_torch
from regrow.inputs import Inputs, first_line, output_tensors, two_examples
from regrow.quiet import no_onednn, quiet
from regrow.surgery.scale import takes_scale
from regrow.tracing.ops import FORMULAS, family_of
from regrow.tracing.replica import inputs_of_replica, replica_of
from regrow.tracing.trace import ModuleStack, Operation, Recorder

# rules whose result still is the same parameter, seen otherwise
_NAMED = frozenset(["t", "transpose", "permute", "detach", "alias", "expand", "clone", "view"])


# what makes tensors of a size
_CREATE = frozenset(["creation", "new of a size"])

# importing them registers their rules
_RULES = (rules_norm, rules_product, rules_shape, rules_writes)


class Atoms:
    """The numbers given to every index of every dimension of the parameters and buffers, from 1 up."""

    def __init__(self) -> None:
        self.count = 1
        self.leaves: list[tuple[str, int, int, int]] = []  # (name, dimension, first atom, length)

    def label(self, name: str, tensor: Tensor) -> tuple[Label, ...]:
        """One label for each dimension of a parameter or buffer."""
        labels = []
        for dim, length in enumerate(tensor.shape):
            if length > 1:
                self.leaves.append((name, dim, self.count, length))
                labels.append(Label(axis(self.fresh(length), dim, tensor.dim()), zero=True))
        return tuple(labels)

    def fresh(self, length: int) -> Tensor:
        """Numbers that nothing has yet, int64 [length]."""
        self.count += length
        return torch.arange(self.count - length, self.count)


class Follower:
    """Follows labels through the operations that a `regrow.tracing.trace.Recorder` tells it of, and notes in a ledger
    what they ask.

    Args:
        narrow: whether heads lose width, rather than go whole.
    """

    def __init__(self, stack: ModuleStack, atoms: Atoms, narrow: bool = False) -> None:
        self.ledger = Ledger()
        self._stack, self._atoms, self._narrow = stack, atoms, narrow

    def __call__(self, operation: Operation) -> None:
        operands, results = operation.operands, operation.results
        for t in operands:
            self.use(t)
        if any(rules.is_live(x) for x in operands):
            for t in results:
                t._regrow_live = True
        if not any(rules.get(t) for t in operands):
            if family_of(operation.func) in _CREATE:
                self._create(operation)
            return
        rule = rules.find(operation.func) or rules.unknown
        call = self._call(operation)
        try:
            given = rule(call)
            fits = all(x.atoms.dim() == t.dim() for t, labels in zip(results, given, strict=False) for x in labels)
        except (ValueError, RuntimeError, IndexError, TypeError):
            fits = False
        if not fits:  # arguments that the rule was not made for: what goes in stays dense
            given = rules.unknown(call)
        for i, t in enumerate(results):
            t._regrow_labels = given[i] if i < len(given) else ()
            if operation.name in _NAMED and hasattr(operands[0], "_regrow_names"):
                t._regrow_names = operands[0]._regrow_names

    def use(self, tensor: Tensor) -> None:
        """What was to be asked once somebody uses the numbers of this tensor is asked."""
        if (later := vars(tensor).pop("_regrow_later", None)) is not None:
            self.ledger.extend(later)

    def _call(self, operation: Operation) -> rules.Call:
        stack = self._stack
        module: dict[str, Any] = {"attributes": stack.integers(), "lists": stack.lists, "near": stack.near}
        module["given"] = stack.given()
        return rules.Call(**vars(operation), **module, ledger=self.ledger, narrow=self._narrow)

    def _create(self, operation: Operation) -> None:
        """A new tensor has channels of its own where an integer attribute of the module, or of one inside it, says how
        many (the first state of a recurrence); otherwise it has those of what is first put into it."""
        out = operation.out
        if not isinstance(out, Tensor) or out.dim() < 2:
            return
        out._regrow_blank = True  # type: ignore[attr-defined]
        counts = self._stack.counts()
        labels = [
            Label(axis(self._atoms.fresh(length), dim, out.dim()), "zeros" in operation.name)
            for dim, length in enumerate(out.shape)
            if dim and length in counts
        ]
        if labels:
            out._regrow_labels = tuple(labels)  # type: ignore[attr-defined]
            call = self._call(operation)
            for label in labels:
                rules_shape.count(call, label.atoms, max(label.dims))


class Unscaled(TorchFunctionMode):
    """Listens for attention that takes its scale from the width of its heads: notes which module computes it, and which
    channels that width counts."""

    def __init__(self, stack: ModuleStack, ledger: Ledger) -> None:
        super().__init__()
        self._stack, self._ledger = stack, ledger

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if takes_scale(func, kwargs):
            query = args[0] if args else kwargs["query"]
            last = query.dim() - 1
            atoms = [x.atoms.reshape(-1) for x in rules.get(query) if last in x.dims]
            every = torch.cat([torch.zeros(0, dtype=torch.int64), *atoms])
            self._ledger.scaled.append((self._stack.running() or ("",), query.shape[-1], every))
        return func(*args, **kwargs)


def _hollow(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Executes an operation, but what multiplies on shapes only: it returns zeros."""
    known = isinstance(func, torch._ops.OpOverload) and func._overloadpacket in FORMULAS
    if not known or any(t.device.type != "cpu" for t in tree_leaves(args) if isinstance(t, Tensor)):
        return func(*args, **kwargs)
    on_meta = tree_map_only(Tensor, lambda t: t.detach().to("meta"), (args, kwargs))
    try:
        out = func(*on_meta[0], **on_meta[1])
    except (RuntimeError, NotImplementedError):  # what a GPU demands is not demanded here
        return func(*args, **kwargs)
    return tree_map_only(Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), out)


@dataclass(frozen=True)
class Demands:
    """What the operations of a model demand of its channels.

    Attributes:
        ledger: the demands.
        atoms: the numbering.
        unused: the parameters that were never used, with the reason.
        narrow: whether heads lose width, rather than go whole.
    """

    ledger: Ledger
    atoms: Atoms
    unused: dict[str, str]
    narrow: bool = False


def follow(model: nn.Module, inputs: Inputs, deadline: float, narrow: bool = False) -> Demands:
    """Follows the channels of one call of the model in eval mode, and where it runs there in training mode too: noise,
    auxiliary heads and features for a loss may only be there.

    Args:
        narrow: whether heads lose width, rather than go whole.

    Raises:
        UserError: the model does not run.
        TimeLimit: it took too long.
    """
    replica = replica_of(model)
    stack = ModuleStack(replica)
    atoms = Atoms()
    for name, tensor in names.tensors(replica).items():
        tensor._regrow_labels = atoms.label(name, tensor)  # type: ignore[attr-defined]
        tensor._regrow_names = []  # type: ignore[attr-defined]
    for name, tensor in names.tensors(replica, every_name=True).items():
        tensor._regrow_names.append(name)  # type: ignore[attr-defined]
    ready = inputs_of_replica(inputs)
    try:
        ledger = _asked(replica.eval(), stack, atoms, ready, deadline, narrow)
    except Exception as error:
        raise inputs.refusal(error) from error
    why = ""
    for form in (two_examples(ready, other=False), ready):  # a batch norm needs more than one example
        try:
            trained = _asked(replica.train(), stack, atoms, form, deadline, narrow)
            trained.attended.clear()  # what one forward pass costs has been seen
            ledger.extend(trained)
        except Exception as error:
            why = why or f" in eval mode, and training mode does not run on the example input ({first_line(error)})"
        else:
            why = ""
            break
    unused = _unused(ledger, atoms, names.parameters(replica))
    modules_of_torch(replica, ledger, narrow)
    return Demands(ledger, atoms, dict.fromkeys(sorted(unused), UNUSED + why), narrow)


def _asked(
    replica: nn.Module, stack: ModuleStack, atoms: Atoms, inputs: Inputs, deadline: float, narrow: bool
) -> Ledger:
    """What one forward pass asks of its labels; those of the inputs are live and those of the outputs fixed."""
    for t in inputs.tensors:
        t._regrow_live = True  # type: ignore[attr-defined]
    follower = Follower(stack, atoms, narrow)
    unscaled = Unscaled(stack, follower.ledger) if narrow else nullcontext()
    with quiet(), no_onednn(), unscaled, Recorder(follower, _hollow, stack, deadline):
        out = inputs(replica)
    for t in output_tensors(out):
        follower.use(t)
        follower.ledger.fix_all(rules.get(t), OUTPUT)
    return follower.ledger


def _unused(ledger: Ledger, atoms: Atoms, parameters: Iterable[str]) -> set[str]:
    """Those of these parameters that no operation has asked anything of."""
    touched = torch.zeros(atoms.count, dtype=torch.bool)
    for asked in [
        *(pair.reshape(-1) for pair in ledger.pairs),
        *(fixed for fixed, _, _ in ledger.fixed),
        *ledger.produced,
    ]:
        touched[asked] = True
    seen: dict[str, bool] = {}
    for leaf, _, first, length in atoms.leaves:
        seen[leaf] = seen.get(leaf, False) or bool(touched[first : first + length].any())
    return {name for name in parameters if not seen.get(name, True)}
