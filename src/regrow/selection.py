"""Exact top-k over scores: by partition, with ties broken by index, so counts are always right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from regrow.codes import count
from regrow.errors import UserError
from regrow.shards import ALONE, Ranks

_MANY = 1 << 14  # scores from which on a sample saves time
_STRIDE = 67  # of the sample: shares no factor with what shapes are usually made of

LOWEST = torch.finfo(torch.float32).min


class TooFew(UserError):
    """There are fewer candidates than are to be chosen."""


def top_k(scores: Tensor, k: int, among: Tensor | None = None, ranks: Ranks = ALONE) -> Tensor:
    """Marks the k highest scores; of equal ones, those with the lowest index.

    Args:
        scores: fp32, any shape; NaN counts as the lowest.
        k: how many, up to the number of candidates.
        among: bool, the shape of `scores`: the candidates (default: all).
        ranks: whose scores are ranked together, each with a shard of rows; all ask for the same k.

    Returns:
        bool, the shape of `scores`, with exactly k entries set.

    Raises:
        TooFew: where there are fewer than k candidates.

    >>> top_k(torch.tensor([1.0, 3.0, 1.0, 1.0]), 2).tolist()
    [True, True, False, False]
    """
    if ranks.several:
        everything = torch.ones_like(scores, dtype=torch.bool) if among is None else among
        return _top_of_shards([scores], k, [everything], ranks)[0]
    candidates = None if among is None else among.flatten()
    available = scores.numel() if candidates is None else count(candidates)
    if not 0 <= k <= available:
        raise TooFew(f"cannot choose {k} of {available}")
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if k == available:
        return torch.ones_like(scores, dtype=torch.bool) if among is None else among.clone()
    if scores.device.type == "cpu" and available >= _MANY:
        found = _top_of_many(scores.flatten().float(), k, candidates, available)
        if found is not None:
            return found.view_as(scores)
    flat = torch.nan_to_num(scores.flatten().float(), nan=LOWEST, neginf=LOWEST)
    pool = flat if candidates is None else flat[candidates]
    threshold = pool.kthvalue(available - k + 1).values  # the k-th highest, by partition
    chosen = flat > threshold
    ties = flat == threshold
    if candidates is not None:
        chosen &= candidates
        ties &= candidates
    tied = ties.nonzero().flatten()
    chosen[tied[: k - count(chosen)]] = True
    return chosen.view_as(scores)


def _top_of_many(scores: Tensor, k: int, candidates: Tensor | None, available: int) -> Tensor | None:
    """`top_k` of one-dimensional fp32 scores on a CPU, with two comparisons of all of them and a partition of a few.

    A sample says between which two scores the k-th highest lies, all but certainly (Floyd and Rivest 1975); what lies
    between them is ranked exactly. None where it lies elsewhere.
    """
    values, allowed = scores.numpy(), None if candidates is None else candidates.numpy()
    sample = values[::_STRIDE] if allowed is None else values[::_STRIDE][allowed[::_STRIDE]]
    sample = np.sort(np.nan_to_num(sample, nan=LOWEST, posinf=np.inf, neginf=LOWEST))
    share = 1 - k / available
    margin = 4 * math.sqrt(len(sample) * share * (1 - share)) + 2
    low, high = math.floor(len(sample) * share - margin), math.ceil(len(sample) * share + margin)
    if low < 0 or sample[low] <= LOWEST:
        return None
    above = values > sample[high] if high < len(sample) else np.zeros(values.shape, bool)
    between = (values >= sample[low]) ^ above
    if allowed is not None:
        above &= allowed
        between &= allowed
    where = np.flatnonzero(between)
    missing = k - np.count_nonzero(above)
    if not 0 < missing <= len(where):
        return None
    near = values[where]
    least = np.partition(near, len(near) - missing)[len(near) - missing]
    above[where[near > least]] = True
    tied = where[near == least]
    above[tied[: k - np.count_nonzero(above)]] = True
    return torch.from_numpy(above)


def top_k_of_all(
    scores: Mapping[str, Tensor], k: int, among: Mapping[str, Tensor], floor: int = 0, ranks: Ranks = ALONE
) -> dict[str, Tensor]:
    """Like `top_k`, ranking all layers together (in their order, for ties), each keeping at least `floor` of its best.

    Raises:
        TooFew: where there are fewer than k candidates, or k does not cover the floor.
    """
    floors = [min(floor, n) for n in ranks.totals(count(among[name]) for name in scores)]
    least = {name: top_k(scores[name], n, among[name], ranks) for (name, n) in zip(scores, floors, strict=True)}
    k -= sum(floors)
    open_ = {name: among[name] & ~least[name] for name in scores}
    if ranks.several:
        chosen = _top_of_shards(list(scores.values()), k, list(open_.values()), ranks)
        return {name: least[name] | part for name, part in zip(scores, chosen, strict=True)}
    flat = torch.cat([score.flatten().cpu() for score in scores.values()])
    parts = top_k(flat, k, torch.cat([one.flatten().cpu() for one in open_.values()]))
    return {
        name: least[name] | part.view(scores[name].shape).to(scores[name].device)
        for name, part in zip(scores, parts.split([score.numel() for score in scores.values()]), strict=True)
    }


_DIGITS = (11, 11, 10)  # bits of a score that are counted at a time, the highest first


def _top_of_shards(scores: Sequence[Tensor], k: int, among: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
    """The k highest of all layers on all ranks, to the entry, without any score leaving its rank.

    The bits of the k-th highest score are found from the top, by counting how many scores have which next digit: three
    messages of at most 2,048 numbers. One more says how many scores of each layer and rank are equal to it; of these,
    the first ones are chosen, in the order of layers, then of ranks, then of entries.
    """
    keys = [_sortable(score) for score in scores]
    missing, reached, below = k, 0, sum(_DIGITS)
    left = [key[mask.flatten()] for key, mask in zip(keys, among, strict=True)]
    for bits in _DIGITS if k else ():
        below -= bits
        digits = [(key >> below) & ((1 << bits) - 1) for key in left]
        counts = ranks.sums(sum(torch.bincount(one, minlength=1 << bits).cpu() for one in digits))  # type: ignore[arg-type]
        at_least = counts.flip(0).cumsum(0).flip(0)
        if not missing <= int(at_least[0]):
            raise TooFew(f"cannot choose {k} of {int(at_least[0])}")
        digit = int((at_least >= missing).nonzero().amax())
        missing -= int(at_least[digit] - counts[digit])
        reached |= digit << below
        left = [key[one == digit] for key, one in zip(left, digits, strict=True)]
    if not k:
        return [torch.zeros_like(mask) for mask in among]
    here, equal = ranks.gathered(len(key) for key in left)
    found = []
    for layer, (key, mask) in enumerate(zip(keys, among, strict=True)):
        of_layer = [one[layer] for one in equal]
        mine = min(max(0, missing - sum(of_layer[:here])), of_layer[here])
        missing = max(0, missing - sum(of_layer))
        chosen = (key > reached) & mask.flatten()
        tied = ((key == reached) & mask.flatten()).nonzero().flatten()
        chosen[tied[:mine]] = True
        found.append(chosen.view(mask.shape))
    return found


def _sortable(scores: Tensor) -> Tensor:
    """Whole numbers below 2^32 in the order of scores (fp32, flattened), equal where these are."""
    flat = torch.nan_to_num(scores.flatten().float(), nan=LOWEST, neginf=LOWEST) + 0.0  # of zero, one sign
    bits = flat.contiguous().view(torch.int32).long()
    return torch.where(bits < 0, ~bits, bits | 0x8000_0000)
