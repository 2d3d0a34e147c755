"""What a model costs under masks: FLOPs of a forward pass per parameter, and of training by phase.

FLOPs are counted with the formulas of ``torch.utils.flop_counter`` (2 per multiply-add; biases, like every pointwise
op, are free) and each counted op is attributed to the parameter that it multiplies, found through the storage of its
operands. So tied weights, functional use, ``in_proj_weight`` and transposed views need no special case.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from . import names
from .errors import UserError
from .inputs import Inputs
from .matrices import known_layers
from .ops import ADDED, FORMULAS, LOOKUPS, is_free
from .quiet import quiet


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of one forward pass, per sample of the batch (2 for each multiply-add).

    Attributes:
        total: all counted FLOPs.
        by_parameter: FLOPs of the ops that multiply by this parameter, for every parameter of the model (0.0 where
            there are none), under the names of ``model.named_parameters()``, without marks of torch.compile; tied
            weights appear once.
        other: ``total`` minus the sum of ``by_parameter`` (attention products, and whatever cannot be attributed).
        uncounted: ops that have no formula and are not free by convention (`regrow.ops.FREE_BY_KIND`) → number of
            calls.
        reached: the parameters that were used, by ops that are all known.
        tables: those of two dimensions of which rows were looked up by the input (embeddings), whatever else they did.
    """

    total: float
    by_parameter: dict[str, float]
    other: float
    uncounted: dict[str, int] = field(default_factory=dict)
    reached: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()

    def inference(self, densities: Mapping[str, float]) -> float:
        """FLOPs of a forward pass at these densities (parameter name → 0…1; a parameter that is not named is dense).

        Raises:
            KeyError: a name is not a parameter of the model that was counted.
        """
        _check_names(self, densities)
        return self.other + sum(flops * densities.get(name, 1.0) for name, flops in self.by_parameter.items())


@dataclass
class PhaseSteps:
    """What training has done so far in one phase: sums over its steps, which is all that the cost depends on.

    Attributes:
        steps: number of optimizer steps.
        dense_gradient_steps: how many of them needed the gradient of every weight, pruned and frozen ones too.
        density_steps: parameter name → its density summed over all the steps (a parameter that is not named is dense).
        dense_density_steps: the same sum over the dense-gradient steps only.
    """

    steps: int = 0
    dense_gradient_steps: int = 0
    density_steps: dict[str, float] = field(default_factory=dict)
    dense_density_steps: dict[str, float] = field(default_factory=dict)

    def add(self, steps: int, dense_gradient_steps: int, densities: Mapping[str, float]) -> None:
        """Books steps at these densities (parameter name → 0…1), the given number of them with dense gradients."""
        self.steps += steps
        self.dense_gradient_steps += dense_gradient_steps
        for sums, n in ((self.density_steps, steps), (self.dense_density_steps, dense_gradient_steps)):
            for name, density in densities.items():
                sums[name] = sums.get(name, 0.0) + density * n


def training_cost(
    flops: ModelFlops, ledger: Mapping[str, PhaseSteps], total_steps: int | None = None
) -> dict[str, float]:
    """Training FLOPs × those of dense training, by phase, and their sum under ``"total"``.

    With f_S and f_D the FLOPs of a sparse and of the dense forward pass, a step costs 3·f_S; with dense weight
    gradients 2·f_S + f_D; in the phase named ``"explore"`` 2·f_D + (f_D − f_S), as only what was pruned gets weight
    gradients, or 3·f_D with dense weight gradients. A dense step costs 3·f_D.

    Args:
        flops: from `count_flops`.
        ledger: phase → the steps done in it.
        total_steps: of the dense training to compare with; default: as many steps as the ledger holds.
    """
    done = sum(phase.steps for phase in ledger.values())
    # a model without a single counted op costs the same at any density
    dense_step = 3 * flops.total or 3.0
    whole = dense_step * (total_steps if total_steps is not None else done)
    costs: dict[str, float] = {}
    for name, phase in ledger.items():
        sparse = _summed(flops, phase.steps, phase.density_steps)
        sparse_at_dense_gradient = _summed(flops, phase.dense_gradient_steps, phase.dense_density_steps)
        if name == "explore":
            spent = dense_step * phase.steps - (sparse - sparse_at_dense_gradient)
        else:
            dense = flops.total * phase.dense_gradient_steps
            spent = 3 * sparse - sparse_at_dense_gradient + dense
        if not flops.total:
            spent = dense_step * phase.steps
        costs[name] = spent / whole if whole else 0.0
    return {**costs, "total": sum(costs.values())}


