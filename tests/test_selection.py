from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.selection import top_k, top_k_of_all
from regrow.shards import Ranks

values = st.lists(st.sampled_from([0.0, 0.0, 1.0, -2.0, 3.5, math.nan, math.inf, -math.inf]), min_size=1, max_size=30)


def by_sorting(scores: list[float], k: int, among: list[bool]) -> list[bool]:
    key = [-3.5e38 if math.isnan(s) or s == -math.inf else s for s in scores]
    order = sorted((i for i in range(len(scores)) if among[i]), key=lambda i: (-key[i], i))
    return [i in set(order[:k]) for i in range(len(scores))]


@given(values, st.data())
def test_equals_sorting(scores, data) -> None:
    among = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    k = data.draw(st.integers(0, sum(among)))
    chosen = top_k(torch.tensor(scores), k, torch.tensor(among))
    assert int(chosen.sum()) == k
    assert chosen.tolist() == by_sorting(scores, k, among)


@given(st.integers(1, 2000), st.data())
def test_all_tied(n, data) -> None:
    k = data.draw(st.integers(0, n))
    assert top_k(torch.zeros(n), k).nonzero().flatten().tolist() == list(range(k))


MANY = {
    "all different": lambda noise: noise,
    "few values": lambda noise: (noise * 3).round(),
    "mostly zero": lambda noise: noise.clamp(min=1.2),
    "all zero": torch.zeros_like,
    "sorted": lambda noise: noise.sort().values,
    "periodic like the sample": lambda noise: torch.arange(len(noise)) % 67.0,
    "with infinities": lambda noise: noise.masked_fill(noise > 1, math.inf).masked_fill(noise < -1, -math.inf),
    "not all numbers": lambda noise: noise.masked_fill(noise.abs() < 0.3, math.nan),
}


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.97, 0.9999])
@pytest.mark.parametrize("some", [False, True])
def test_many_equal_sorting(kind, share, some) -> None:
    scores = MANY[kind](torch.randn(40_000, generator=torch.Generator().manual_seed(0))).float()
    among = torch.rand(40_000, generator=torch.Generator().manual_seed(1)) < 0.6 if some else None
    allowed = torch.ones(40_000, dtype=torch.bool) if among is None else among
    k = max(1, int(share * int(allowed.sum())))
    lowest = torch.finfo(torch.float32).min
    ranked = torch.nan_to_num(scores, nan=lowest, posinf=math.inf, neginf=lowest)
    order = ranked.double().masked_fill(~allowed, -math.inf).argsort(descending=True, stable=True)
    expected = torch.zeros(40_000, dtype=torch.bool)
    expected[order[:k]] = True
    assert torch.equal(top_k(scores, k, among), expected)


def test_shape_and_memory_format() -> None:
    scores = torch.arange(24.0).view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    chosen = top_k(scores, 5)
    assert chosen.shape == scores.shape
    assert chosen.flatten().nonzero().flatten().tolist() == [19, 20, 21, 22, 23]


@pytest.mark.parametrize("k", [-1, 4])
def test_refuses_what_is_not_there(k) -> None:
    with pytest.raises(ValueError, match="cannot choose"):
        top_k(torch.zeros(3), k)


@given(st.lists(values, min_size=1, max_size=4), st.data())
def test_of_all_equals_sorting_after_the_floor(layers, data) -> None:
    names = [f"l{i}" for i in range(len(layers))]
    scores = {n: torch.tensor(layer) for n, layer in zip(names, layers, strict=True)}
    among = {n: torch.ones(len(layer), dtype=torch.bool) for n, layer in zip(names, layers, strict=True)}
    size = sum(map(len, layers))
    k = data.draw(st.integers(len(layers), size))
    chosen = top_k_of_all(scores, k, among, floor=1)
    assert sum(int(mask.sum()) for mask in chosen.values()) == k
    first = {n: by_sorting(s.tolist(), 1, [True] * len(s)) for n, s in scores.items()}
    rest = by_sorting(
        [x for s in scores.values() for x in s.tolist()], k - len(layers), [not x for f in first.values() for x in f]
    )
    flat = [a or b for a, b in zip((x for f in first.values() for x in f), rest, strict=True)]
    assert [x for mask in chosen.values() for x in mask.tolist()] == flat


class Threads(Ranks):
    """Ranks that are threads of this process."""

    several = True

    def __init__(self, rank: int, meeting: Barrier, told: list[Any]) -> None:
        self.rank, self.meeting, self.told = rank, meeting, told

    def tell(self, value: Any) -> list[Any]:
        self.told[self.rank] = value
        self.meeting.wait()
        everybodys = list(self.told)
        self.meeting.wait()
        return everybodys

    def totals(self, counts: Iterable[int]) -> list[int]:
        return [sum(column) for column in zip(*self.tell(list(counts)), strict=True)]

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        return sum(self.tell(values))

    def gathered(self, counts: Iterable[int]) -> tuple[int, list[list[int]]]:
        return self.rank, self.tell(list(counts))


def on_ranks(count: int, choose: Callable[[int, Ranks], Any]) -> list[Any]:
    """What each of so many ranks has chosen."""
    meeting, told = Barrier(count), [None] * count
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda rank: choose(rank, Threads(rank, meeting, told)), range(count)))


def rows(whole: torch.Tensor, rank: int, count: int) -> torch.Tensor:
    """The shard of a rank, as torch cuts it: the last ones may have fewer rows, or none."""
    parts = whole.chunk(count)
    return parts[rank] if rank < len(parts) else whole[:0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_shards_choose_what_the_whole_does(tied, count, seed) -> None:
    source = torch.Generator().manual_seed(10 * count + seed)
    layers, among = {}, {}
    for name, size in zip("abc", torch.randint(2, 9, (3,), generator=source).tolist(), strict=True):
        layers[name] = torch.randint(-3, 4, (size, 5), generator=source).float()
        layers[name] *= 1 if tied else torch.rand(size, 5, generator=source)
        among[name] = torch.rand(size, 5, generator=source) < 0.7
    layers["a"][0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])

    def one(rank: int, ranks: Ranks) -> list[torch.Tensor]:
        shards = [[rows(whole[name], rank, count) for whole in (layers, among)] for name in layers]
        return [top_k(scores, k, mask, ranks) for scores, mask in shards for k in wanted]

    wanted = range(0, min(int(mask.sum()) for mask in among.values()) + 1, 3)
    whole = [top_k(layers[name], k, among[name]) for name in layers for k in wanted]
    for parts, mask in zip(zip(*on_ranks(count, one), strict=True), whole, strict=True):
        assert torch.equal(torch.cat(parts), mask)

    def together(rank: int, ranks: Ranks) -> dict[str, torch.Tensor]:
        scores, masks = ({name: rows(of[name], rank, count) for name in of} for of in (layers, among))
        return top_k_of_all(scores, half, masks, floor=1, ranks=ranks)

    half = sum(int(mask.sum()) for mask in among.values()) // 2
    chosen = on_ranks(count, together)
    for name, mask in top_k_of_all(layers, half, among, floor=1).items():
        assert torch.equal(torch.cat([of_rank[name] for of_rank in chosen]), mask)


def test_shards_refuse_more_than_all_have() -> None:
    with pytest.raises(ValueError, match="cannot choose 7 of 6"):
        on_ranks(2, lambda rank, ranks: top_k(torch.rand(3), 7, ranks=ranks))
