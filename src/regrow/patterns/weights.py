"""Single weights: any entry may go, each on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from regrow.distribution import RAW, active_counts
from regrow.errors import UserError, nearest, percent
from regrow.patterns.entries import EntryPattern
from regrow.patterns.layers import Selection, check_sparsity, match, select
from regrow.patterns.pattern import register
from regrow.selection import top_k, top_k_of_all
from regrow.shards import ALONE, Ranks


@register
@dataclass(frozen=True)
class Weights(EntryPattern):
    """Single weights of all matrices of a model: of what multiplies, in whatever class of module (`regrow.matrices`).

    Convolutions, linear and recurrent layers and attention are known. Of other modules, `Sparsifier`'s example_inputs
    tell what takes part in a matrix product or convolution; without them, parameters are taken by shape and name.
    Biases, norms and embeddings stay dense, also a head that is tied to an embedding.

    Args:
        sparsity: share of these weights that is removed, from 0 up to but not including 1.
        distribution: how many per layer. ``"uniform"`` (the first layer of the model stays dense), ``"er"``, ``"erk"``
            (Evci et al. 2020; layers that come out denser than full are dense), ``"global"`` (all layers ranked
            together from the start), or a mapping from layer to density (names as in `exclude`; of several that
            match the last one counts, and a parameter's own name above all), the others uniform at `sparsity`; or the
            path of a ``.json`` file that ``regrow scan`` wrote, for the counts that `regrow.Scan.counts` chooses.
        scope: ``"layer"`` keeps each layer's count; ``"global"`` ranks all layers together at every update, so that the
            distribution drifts. Each layer keeps at least one weight.
        exclude: layers that stay dense; names of modules or parameters, ``*`` and ``?`` allowed.
        include: only these are sparsified; names as above, and any parameter of two or more dimensions may be named,
            embeddings too.

    Raises:
        UserError: for a sparsity, density, distribution or scope outside its range.
    """

    name: ClassVar[str] = "weights"
    shards: ClassVar[bool] = True

    sparsity: float
    distribution: str | Mapping[str, float] = "uniform"
    scope: Literal["layer", "global"] = "layer"
    exclude: Sequence[str] = ()
    include: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sparsity(self.sparsity, of="weights")
        self._check_distribution()

    def _check_distribution(self) -> None:
        if isinstance(self.distribution, str):
            if self.distribution not in (*RAW, "global") and not self._is_scanned:
                hint = nearest(self.distribution, (*RAW, "global"))
                raise UserError(
                    f"distribution {self.distribution!r} is unknown{hint}, or the path of a scan's .json file"
                )
            return
        for layer, density in self.distribution.items():
            if not 0 < density <= 1:
                raise UserError(
                    f"distribution gives {layer!r} the density {density!r}, but it must lie in (0, 1]{percent(density)}"
                )

    @property
    def _is_scanned(self) -> bool:
        """Whether a scan's file says how many per layer."""
        return isinstance(self.distribution, str) and self.distribution.endswith(".json")

    @property
    def ranks_globally(self) -> bool:  # type: ignore[override]
        """Whether all layers are ranked together."""
        return self.scope == "global" or self.distribution == "global"

    def select(self, model: nn.Module, example_inputs: Any = None) -> Selection:
        keep_first = self.distribution == "uniform"
        return select(model, example_inputs, include=self.include, exclude=self.exclude, keep_first=keep_first)

    def counts_of(self, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
        if self._is_scanned:
            return self._counts_of_scan({name: p.numel() for name, p in parameters.items()})
        shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        named: dict[str, float] = {}
        kind = "uniform"
        if isinstance(self.distribution, str):
            kind = self.distribution
        else:
            exact_last = sorted(self.distribution.items(), key=lambda item: item[0] in shapes)
            for pattern, density in exact_last:
                named |= dict.fromkeys(match([pattern], shapes, "distribution"), density)
        counts = active_counts(shapes, self.sparsity, kind, named)
        return {name: (counts[name], p.numel()) for name, p in parameters.items()}

    def _counts_of_scan(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        from regrow.sensitivity import Scan  # pydantic takes its time, and most do without

        assert isinstance(self.distribution, str)
        found = Scan.load(self.distribution)
        if found.pattern != self.name:
            raise UserError(f"{self.distribution} is a scan of {found.pattern}, but a scan of weights is needed")
        try:
            counts = found.counts(self.sparsity, sizes)
        except UserError as error:
            raise UserError(f"distribution {self.distribution}: {error}") from error
        return {name: (counts[name], size) for name, size in sizes.items()}

    def choose(
        self,
        scores: Callable[[str], Tensor],
        counts: Mapping[str, int],
        candidates: Mapping[str, Tensor],
        occupied: Mapping[str, Tensor],
        ranks: Ranks = ALONE,
    ) -> dict[str, Tensor]:
        if not self.ranks_globally:
            return super().choose(scores, counts, candidates, occupied, ranks=ranks)
        together = {name: scores(name) for name in counts}
        begins = ranks.totals([any(mask.any() for mask in occupied.values())]) == [0]
        return top_k_of_all(together, sum(counts.values()), candidates, floor=int(begins), ranks=ranks)

    def best(self, scores: Tensor, k: int, candidates: Tensor, occupied: Tensor, ranks: Ranks = ALONE) -> Tensor:
        return top_k(scores, k, candidates, ranks)