def dense_gradient_cost(
    flops: ModelFlops, ledger: Mapping[str, PhaseSteps], total_steps: int | None = None
) -> dict[str, float]:
    """What of `training_cost` goes into the weight gradients of pruned entries while these do not train, by phase: for
    previewing them in memory (IEE), or for choosing what to grow (RigL). Per step that needs them that is f_D − f_S.

    Args:
        flops, ledger, total_steps: as there.
    """
    done = sum(phase.steps for phase in ledger.values())
    whole = 3 * flops.total * (total_steps if total_steps is not None else done)
    costs: dict[str, float] = {}
    for name, phase in ledger.items():
        if name != "explore":  # which trains them
            sparse = _summed(flops, phase.dense_gradient_steps, phase.dense_density_steps)
            costs[name] = (flops.total * phase.dense_gradient_steps - sparse) / whole if whole else 0.0
    return costs


def _summed(flops: ModelFlops, steps: int, density_steps: Mapping[str, float]) -> float:
    """Sparse forward FLOPs summed over steps; a parameter that is not named is dense in all of them."""
    _check_names(flops, density_steps)
    by_parameter = sum(cost * density_steps.get(name, steps) for name, cost in flops.by_parameter.items())
    return flops.other * steps + by_parameter


def _check_names(flops: ModelFlops, names: Mapping[str, float]) -> None:
    unknown = [name for name in names if name not in flops.by_parameter]
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
        UserError: the model has uninitialized (lazy) parameters, or cannot run on these inputs.
    """
    inputs = Inputs.of(example_inputs, kwargs)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise UserError("the model has lazy parameters without a shape: run one batch through it first")
    batch = inputs.batch
    try:
        counter = _run(model, inputs, "meta")
    except Exception:
        # e.g. a value read with .item(), or a tensor that the forward pass makes on the CPU
        try:
            counter = _run(model, inputs, "cpu")
        except Exception as error:
            reason = inputs.failure(error)
            raise UserError(
                f"FLOPs cannot be counted, as the model does not run on the example input: {reason}"
            ) from error
    by_parameter = {name: counter.flops[name] / batch for name in names.parameters(model)}
    other = counter.flops[None] / batch
    total = sum(by_parameter.values()) + other
    uncounted, reached, tables = (
        dict(counter.uncounted),
        frozenset(counter.reached - counter.hidden),
        frozenset(counter.tables),
    )
    return ModelFlops(total, by_parameter, other, uncounted, reached, tables)


def _run(model: nn.Module, inputs: Inputs, device: str) -> _FlopCounter:
    twins = {id(p): _twin(p, device, parameter=True) for p in model.parameters()}
    twins |= {id(b): _twin(b, device) for b in model.buffers()}
    # plain tensor attributes, e.g. a weight that a hook computes, which deepcopy would refuse
    plain = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    twins |= {id(t): _twin(t, device) for t in plain if id(t) not in twins}
    # with its tensors in the memo, deepcopy copies only the structure
    replica = copy.deepcopy(model, dict(twins)).eval()
    inputs = inputs.map(lambda t: _twin(t, device))
    parameters = {name: twins[id(p)] for name, p in names.parameters(model).items()}
    counter = _FlopCounter(parameters, twins.values(), known_layers(model))
    with quiet(), _no_onednn(), counter:
        inputs(replica)
    return counter


def _twin(tensor: Tensor, device: str, parameter: bool = False) -> Tensor:
    if device == "meta":
        twin = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    elif tensor.is_meta:  # a shape without values; zeros are valid as tokens and indices too
        twin = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
    else:
        twin = tensor.detach().to(device, copy=True)
    return nn.Parameter(twin, requires_grad=tensor.requires_grad) if parameter else twin


@contextmanager
def _no_onednn() -> Iterator[None]:
    """Without oneDNN's fused LSTM, which hides its products."""
    enabled = torch.backends.mkldnn.enabled
    # its own context manager also resets precisions, with a warning
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = enabled


