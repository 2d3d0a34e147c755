"""Importance criteria: pure functions from weights (and gradients) to scores, the same for pruning and for growing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from regrow import hints
from regrow.errors import UserError, nearest

CRITERIA: dict[str, Criterion] = {}
Signed = Callable[[list[Tensor], list[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Criterion:
    """How important each entry is; higher stays.

    `function` takes ``weight``, or ``weight, grad``, or has a parameter named ``generator``, and returns a tensor of
    the weight's shape. With ``grad`` it is called at every step of the phase that scores, and its results are averaged;
    without, once when the phase ends.

    `signed` gives, for lists of weights and of their gradients, what scores are the absolute values of. Where it is
    there, a channel's score is the absolute value of the sum over all that goes with the channel (on the scale and
    shift of its norms, if it has any), and not the mean over its weights (Molchanov et al. 2019; HALP, section 3.1).

    `after` is what becomes of the average over steps, such as its absolute value.

    `by_entry` says that the score of an entry depends on its own weight and gradient alone, so that it is the same in a
    shard of the layer.

    `by_size` says that it ranks entries, and blocks of them by their mean, by \\|w\\|, as soft projections need it.
    """

    name: str
    function: Callable[..., Tensor]
    uses_grad: bool
    uses_generator: bool
    signed: Signed | None = None
    by_size: bool = False
    after: Callable[[Tensor], Tensor] | None = None
    by_entry: bool = False

    def __call__(self, weight: Tensor, grad: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Scores in fp32, NaN (never chosen) as the lowest; shape of `weight`.

        Raises:
            UserError: where a user's function returns something of another shape, or what cannot be ranked.
        """
        args: list[Tensor | None] = [weight]
        if self.uses_grad:
            args.append(grad)
        versions = [tensor._version for tensor in args if tensor is not None]
        score = self.function(*args, generator=generator) if self.uses_generator else self.function(*args)
        if versions != [tensor._version for tensor in args if tensor is not None]:
            raise UserError(f"criterion {self.name!r} changes its arguments in place; let it return a new tensor")
        if not isinstance(score, Tensor) or score.shape != weight.shape:
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise UserError(f"criterion {self.name!r} must return scores of shape {tuple(weight.shape)}, not {got}")
        if score.is_complex() or score.layout is not torch.strided:
            raise UserError(
                f"criterion {self.name!r} must return real scores in a plain tensor, not {score.dtype}, {score.layout}"
            )
        return score.to(torch.float32)

    @classmethod
    def of(cls, value: str | Criterion | Callable[..., Tensor]) -> Criterion:
        """A criterion from its registered name, from a function of (weight) or (weight, grad), or as it is.

        Raises:
            UserError: for an unknown name, or a function of other parameters.
        """
        if isinstance(value, Criterion):
            return value
        if isinstance(value, str):
            if value not in CRITERIA:
                raise UserError(f"criterion {hints.show(value)} is unknown{nearest(value, CRITERIA)}")
            return CRITERIA[value]
        if not callable(value):
            raise UserError(
                f"criterion must be a name or a function of (weight) or (weight, grad), not {hints.show(value)}"
            )
        try:
            parameters = inspect.signature(value).parameters
        except ValueError:  # a builtin: taken as a function of the weight
            parameters = inspect.signature(lambda weight: weight).parameters
        random = "generator" in parameters
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        tensors = [
            name
            for name, p in parameters.items()
            if p.kind in positional and p.default is inspect.Parameter.empty and name != "generator"
        ]
        if len(tensors) not in (1, 2):
            raise UserError(f"criterion {value!r} must take (weight) or (weight, grad), not ({', '.join(parameters)})")
        return cls(getattr(value, "__name__", "custom"), value, uses_grad=len(tensors) == 2, uses_generator=random)


def register(
    function: Callable[..., Tensor],
    signed: Signed | None = None,
    by_size: bool = False,
    after: Callable[[Tensor], Tensor] | None = None,
    by_entry: bool = True,
) -> Callable[..., Tensor]:
    """Makes a function a criterion under its own name."""
    CRITERIA[function.__name__] = replace(
        Criterion.of(function), signed=signed, by_size=by_size, after=after, by_entry=by_entry
    )
    return function


@partial(register, by_size=True)
def magnitude(weight: Tensor) -> Tensor:
    """\\|w\\|: the default for single weights (Han et al. 2015)."""
    return weight.abs()


@register
def l2(weight: Tensor) -> Tensor:
    """w²: ranks single weights as magnitude does, and channels by the L2 norm of their weights (Li et al. 2017)."""
    return weight.square()


@partial(register, signed=torch._foreach_mul)
def taylor(weight: Tensor, grad: Tensor) -> Tensor:
    """\\|w·∂w\\|: the loss change of removing an entry, to first order (Molchanov et al. 2019)."""
    return (weight * grad).abs_()


@register
def gradient(weight: Tensor, grad: Tensor) -> Tensor:
    """\\|∂w\\|: RigL's criterion for growing (Evci et al. 2020)."""
    return grad.abs()


@partial(register, after=torch.abs)
def momentum(weight: Tensor, grad: Tensor) -> Tensor:
    """\\|mean of ∂w\\| over the steps that score: SNFS's criterion for growing (Dettmers & Zettlemoyer 2019), whose
    mean fades exponentially."""
    return grad


@partial(register, after=torch.abs)
def snip(weight: Tensor, grad: Tensor) -> Tensor:
    """\\|mean of w·∂w\\| over the steps that score: the sensitivity of connections (Lee et al. 2019,
    arXiv:1810.02340)."""
    return weight * grad


@register
def fisher(weight: Tensor, grad: Tensor) -> Tensor:
    """½·w²·∂w²: the loss change of removing an entry by the empirical Fisher information of whole batches (Theis et al.
    2018, arXiv:1801.05787)."""
    return (weight * grad).square_().div_(2)


@register
def movement(weight: Tensor, grad: Tensor) -> Tensor:
    """−w·∂w: high where training moves an entry away from zero (Sanh et al. 2020, arXiv:2005.07683); for
    fine-tuning."""
    return (weight * grad).neg_()


@partial(register, by_entry=False)
def lamp(weight: Tensor) -> Tensor:
    """w² / Σ of all w² of the layer that are as large or larger (Lee et al. 2021, arXiv:2010.07611): ranks within a
    layer as magnitude does, and all layers together (``scope="global"``) without a distribution."""
    flat = weight.double().flatten().square()  # of which the smallest are not zero, as in fp32
    order = flat.argsort(stable=True)
    rest = flat[order].flip(0).cumsum(0).flip(0)
    return (
        torch.empty_like(flat)
        .index_put_((order,), flat[order] / rest.clamp(min=torch.finfo(flat.dtype).tiny))
        .view(weight.shape)
    )


@register
def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform noise: SET's criterion for growing (Mocanu et al. 2018), and a check on any other."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)
