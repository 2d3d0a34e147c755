"""FLOPs of a forward pass per parameter, read from a trace.

They are counted with the formulas of ``torch.utils.flop_counter`` (2 per multiply-add; biases, like every pointwise
op, are free) and each counted op is attributed to the parameter that it multiplies, found through the storage of its
operands. So tied weights, functional use, ``in_proj_weight`` and transposed views need no special case.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from regrow.inputs import Inputs
from regrow.matrices import known_layers
from regrow.quiet import no_onednn, quiet
from regrow.tracing.ops import ADDED, FORMULAS, LOOKUPS, is_free
from regrow.tracing.replica import inputs_of_replica, on_cpu, on_meta, replica_of
from regrow.tracing.trace import ModelTrace, Operation, Value, record


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of one forward pass, per sample of the batch (2 for each multiply-add).

    Attributes:
        total: all counted FLOPs.
        by_parameter: FLOPs of the ops that multiply by this parameter, for every parameter of the model (0.0 where
            there are none), under the names of ``model.named_parameters()``, without marks of torch.compile; tied
            weights appear once.
        other: ``total`` minus the sum of ``by_parameter`` (attention products, and whatever cannot be attributed).
        uncounted: ops that have no formula and are not free by convention (`regrow.tracing.ops`) → number of calls.
        reached: the parameters that were used, by ops that are all known.
        tables: those of two dimensions of which rows were looked up by the input (embeddings), whatever else they did.
        batch: how many samples the example has.
    """

    total: float
    by_parameter: dict[str, float]
    other: float
    uncounted: dict[str, int] = field(default_factory=dict)
    reached: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    batch: int = 1

    def inference(self, densities: Mapping[str, float]) -> float:
        """FLOPs of a forward pass at these densities (parameter name → 0…1; a parameter that is not named is dense).

        Raises:
            KeyError: a name is not a parameter of the model that was counted.
        """
        self.check_names(densities)
        return self.other + sum(flops * densities.get(name, 1.0) for name, flops in self.by_parameter.items())

    def check_names(self, densities: Mapping[str, float]) -> None:
        """Raises `KeyError` where a name is not a parameter of the model that was counted."""
        unknown = [name for name in densities if name not in self.by_parameter]
        if unknown:
            raise KeyError(f"{unknown[0]!r} is not a parameter of the model whose FLOPs were counted")


def count_flops(model: nn.Module, example_inputs: Any, kwargs: Mapping[str, Any] | None = None) -> ModelFlops:
    """Counts the FLOPs of a forward pass in eval mode, per sample.

    It runs a copy of the model: on the meta device, where nothing is computed, or on the CPU if the model cannot run
    there. The model, its buffers and mode, the inputs and the random state stay untouched; forward hooks that the
    model carries do run, on the copy.

    Args:
        model: on any device, in any mode.
        example_inputs: one batch, in any form that `Inputs.of` takes; tensors on the meta device will do.
        kwargs: further keyword arguments of the forward pass.

    Raises:
        UserError: the model has uninitialized (lazy) parameters, cannot be copied, or cannot run on these inputs.
    """
    inputs = Inputs.of(example_inputs, kwargs)
    return flops_of(_run(model, inputs), inputs.batch, known_layers(model))


def flops_of(trace: ModelTrace, batch: int, matrices: Collection[str]) -> ModelFlops:
    """The FLOPs in a trace of a model that was called with a batch of so many samples.

    Args:
        matrices: names of parameters that are the weight of a product, where several parameters meet in it.
    """
    count = _Count(trace, matrices)
    by_parameter = {name: count.flops[name] / batch for name in trace.parameters}
    other = count.flops[None] / batch
    total = sum(by_parameter.values()) + other
    reached, tables = frozenset(count.reached - count.hidden), frozenset(count.tables)
    return ModelFlops(total, by_parameter, other, dict(count.uncounted), reached, tables, batch)


