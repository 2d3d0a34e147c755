"""Which parameters of a model are matrices: by the layer that they belong to, by their use, or by shape and name.

What multiplies is worth removing, whatever the class of its module. Layers of torch are known. For all others, one
forward pass tells (`regrow.tracing.flops.ModelFlops`); where there is none, or it did not reach a parameter, its shape
and name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from regrow import names

_LAYERS: tuple[tuple[type[nn.Module], str], ...] = (
    (_ConvNd, "weight"),
    (nn.Linear, "weight"),
    (nn.Bilinear, "weight"),
    (nn.MultiheadAttention, "in_proj_weight|q_proj_weight|k_proj_weight|v_proj_weight"),
    (nn.RNNBase, r"weight_\w+"),  # of LSTM, GRU and RNN: both directions, all depths, projections
    (nn.RNNCellBase, r"weight_\w+"),
)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
# first letters of words that name what is added, looked up or scaled by, not multiplied with
_NO_MATRIX = (
    "bias", "embed", "pos", "rel", "token", "cls", "table", "quer", "latent", "prototype", "anchor", "centroid", "code",
    "mask", "norm", "scale", "gain", "alpha", "beta", "gamma", "log", "memory", "prompt", "template",
)  # fmt: skip

EMBEDDING = "a token embedding, of which rows are looked up"
NOT_REAL = "only real floating-point weights can be sparsified"
FROZEN = "does not train (requires_grad=False)"
PARAMETRIZED = "is a part of a parametrization (weight_norm, spectral_norm, ...), which computes the weight from it"
NO_PRODUCT = "takes part in no matrix product or convolution of the example's forward pass"
UNKNOWN = "not recognised as a matrix by its layer, shape and name; example_inputs= would tell"


@dataclass(frozen=True)
class Matrices:
    """The parameters of two or more dimensions of a model, sorted out.

    Attributes:
        names: canonical names of those that are multiplied with and can be sparsified, in the model's order; tied ones
            once.
        dense: name → why it is not among them, for the others.
        first: the first that is multiplied with, whether it can be sparsified or not; None where there is none.
    """

    names: tuple[str, ...]
    dense: dict[str, str]
    first: str | None


class ForwardPass(Protocol):
    """What a forward pass tells of parameters, by canonical name; `regrow.tracing.flops.ModelFlops` has it."""

    @property
    def tables(self) -> Collection[str]:
        """Those that were looked up in."""

    @property
    def reached(self) -> Collection[str]:
        """Those that known operations took."""

    @property
    def by_parameter(self) -> Mapping[str, float]:
        """FLOPs of their products."""


def find(model: nn.Module, flops: ForwardPass | None = None) -> Matrices:
    """Sorts out the parameters of a model that have two or more dimensions (and any entries).

    Args:
        model: stays as it is.
        flops: of a forward pass of it, from `regrow.tracing.flops.count_flops`: what was multiplied in it is a matrix,
            of any module. Without, and for what the pass did not reach by ops that are known: parameters of torch's own
            layers (convolutions, linear, bilinear and recurrent layers, attention), and others of at least two
            dimensions longer than 1, the first among them, of modules that are neither embeddings nor norms, whose own
            name has no word that says that they are added or looked up (bias, position, token, table, query, ...).

    Returns:
        What there is; embeddings, also where they are tied to a layer, what does not train, and what is not real are
        dense.
    """
    layers, embeddings, parts = known_layers(model), _of(model, _EMBEDDINGS), _parametrized(model)
    owners = {id(p): module for module in model.modules() for p in module._parameters.values() if p is not None}

    def why_not(name: str, p: nn.Parameter) -> str | None:
        if id(p) in embeddings or (flops is not None and name in flops.tables):
            return EMBEDDING
        if id(p) in parts:
            return PARAMETRIZED
        if name in layers:
            return None
        if flops is not None and name in flops.reached:
            return None if flops.by_parameter[name] else NO_PRODUCT
        return None if _looks_like_one(name, p, owners[id(p)]) else UNKNOWN

    multiplied: dict[str, nn.Parameter] = {}
    dense: dict[str, str] = {}
    for name, p in names.parameters(model).items():
        if p.dim() > 1 and p.numel():
            reason = why_not(name, p)
            if reason is None:
                multiplied[name] = p
                reason = _unfit(p)
            if reason is not None:
                dense[name] = reason
    found = tuple(name for name in multiplied if name not in dense)
    return Matrices(found, dense, next(iter(multiplied), None))


def _unfit(p: nn.Parameter) -> str | None:
    """Why a matrix cannot be sparsified."""
    if not p.is_floating_point():
        return f"is {str(p.dtype).removeprefix('torch.')}, and {NOT_REAL}"
    return None if p.requires_grad else FROZEN


def known_layers(model: nn.Module) -> frozenset[str]:
    """Canonical names of the matrices of torch's own layers."""
    by_id = {id(p): name for name, p in names.parameters(model).items()}
    return frozenset(by_id[id(p)] for p in _known(model) if id(p) in by_id)


def _known(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        for kind, pattern in _LAYERS:
            if isinstance(module, kind):
                for attribute, p in module._parameters.items():
                    if p is not None and re.fullmatch(pattern, attribute):
                        yield p


def _of(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> frozenset[int]:
    """Ids of the parameters of all modules of these kinds."""
    return frozenset(id(p) for module in model.modules() if isinstance(module, kinds) for p in module.parameters())


def _parametrized(model: nn.Module) -> frozenset[int]:
    """Ids of the parameters from which layers compute their weight: a zeroed row of one could make it NaN."""
    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.utils.parametrize.ParametrizationList):
            found |= {id(p) for p in module.parameters()}
        elif isinstance(module, _ConvNd | nn.Linear | nn.Bilinear) and "weight" not in module._parameters:
            found |= {id(p) for name, p in module._parameters.items() if name.startswith("weight_") and p is not None}
    return frozenset(found)


def _looks_like_one(name: str, p: Tensor, owner: nn.Module) -> bool:
    kind = type(owner).__name__.lower()
    if isinstance(owner, _NORMS) or "norm" in kind or "embed" in kind:
        return False
    words = re.findall(r"[a-z]+", name.rpartition(".")[2].lower())
    if any(word.startswith(_NO_MATRIX) for word in words):
        return False
    return p.shape[0] > 1 and sum(size > 1 for size in p.shape) > 1
