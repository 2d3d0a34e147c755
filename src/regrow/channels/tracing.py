"""Runs a copy of a model once and follows the channels of its parameters through every operation."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from regrow import names
from regrow.channels import rules, rules_norm, rules_product, rules_shape
from regrow.channels.labels import OUTPUT, Layer, Ledger, axis
from regrow.errors import UserError
from regrow.inputs import Inputs, first_line, output_tensors, two_examples
from regrow.quiet import quiet

# rules whose result still is the same parameter, seen otherwise
_NAMED = frozenset(["t", "transpose", "permute", "detach", "alias", "expand", "contiguous", "clone", "view"])


# importing them registers their rules
_RULES = (rules_norm, rules_product, rules_shape)


class Atoms:
    """The numbers given to every index of every dimension of the parameters and buffers, from 1 up."""

    def __init__(self) -> None:
        self.count = 1
        self.leaves: list[tuple[str, int, int, int]] = []  # (name, dimension, first atom, length)

    def label(self, name: str, tensor: Tensor) -> tuple[Layer, ...]:
        """One layer for each dimension of a parameter or buffer."""
        layers = []
        for dim, length in enumerate(tensor.shape):
            if length > 1:
                self.leaves.append((name, dim, self.count, length))
                layers.append(Layer(axis(torch.arange(self.count, self.count + length), dim, tensor.dim()), zero=True))
                self.count += length
        return tuple(layers)


class Stack:
    """Which module of the copy runs; kept by hooks."""

    def __init__(self, replica: nn.Module) -> None:
        self.names: list[str] = []
        self.failed: list[str] = []  # the stack where an exception was raised
        self.modules = names.modules(replica)
        for name, module in self.modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            module.register_forward_pre_hook(self._enter(name), prepend=True)
            module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, name: str) -> Any:
        def enter(*_: Any) -> None:
            self.names.append(name)

        return enter

    def _leave(self, *_: Any) -> None:
        self.names.pop()

    @property
    def innermost(self) -> str:
        """The name of the module that runs."""
        return self.names[-1] if self.names else ""

    def integers(self) -> dict[str, int]:
        """The plain integers among the attributes of the module that runs."""
        module = self.modules.get(self.innermost)
        if module is None:
            return {}
        return {k: v for k, v in vars(module).items() if type(v) is int}


class Follower(TorchDispatchMode):
    """Follows labels through operations, without computing the costly ones.

    Args:
        ledger: where the operations' demands go; None only runs the shapes through.
        deadline: of `time.process_time`, in seconds.
    """

    def __init__(self, stack: Stack, ledger: Ledger | None, deadline: float) -> None:
        super().__init__()
        self.stack, self.ledger, self.deadline = stack, ledger, deadline
        self.failed = ""  # the module in which an operation was last seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.failed = self.stack.innermost
        if time.process_time() > self.deadline:
            raise TimeLimit(self.stack.innermost)
        op = func._overloadpacket.__name__ if isinstance(func, torch._ops.OpOverload) else str(func)
        live = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        hollow = op in _COSTLY and all(t.device.type == "cpu" for t in live)
        out = _hollow(func, args, kwargs) if hollow else func(*args, **kwargs)
        if self.ledger is not None:
            self._follow(func, op, args, kwargs, live, out)
        return out

    def _follow(self, func: Any, op: str, args: Any, kwargs: Any, operands: list[Tensor], out: Any) -> None:
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        for t in results:
            if any(getattr(x, "_regrow_live", False) for x in operands):
                t._regrow_live = True  # type: ignore[attr-defined]
        if not any(rules.get(t) for t in operands):
            return
        pointwise = isinstance(func, torch._ops.OpOverload) and torch.Tag.pointwise in func.tags
        rule = (rules.find(op, pointwise) if _of_torch(func) else None) or rules.unknown
        assert self.ledger is not None
        call = rules.Call(self.ledger, op, func, args, kwargs, out, self.stack.innermost, self.stack.integers())
        try:
            given = rule(call)
            fits = all(x.atoms.dim() == t.dim() for t, layers in zip(results, given, strict=False) for x in layers)
        except (ValueError, RuntimeError, IndexError, TypeError):
            fits = False
        if not fits:  # arguments that the rule was not made for: what goes in stays dense
            given = rules.unknown(call)
        for i, t in enumerate(results):
            layers = given[i] if i < len(given) else ()
            t._regrow_layers = layers  # type: ignore[attr-defined]
            if op in _NAMED and hasattr(operands[0], "_regrow_names"):
                t._regrow_names = operands[0]._regrow_names  # type: ignore[attr-defined]


def _of_torch(func: Any) -> bool:
    return isinstance(func, torch._ops.OpOverload) and func.namespace in ("aten", "prims", "torchvision")


_COSTLY = frozenset(["convolution", "_convolution", "mm", "bmm", "addmm", "baddbmm"])


def _hollow(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Zeros of the shape that a costly operation returns."""
    on_meta = tree_map_only(Tensor, lambda t: t.detach().to("meta"), (args, kwargs))
    out = func(*on_meta[0], **on_meta[1])
    return tree_map_only(Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), out)


