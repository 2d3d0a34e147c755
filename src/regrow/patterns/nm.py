"""N:M: of every m weights in a row, n stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from regrow.codes import count
from regrow.errors import UserError
from regrow.patterns.entries import EntryPattern
from regrow.patterns.layers import Selection, select
from regrow.patterns.pattern import register
from regrow.selection import LOWEST, TooFew, top_k
from regrow.shards import ALONE, Ranks


@register
@dataclass(frozen=True)
class NM(EntryPattern):
    """At most n of every m consecutive weights along the axis that products sum over (C_in), which hardware multiplies
    at twice the speed for 2:4 (Mishra et al. 2021, arXiv:2104.08378); exactly n of them at the target.

    Layers whose C_in is no multiple of m stay dense, and are named.

    Args:
        n: that stay, at least 1.
        m: in a group, above n.
        ramp: where a method is on its way from dense, or has pruned what it is to grow: ``"n"`` lets all groups have
            the same number left, up to one; ``"groups"`` brings one group after the other from m to n.
        exclude: layers that stay dense; names of modules or parameters, ``*`` and ``?`` allowed.
        include: only these are sparsified; names as above.

    Raises:
        UserError: for numbers outside their range.
    """

    name: ClassVar[str] = "nm"
    local: ClassVar[bool] = True
    shards: ClassVar[bool] = True

    n: int = 2
    m: int = 4
    ramp: Literal["n", "groups"] = "n"
    exclude: Sequence[str] = ()
    include: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("n", "m"):
            value = getattr(self, option)
            if value < 1:
                raise UserError(f"{option} is {value!r}, but must be a whole number, at least 1")
        if self.n >= self.m:
            raise UserError(f"NM({self.n}, {self.m}) removes nothing; n must be smaller than m, as in NM(2, 4)")

    @property
    def sparsity(self) -> float:
        """The share of weights that is removed at the target."""
        return 1 - self.n / self.m

    def select(self, model: nn.Module, example_inputs: Any = None) -> Selection:
        def misfit(shape: Sequence[int]) -> str:
            return "" if shape[-1] % self.m == 0 else f"its {shape[-1]} inputs are no multiple of {self.m}"

        return select(model, example_inputs, include=self.include, exclude=self.exclude, misfit=misfit)

    def counts_of(self, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
        return {name: (p.numel() // self.m * self.n, p.numel()) for name, p in parameters.items()}

    def rivals(self, sizes: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        removed = sizes.masked_fill(active, 0).reshape(-1, self.m).amax(1, keepdim=True)
        return sizes, removed.expand(-1, self.m).reshape(sizes.shape)

    def best(self, scores: Tensor, k: int, candidates: Tensor, occupied: Tensor, ranks: Ranks = ALONE) -> Tensor:
        """The best k candidates, the first of every group before the second of any, and so on."""
        ranked = torch.nan_to_num(scores, nan=LOWEST, neginf=LOWEST).masked_fill_(~candidates, -torch.inf)
        by_group = ranked.reshape(-1, self.m)
        before = occupied.reshape(-1, self.m).sum(1, dtype=torch.int16)
        level = (_places(by_group) + before[:, None]).view(scores.shape)
        chosen = torch.zeros_like(candidates)
        at_level = ranks.totals([count(candidates & (level == reached)) for reached in range(self.m)])
        for reached, here in enumerate(at_level):
            within = candidates & (level == reached)
            if self.ramp == "groups" and reached >= self.n:
                return chosen | self._whole_groups(scores, k, candidates & ~chosen)
            if k == here:
                return chosen | within
            if k < here:
                return chosen | top_k(scores, k, within, ranks)
            chosen, k = chosen | within, k - here
        raise TooFew(f"cannot choose {k} more than there are candidates")

    def _whole_groups(self, scores: Tensor, k: int, candidates: Tensor) -> Tensor:
        """k candidates: all of the best groups, and the best of the one after these."""
        grouped = candidates.reshape(-1, self.m)
        worth = scores.reshape(-1, self.m).masked_fill(~grouped, 0).sum(1)
        best = worth.masked_fill(~grouped.any(1), -torch.inf).argsort(descending=True, stable=True)
        filled = grouped.sum(1)[best].cumsum(0)
        whole = torch.zeros_like(grouped[:, 0])
        whole[best[filled <= k]] = True
        chosen = (grouped & whole[:, None]).view(scores.shape)
        last = torch.zeros_like(whole)
        last[best[filled > k][:1]] = True
        rest = (grouped & last[:, None]).view(scores.shape)
        return chosen | top_k(scores, k - int(chosen.sum()), rest)


def _places(rows: Tensor) -> Tensor:
    """The place of each number in its row, the largest first, and of equal ones the first: int16, in the shape of
    `rows`. Compares pairs of columns, which takes a fraction of the time that sorting short rows does."""
    columns = rows.t().contiguous()
    places = torch.zeros(columns.shape, dtype=torch.int16, device=rows.device)
    for i in range(1, len(columns)):
        for j in range(i):
            ahead = columns[j] >= columns[i]
            places[i] += ahead
            places[j] += ~ahead
    return places.t().contiguous()