class _FlopCounter(TorchDispatchMode):
    """Adds up the FLOPs of every op by the parameter that it multiplies (key None: by no parameter).

    Besides the parameters it follows what is computed from them and constants alone (a normalised, masked or cast
    weight), as long as the tensor stays recognisable as one parameter by its size; of stacked matrices (experts) also
    what the input chooses among them.

    Args:
        parameters: canonical name → parameter of the model that runs.
        constants: all tensors that it holds.
        matrices: names of parameters that are the weight of a product, where several parameters meet in it.
    """

    supports_higher_order_operators = True

    def __init__(
        self, parameters: Mapping[str, Tensor], constants: Iterable[Tensor], matrices: Collection[str]
    ) -> None:
        super().__init__()
        self.reached: set[str] = set()
        self.hidden: set[str] = set()  # in ops that are not known
        self.tables: set[str] = set()
        self._matrices = matrices
        self.flops: defaultdict[str | None, float] = defaultdict(float)
        self.uncounted: Counter[str] = Counter()
        self._formulas = {**FORMULAS, **flop_registry}
        self._parameters = {_storage(p): name for name, p in parameters.items()}
        # storages that no input has flowed into → the parameter that they stand for, if any
        self._owners: dict[int, str | None] = {**dict.fromkeys(map(_storage, constants)), **self._parameters}
        # a storage is known by its address, which must not be used again
        self._alive: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        overload = isinstance(func, torch._ops.OpOverload)
        op = func._overloadpacket if overload else func
        formula = self._formulas.get(op)
        if formula is None and overload and func.namespace != "prim":
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if formula is not None:
            self.flops[self._multiplied(op, args)] += formula(*args, **kwargs, out_val=out)
        elif not is_free(func):
            self.hidden |= {name for t in operands if (name := self._owners.get(_storage(t)))}
            self.uncounted[f"{func.namespace}.{op.__name__}" if overload else func.name()] += 1
        self.reached |= {name for t in operands if (name := self._parameters.get(_storage(t)))}
        self._follow(operands, out, keeps_owner=formula is None)
        if op in LOOKUPS:
            self._look_up(op, args, out)
        return out

    def _multiplied(self, op: Any, args: tuple[Any, ...]) -> str | None:
        added = ADDED.get(op)
        factors = [t for i, t in enumerate(args) if isinstance(t, Tensor) and i != added]
        owned = [(name, t.numel()) for t in factors if (name := self._owners.get(_storage(t))) is not None]
        return max(owned, key=lambda item: (item[0] in self._matrices, item[1]))[0] if owned else None

    def _look_up(self, op: Any, args: tuple[Any, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        """Notes that rows of a parameter were looked up by the input, or matrices of a stack of them."""
        at, by = LOOKUPS[op]
        owner = self._owners.get(_storage(args[at]))
        by_constants = all(_storage(t) in self._owners for t in tree_leaves(args[by]) if isinstance(t, Tensor))
        if owner is None or (by_constants and op in (torch.ops.aten.index, torch.ops.aten.index_select)):
            return
        if args[at].dim() > 2 and isinstance(out, Tensor):
            self._owners[_storage(out)] = owner
            self._alive.append(out)
        else:
            self.tables.add(owner)

    def _follow(self, operands: list[Tensor], out: Any, keeps_owner: bool) -> None:
        constant = all(_storage(t) in self._owners for t in operands)
        for result in tree_leaves(out):
            if not isinstance(result, Tensor) or (key := _storage(result)) in self._parameters:
                continue
            if not constant:
                self._owners.pop(key, None)
            elif key not in self._owners:
                owners = {self._owners[_storage(t)] for t in operands if t.numel() == result.numel()} - {None}
                self._owners[key] = owners.pop() if keeps_owner and len(owners) == 1 else None
                self._alive.append(result)


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # e.g. a sparse tensor
        return id(tensor)