class TimeLimit(Exception):
    """The trace took too long; the argument is the module that it had come to."""


def replica_of(model: nn.Module) -> nn.Module:
    """A copy on the CPU that shares the values of parameters already there, but no buffers.

    Raises:
        UserError: the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for p in model.parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise UserError("the model has lazy parameters without a shape: run one batch through it first")
        memo[id(p)] = nn.Parameter(_on_cpu(p.detach()), requires_grad=p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = _on_cpu(b.detach()).clone()
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and id(value) not in memo:
                memo[id(value)] = _on_cpu(value.detach()).clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise UserError(f"the model cannot be traced, as it cannot be copied: {first_line(error)}") from error


def _on_cpu(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.cpu()


def prepared(inputs: Inputs) -> Inputs:
    """The same call on the CPU."""
    return inputs.map(lambda t: torch.zeros(t.shape, dtype=t.dtype) if t.is_meta else t.detach().cpu())


def run(
    replica: nn.Module,
    stack: Stack,
    ledger: Ledger | None,
    inputs: Inputs,
    deadline: float,
) -> Any:
    """One forward pass; with a ledger, labels of the inputs are live and those of the outputs fixed."""
    stack.names.clear()
    for t in inputs.tensors:
        t._regrow_live = True  # type: ignore[attr-defined]
    follower = Follower(stack, ledger, deadline)
    with quiet():
        try:
            with follower:
                out = inputs(replica)
        except Exception as error:
            stack.failed = [follower.failed]
            raise error
    if ledger is not None:
        for t in output_tensors(out):
            ledger.fix_all(rules.get(t), OUTPUT)
    return out


@dataclass(frozen=True)
class Trace:
    """What the operations of a model demand of its channels.

    Attributes:
        ledger: the demands.
        atoms: the numbering.
        unused: the parameters that were never used, with the reason.
    """

    ledger: Ledger
    atoms: Atoms
    unused: dict[str, str]


def trace(model: nn.Module, inputs: Inputs, deadline: float) -> Trace:
    """Follows the channels of one call of the model in eval mode, and where it runs there in training mode too: noise,
    auxiliary heads and features for a loss may only be there.

    Raises:
        UserError: the model does not run.
        TimeLimit: it took too long.
    """
    replica = replica_of(model)
    stack = Stack(replica)
    ledger, atoms = Ledger(), Atoms()
    for name, tensor in names.tensors(replica).items():
        tensor._regrow_layers = atoms.label(name, tensor)  # type: ignore[attr-defined]
        tensor._regrow_names = []  # type: ignore[attr-defined]
    for name, tensor in names.tensors(replica, every_name=True).items():
        tensor._regrow_names.append(name)  # type: ignore[attr-defined]
    ready = prepared(inputs)
    try:
        run(replica.eval(), stack, ledger, ready, deadline)
    except TimeLimit:
        raise
    except Exception as error:
        raise UserError(
            f"the model cannot be traced, as it does not run on the example input: {inputs.failure(error)}"
        ) from error
    reason = "the forward pass does not use it"
    why = ""
    for form in (two_examples(ready, other=False), ready):  # a batch norm needs more than one example
        seen = Ledger()
        try:
            run(replica.train(), stack, seen, form, deadline)
        except TimeLimit:
            raise
        except Exception as error:
            why = why or f" in eval mode, and training mode does not run on the example input ({first_line(error)})"
        else:
            ledger.extend(seen)
            why = ""
            break
    return Trace(ledger, atoms, dict.fromkeys(sorted(_unused(ledger, atoms, names.parameters(replica))), reason + why))


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
