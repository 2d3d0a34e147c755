"""Exact top-k over scores: by partition, with ties broken by index, so counts are always right."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from regrow.codes import count

_MANY = 1 << 14  # scores from which on a sample saves time
_STRIDE = 67  # of the sample: shares no factor with what shapes are usually made of

LOWEST = torch.finfo(torch.float32).min


def top_k(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Marks the k highest scores; of equal ones, those with the lowest index.

    Args:
        scores: fp32, any shape; NaN counts as the lowest.
        k: how many, up to the number of candidates.
        among: bool, the shape of `scores`: the candidates (default: all).

    Returns:
        bool, the shape of `scores`, with exactly k entries set.

    Raises:
        ValueError: where there are fewer than k candidates.

    >>> top_k(torch.tensor([1.0, 3.0, 1.0, 1.0]), 2).tolist()
    [True, True, False, False]
    """
    candidates = None if among is None else among.flatten()
    available = scores.numel() if candidates is None else count(candidates)
    if not 0 <= k <= available:
        raise ValueError(f"cannot choose {k} of {available}")
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
    scores: Mapping[str, Tensor], k: int, among: Mapping[str, Tensor], floor: int = 0
) -> dict[str, Tensor]:
    """Like `top_k`, ranking all layers together (in their order, for ties), each keeping at least `floor` of its best.

    Raises:
        ValueError: where there are fewer than k candidates, or k does not cover the floor.
    """
    least = {name: top_k(scores[name], min(floor, count(among[name])), among[name]) for name in scores}
    k -= sum(count(mask) for mask in least.values())
    flat = torch.cat([score.flatten().cpu() for score in scores.values()])
    open_ = torch.cat([(among[name] & ~least[name]).flatten().cpu() for name in scores])
    chosen = top_k(flat, k, open_).split([score.numel() for score in scores.values()])
    return {
        name: least[name] | part.view(scores[name].shape).to(scores[name].device)
        for name, part in zip(scores, chosen, strict=True)
    }
