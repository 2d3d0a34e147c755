"""Exact top-k over scores: by partition, with ties broken by index, so counts are always right."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

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
    flat = torch.nan_to_num(scores.flatten().float(), nan=LOWEST, neginf=LOWEST)
    candidates = None if among is None else among.flatten()
    available = flat.numel() if candidates is None else int(candidates.sum())
    if not 0 <= k <= available:
        raise ValueError(f"cannot choose {k} of {available}")
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if k == available:
        return torch.ones_like(scores, dtype=torch.bool) if among is None else among.clone()
    pool = flat if candidates is None else flat[candidates]
    threshold = pool.kthvalue(available - k + 1).values  # the k-th highest, by partition
    chosen = flat > threshold
    ties = flat == threshold
    if candidates is not None:
        chosen &= candidates
        ties &= candidates
    tied = ties.nonzero().flatten()
    chosen[tied[: k - int(chosen.sum())]] = True
    return chosen.view_as(scores)


def top_k_of_all(
    scores: Mapping[str, Tensor], k: int, among: Mapping[str, Tensor], floor: int = 0
) -> dict[str, Tensor]:
    """Like `top_k`, ranking all layers together (in their order, for ties), each keeping at least `floor` of its best.

    Raises:
        ValueError: where there are fewer than k candidates, or k does not cover the floor.
    """
    least = {name: top_k(scores[name], min(floor, int(among[name].sum())), among[name]) for name in scores}
    k -= sum(int(mask.sum()) for mask in least.values())
    flat = torch.cat([score.flatten().cpu() for score in scores.values()])
    open_ = torch.cat([(among[name] & ~least[name]).flatten().cpu() for name in scores])
    chosen = top_k(flat, k, open_).split([score.numel() for score in scores.values()])
    return {
        name: least[name] | part.view(scores[name].shape).to(scores[name].device)
        for name, part in zip(scores, chosen, strict=True)
    }
