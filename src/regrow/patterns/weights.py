"""Single weights: any entry may go, each on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from regrow import names
from regrow.distribution import RAW, active_counts
from regrow.errors import UserError, nearest
from regrow.patterns.base import EntryPattern, register
from regrow.selection import top_k, top_k_of_all

# Where the weights are that are worth removing. Biases and norms stay dense.
WEIGHTS: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (_ConvNd, ("weight",)),
    (nn.Linear, ("weight",)),
    (nn.Bilinear, ("weight",)),
    (nn.MultiheadAttention, ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")),
)


@register
@dataclass(frozen=True)
class Weights(EntryPattern):
    """Single weights of convolutions and linear layers (any module in `WEIGHTS`).

    Args:
        sparsity: share of these weights that is removed, from 0 up to but not including 1.
        distribution: how many per layer. ``"uniform"`` (the first layer of the model stays dense), ``"er"``, ``"erk"``
            (Evci et al. 2020; layers that come out denser than full are dense), ``"global"`` (all layers ranked
            together from the start), or a mapping from layer to density (names as in `exclude`; of several that
            match the last one counts, and a parameter's own name above all), the others uniform at `sparsity`.
        scope: ``"layer"`` keeps each layer's count; ``"global"`` ranks all layers together at every update, so that the
            distribution drifts. Each layer keeps at least one weight.
        exclude: layers that stay dense; names of modules or parameters, ``*`` and ``?`` allowed.
        include: only these are sparsified; names as above, and any parameter of two or more dimensions may be named.

    Raises:
        UserError: for a sparsity, density, distribution or scope outside its range.
    """

    name: ClassVar[str] = "weights"

    sparsity: float
    distribution: str | Mapping[str, float] = "uniform"
    scope: str = "layer"
    exclude: Sequence[str] = ()
    include: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.sparsity, bool) or not 0 <= self.sparsity < 1:
            raise UserError(f"sparsity is {self.sparsity}, but must lie in [0, 1): the share of weights to remove")
        if isinstance(self.distribution, str):
            if self.distribution not in (*RAW, "global"):
                hint = nearest(self.distribution, (*RAW, "global"))
                raise UserError(f"distribution {self.distribution!r} is unknown{hint}")
        else:
            for layer, density in self.distribution.items():
                if not 0 < density <= 1:
                    raise UserError(f"distribution gives {layer!r} the density {density}, but it must lie in (0, 1]")
        if self.scope not in ("layer", "global"):
            raise UserError(f"scope {self.scope!r} is unknown; use 'layer' or 'global'")
        for option in ("exclude", "include"):
            if isinstance(getattr(self, option), str):
                raise UserError(f"{option} must be a list of names, not the string {getattr(self, option)!r}")

    @property
    def ranks_globally(self) -> bool:
        """Whether all layers are ranked together."""
        return self.scope == "global" or self.distribution == "global"

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        model = names.unwrap(model)
        everything = {name: p for name, p in names.parameters(model).items() if p.dim() > 1 and p.numel()}
        named = _match(self.include, everything, "include")
        chosen = {name: everything[name] for name in (named or list(_layers(model)))}
        if not named:
            chosen = {name: p for name, p in chosen.items() if p.requires_grad}
            if self.distribution == "uniform" and len(chosen) > 1:
                chosen.pop(next(iter(_layers(model))), None)
        for name, p in chosen.items():
            if not p.requires_grad:
                raise UserError(f"include names {name!r}, which has requires_grad=False; let it train or leave it out")
        for name in _match(self.exclude, everything, "exclude"):
            chosen.pop(name, None)
        if not chosen:
            raise UserError(
                "nothing is left to sparsify: the model has no trainable convolution or linear weight that "
                "is not excluded; name parameters with include=[...]"
            )
        return chosen

    def counts(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        params = self.parameters(model)
        shapes = {name: tuple(p.shape) for name, p in params.items()}
        named: dict[str, float] = {}
        kind = "uniform"
        if isinstance(self.distribution, str):
            kind = self.distribution
        else:
            exact_last = sorted(self.distribution.items(), key=lambda item: item[0] in shapes)
            for pattern, density in exact_last:
                named |= dict.fromkeys(_match([pattern], shapes, "distribution"), density)
        counts = active_counts(shapes, self.sparsity, kind, named)
        return {name: (counts[name], p.numel()) for name, p in params.items()}

    def choose(
        self, scores: Callable[[str], Tensor], counts: Mapping[str, int], among: Mapping[str, Tensor], spare: bool
    ) -> dict[str, Tensor]:
        if not self.ranks_globally:
            return {name: top_k(scores(name), counts[name], among[name]) for name in counts}
        together = {name: scores(name) for name in counts}
        return top_k_of_all(together, sum(counts.values()), among, floor=int(spare))


def _layers(model: nn.Module) -> Iterator[str]:
    """Canonical names of the weights that are sparsified by default, in the model's order, tied ones once."""
    first = {p: name for name, p in names.parameters(model).items()}
    for module in model.modules():
        for kind, attributes in WEIGHTS:
            if isinstance(module, kind):
                for attribute in attributes:
                    p = module._parameters.get(attribute)
                    if p is not None and p.numel() and p in first:
                        yield first.pop(p)


def _match(patterns: Sequence[str], names: Mapping[str, object], option: str) -> list[str]:
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
