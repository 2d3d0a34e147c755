"""What to do with each kind of optimizer state when entries stop or start to train.

State tensors are recognised by their shape (that of the parameter) and by the tables below.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from regrow.codes import count
from regrow.shards import ALONE, Ranks, local

Kind = Literal["first", "second", "parameter", "keep"]

# "first": an average of past gradients; starts afresh when an entry becomes trainable.
# "second": an average of past squared gradients; kept, as zeroing it beside the first makes Adam's first step 3.1 times
#           too large; where it was never estimated, it starts from the mean over the entries that have been training.
# "parameter": a second copy of the weights (slow or averaged weights); holds wherever the weight itself is held.
# "keep": neither; left alone.
KINDS: dict[str, Kind] = {
    "momentum_buffer": "first",
    "exp_avg": "first",
    "grad_avg": "first",
    "prev": "first",
    "momentum": "first",
    "mu": "first",
    "exp_avg_diff": "first",
    "last_grad": "first",
    "neg_pre_grad": "first",
    "exp_avg_sq": "second",
    "max_exp_avg_sq": "second",
    "square_avg": "second",
    "exp_inf": "second",
    "sum": "second",
    "acc_delta": "second",
    "exp_avg_var": "second",
    "grad_sum_sq": "second",
    "z": "parameter",
    "ax": "parameter",
    "x": "parameter",
    "y": "parameter",
    "x0": "parameter",
    "lookahead_slow_buff": "parameter",
    "slow_buffer": "parameter",
    "slow_param": "parameter",
    "cached_params": "parameter",
    "step_size": "keep",
}

# Below this share of the mean, a second moment is taken as never estimated, or faded away while its entry was pruned.
FADED = 1e-3

# Optimizers whose step leaves an entry at exactly zero if its value, gradient and first moments are zero: element-wise,
# multiplicative decay, and a denominator that is never zero. For any other, zeros are written again after every step.
KEEPS_ZERO: dict[str, str] = {  # qualified class name → the option that must be above zero ("" for none)
    "torch.optim.sgd.SGD": "",
    "torch.optim.adam.Adam": "eps",
    "torch.optim.adamw.AdamW": "eps",
    "torch.optim.rmsprop.RMSprop": "eps",
    "torch.optim.nadam.NAdam": "eps",
    "torch.optim.adamax.Adamax": "eps",
    "torch.optim.adagrad.Adagrad": "eps",
}

REFUSED: dict[str, str] = {
    "LBFGS": "it evaluates the loss many times inside one step and mixes all parameters into one direction; "
    "use SGD, Adam or another first-order optimizer",
    "SparseAdam": "it only takes sparse gradients; use Adam",
}


def unwrap(optimizer: Any) -> Optimizer:
    """The torch optimizer inside a wrapper that keeps it as ``.optimizer`` (Accelerate, Lightning)."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def state_owner(optimizer: Optimizer) -> Optimizer:
    """The optimizer that holds the state of another: timm's Lookahead, or SAM, leave it all to the one inside."""
    trained = {id(param) for group in optimizer.param_groups for param in group["params"]}
    for inner in vars(optimizer).values():
        if isinstance(inner, Optimizer) and trained == {id(p) for g in inner.param_groups for p in g["params"]}:
            return state_owner(inner)
    return optimizer


def fails_without_entries(optimizer: Optimizer) -> str:
    """What its steps raise where parameters have no entries, but not where they have; "" where that goes well."""
    kinds = [{p.dim() for p in group["params"]} for group in optimizer.param_groups]

    def tried(size: int) -> str:
        probe = copy.copy(optimizer)
        probe.state = defaultdict(dict)
        probe.param_groups = [
            {**group, "params": [torch.nn.Parameter(torch.ones((size,) * dim)) for dim in sorted(dims) if dim]}
            for group, dims in zip(optimizer.param_groups, kinds, strict=True)
        ]
        try:
            for _ in range(2):
                for p in (p for group in probe.param_groups for p in group["params"]):
                    p.grad = torch.ones_like(p)
                probe.step()
        except Exception as error:
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return ""

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return "" if tried(2) else tried(0)


def keeps_zero(optimizer: Optimizer, group: MutableMapping[str, Any], dtype: torch.dtype) -> bool:
    """Whether a masked gradient is enough to keep pruned entries of this group, of this dtype, at exactly zero."""
    kind = type(optimizer)
    option = KEEPS_ZERO.get(f"{kind.__module__}.{kind.__qualname__}")
    return option is not None and (not option or bool(torch.tensor(group[option], dtype=dtype) > 0))


def tensors(state: MutableMapping[str, Any], param: Tensor) -> Iterator[tuple[str, Kind, Tensor]]:
    """The state tensors that have one number for each entry of the parameter, with their kind; of sharded ones, what
    this process holds.

    Args:
        state: the optimizer's state of a parameter.
        param: what this process holds of that.

    Warns:
        UserWarning: where a tensor of this shape has a name that no table knows; it is left alone.
    """
    for name, found in state.items():
        value = local(found) if isinstance(found, Tensor) else None
        if value is not None and value.shape == param.shape and value.dim() > 0:
            kind = KINDS.get(name)
            if kind is None:
                warnings.warn(
                    f"optimizer state {name!r} is unknown to regrow and left alone when weights are pruned or grown; "
                    f"add it to regrow.optim_state.KINDS if it is a moment or a copy of the weights",
                    stacklevel=2,
                )
                kind = "keep"
            yield name, kind, value


def normalizes(group: Mapping[str, Any]) -> bool:
    """Whether an optimizer with these options undoes any scale of gradients: by second moments, signs, or a norm."""
    return "eps" in group or "betas" in group


@torch.no_grad()
def update_state_for(
    state: MutableMapping[str, Any],
    param: Tensor,
    trainable: Tensor,
    before: Tensor,
    restarted: Tensor,
    ranks: Ranks = ALONE,
) -> None:
    """Makes the state fit new codes.

    Args:
        state: the optimizer's state of `param`.
        param: the parameter, already holding its new live values.
        trainable: bool, entries that train from now on.
        before: bool, entries that have trained until now.
        restarted: bool, entries whose live value was set anew (from memory or to zero).
        ranks: the processes that hold the rest of the parameter, and call this as well.
    """
    fresh = trainable & ~before
    some = ranks.several or bool(count(fresh))
    for _, kind, value in tensors(state, param):
        if kind == "first":
            value.masked_fill_(~trainable | fresh, 0)
        elif kind == "second" and some:
            known = value.masked_fill(~before, 0)
            total, counted = known.sum(dtype=torch.float32), (known != 0).sum()
            if ranks.several:
                total, counted = ranks.sums(torch.stack([total.double(), counted.double()]))
            mean = total / counted.clamp(min=1)
            faded = fresh & (value < FADED * mean)
            value.copy_(torch.where(faded, mean.to(value.dtype), value))
        elif kind == "parameter":
            value.copy_(torch.where(restarted, param, value))