def _run(model: nn.Module, inputs: Inputs) -> ModelTrace:
    # a value read with .item(), or a tensor that the forward pass makes on the CPU, does not run on the meta device
    for place in (on_meta, lambda t: on_cpu(t).clone()):
        replica = replica_of(model, place).eval()
        try:
            with quiet(), no_onednn():
                return record(replica, inputs_of_replica(inputs, place))
        except Exception as error:
            failure = error
    raise inputs.refusal(failure) from failure


class _Count:
    """Adds up the FLOPs of every op by the parameter that it multiplies (key None: by no parameter).

    Besides the parameters it follows what is computed from them and constants alone (a normalised, masked or cast
    weight), as long as the tensor stays recognisable as one parameter by its size; of stacked matrices (experts) also
    what the input chooses among them.

    Args:
        trace, matrices: as for `flops_of`.
    """

    def __init__(self, trace: ModelTrace, matrices: Collection[str]) -> None:
        self.reached: set[str] = set()
        self.hidden: set[str] = set()  # in ops that are not known
        self.tables: set[str] = set()
        self.flops: defaultdict[str | None, float] = defaultdict(float)
        self.uncounted: Counter[str] = Counter()
        self._matrices = matrices
        self._parameters = {value.storage: name for name, value in trace.parameters.items()}
        # storages that no input has flowed into → the parameter that they stand for, if any
        self._owners: dict[int, str | None] = dict.fromkeys(value.storage for value in trace.constants)
        self._owners |= self._parameters
        for operation in trace.operations:
            self._add(operation)

    def _add(self, operation: Operation) -> None:
        func, operands = operation.func, operation.operands
        overload = isinstance(func, torch._ops.OpOverload)
        op = func._overloadpacket if overload else func
        formula = FORMULAS.get(op)
        if formula is not None:
            given = (operation.args, operation.kwargs, operation.out)
            args, kwargs, out = tree_map_only(Value, lambda value: value.shape, given)
            self.flops[self._multiplied(op, operation.args)] += formula(*args, **kwargs, out_val=out)
        elif not is_free(func):
            self.hidden |= {name for value in operands if (name := self._owners.get(value.storage))}
            self.uncounted[f"{func.namespace}.{op.__name__}" if overload else func.name()] += 1
        self.reached |= {name for value in operands if (name := self._parameters.get(value.storage))}
        self._follow(operands, operation.results, keeps_owner=formula is None)
        if op in LOOKUPS:
            self._look_up(op, operation.args, operation.out)

    def _multiplied(self, op: Any, args: tuple[Any, ...]) -> str | None:
        added = ADDED.get(op)
        factors = [value for i, value in enumerate(args) if isinstance(value, Value) and i != added]
        owned = [(name, f.shape.numel()) for f in factors if (name := self._owners.get(f.storage)) is not None]
        return max(owned, key=lambda item: (item[0] in self._matrices, item[1]))[0] if owned else None

    def _look_up(self, op: Any, args: tuple[Any, ...], out: Any) -> None:
        """Notes that rows of a parameter were looked up by the input, or matrices of a stack of them."""
        at, by = LOOKUPS[op]
        owner = self._owners.get(args[at].storage)
        by_constants = all(value.storage in self._owners for value in tree_leaves(args[by]) if isinstance(value, Value))
        if owner is None or (by_constants and op in (torch.ops.aten.index, torch.ops.aten.index_select)):
            return
        if len(args[at].shape) > 2 and isinstance(out, Value):
            self._owners[out.storage] = owner
        else:
            self.tables.add(owner)

    def _follow(self, operands: list[Value], results: list[Value], keeps_owner: bool) -> None:
        constant = all(value.storage in self._owners for value in operands)
        for result in results:
            key = result.storage
            if key in self._parameters:
                continue
            if not constant:
                self._owners.pop(key, None)
            elif key not in self._owners:
                same = [value for value in operands if value.shape.numel() == result.shape.numel()]
                owners = {self._owners[value.storage] for value in same} - {None}
                self._owners[key] = owners.pop() if keeps_owner and len(owners) == 1 else None
