"""Blocks of weights, which go as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from regrow.distribution import RAW, active_counts
from regrow.errors import UserError, nearest
from regrow.patterns.entries import EntryPattern
from regrow.patterns.layers import Selection, check_sparsity, select
from regrow.patterns.pattern import register
from regrow.selection import top_k


@register
@dataclass(frozen=True)
class Blocks(EntryPattern):
    """Blocks of r outputs × c inputs of a matrix (of convolutions: at one place of the kernel), each removed or kept as
    a whole, by the mean score of its weights.

    Layers whose outputs or inputs are no multiples of r and c stay dense, and are named.

    Args:
        shape: (r, c).
        sparsity: share of the blocks that is removed, from 0 up to but not including 1.
        distribution: how many per layer, ``"uniform"`` (the first layer of the model stays dense), ``"er"`` or
            ``"erk"``, of the matrix of blocks.
        exclude: layers that stay dense; names of modules or parameters, ``*`` and ``?`` allowed.
        include: only these are sparsified; names as above.

    Raises:
        UserError: for options outside their range.
    """

    name: ClassVar[str] = "blocks"
    local: ClassVar[bool] = True

    shape: tuple[int, int]
    sparsity: float
    distribution: str = "uniform"
    exclude: Sequence[str] = ()
    include: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.shape) < 1:
            raise UserError(
                f"shape is {self.shape!r}, but must be (outputs, inputs) of a block, as in Blocks((16, 1), 0.9)"
            )
        check_sparsity(self.sparsity, of="blocks")
        if self.distribution not in RAW:
            raise UserError(f"distribution {self.distribution!r} is unknown{nearest(self.distribution, RAW)}")

    @property
    def unit_size(self) -> int:  # type: ignore[override]
        return self.shape[0] * self.shape[1]

    def select(self, model: nn.Module, example_inputs: Any = None) -> Selection:
        rows, columns = self.shape

        def misfit(shape: Sequence[int]) -> str:
            if shape[0] % rows or shape[-1] % columns:
                return f"its {shape[0]} outputs and {shape[-1]} inputs are no multiples of {rows} and {columns}"
            return ""

        keep_first = self.distribution == "uniform"
        return select(
            model, example_inputs, include=self.include, exclude=self.exclude, keep_first=keep_first, misfit=misfit
        )

    def counts_of(self, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
        blocks = {name: p.numel() // self.unit_size for name, p in parameters.items()}
        # uniform knows sizes only; the others a matrix of so many blocks
        rows = {name: p.shape[0] // self.shape[0] for name, p in parameters.items()}
        grids = {name: (rows[name], blocks[name] // rows[name]) for name in parameters}
        counts = active_counts(grids, self.sparsity, self.distribution, {})
        return {name: (counts[name], blocks[name]) for name in parameters}

    def rivals(self, sizes: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        means = self._blocks(sizes).mean((1, 4))
        removed = means.masked_fill(self._blocks(active).all(4).all(1), 0).amax()
        return self._entries(means, sizes.shape), removed.expand(sizes.shape)

    def best(self, scores: Tensor, k: int, candidates: Tensor, occupied: Tensor) -> Tensor:
        chosen = top_k(self._blocks(scores).mean((1, 4)), k, self._blocks(candidates).all(4).all(1))
        return self._entries(chosen, scores.shape)

    def _blocks(self, entries: Tensor) -> Tensor:
        """(blocks of outputs, r, places of the kernel, blocks of inputs, c)."""
        rows, columns = self.shape
        return entries.reshape(entries.shape[0] // rows, rows, -1, entries.shape[-1] // columns, columns)

    def _entries(self, blocks: Tensor, shape: Sequence[int]) -> Tensor:
        """What blocks have, for each of their entries."""
        rows, columns = self.shape
        return blocks[:, None, :, :, None].expand(-1, rows, -1, -1, columns).reshape(shape)
