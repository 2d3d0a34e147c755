"""Whether patterns of the user's own give what they are asked for; those of regrow are tested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from regrow import codes, hints
from regrow.actions import Final
from regrow.errors import UserError
from regrow.shards import Ranks


class Choosing(Protocol):
    """A pattern of entries: `regrow.patterns.EntryPattern`."""

    unit_size: int

    @property
    def choose(self) -> Any:
        """The choice in all parameters."""

    @property
    def best(self) -> Any:
        """The choice in one."""


def are_own(pattern: Choosing) -> bool:
    """Whether somebody else's code than regrow's makes a pattern's choices."""
    return not (_is_ours(type(pattern).choose) and _is_ours(type(pattern).best))


def _is_ours(function: Any) -> bool:
    return str(function.__module__).partition(".")[0] == "regrow"


def check_counts(pattern: Choosing, final: Final, parameters: Mapping[str, Tensor]) -> None:
    """Refuses counts of units that parameters do not have.

    Raises:
        UserError: naming the parameter.
    """
    kind = type(pattern).__name__
    for name in final.keys() ^ parameters.keys():
        what = "no counts of" if name in parameters else "counts of what it has not selected:"
        raise UserError(f"{kind} gives {what} {name!r}: counts_of() must give those of what select() takes")
    for name, param in parameters.items():
        size = param.numel() // pattern.unit_size
        whole = size * pattern.unit_size == param.numel()
        match final[name]:
            case (int(active), int(all_)) if whole and all_ == size and 0 < active <= size:
                continue
        raise UserError(
            f"{kind} gives the counts {hints.show(final[name])} for {name!r}, of {param.numel()} weights in units of "
            f"{pattern.unit_size}: counts_of() must give (active, all) units, and leave some active"
        )


def check_choice(
    pattern: Choosing, chosen: Mapping[str, Tensor], counts: Mapping[str, int], allowed: Mapping[str, Tensor],
    ranks: Ranks,
) -> None:  # fmt: skip
    """Refuses a choice of too many or too few, or of what was not to be chosen from.

    Args:
        chosen: what `choose` has given.
        counts, allowed: what it was asked for: units of each parameter, and the candidates.
        ranks: the processes that hold the parameters.

    Raises:
        UserError: naming the pattern and the parameter.
    """
    kind = type(pattern).__name__
    for name in counts:
        mask, among = chosen.get(name), allowed[name]
        if not isinstance(mask, Tensor) or mask.dtype is not torch.bool or mask.shape != among.shape:
            raise UserError(
                f"{kind} gives no mask for {name!r}: what is chosen must be a bool tensor of shape {tuple(among.shape)}"
            )
        if bool((mask & ~among).any()):
            raise UserError(f"{kind} chooses entries of {name!r} that are not among the candidates")
    entries = ranks.totals(codes.count(chosen[name]) for name in counts)
    wanted = [count * pattern.unit_size for count in counts.values()]
    if not _is_ours(type(pattern).choose):  # it may rank all layers together
        entries, wanted, counts = [sum(entries)], [sum(wanted)], {"all layers": 0}
    for name, has, should in zip(counts, entries, wanted, strict=True):
        if has != should:
            raise UserError(
                f"{kind} chooses {has} entries of {name!r} where {should} are wanted: choose exactly as many"
            )
