from __future__ import annotations

import math

import pytest
import torch

from regrow import codes
from regrow.codes import ALL_FLAGS, EXPLORED, FROZEN, PRUNED, TRAINABLE

MARKS = {
    codes.trains: {TRAINABLE, EXPLORED},
    codes.active: {TRAINABLE, FROZEN},
    codes.explored: {EXPLORED},
    codes.frozen: {FROZEN},
    codes.used: {TRAINABLE, FROZEN, EXPLORED},
    codes.pruned: {PRUNED},
}


@pytest.mark.parametrize("mark", MARKS)
def test_marks(mark) -> None:
    flags = torch.arange(ALL_FLAGS + 1, dtype=torch.uint8)
    assert mark(flags).tolist() == [int(flag & 3 in MARKS[mark]) for flag in range(ALL_FLAGS + 1)]
    assert torch.equal(flags, torch.arange(ALL_FLAGS + 1, dtype=torch.uint8))


def test_what_arrives() -> None:
    old, new = (t.flatten() for t in torch.meshgrid(*2 * [torch.arange(4, dtype=torch.uint8)], indexing="ij"))
    comes = {(PRUNED, n) for n in (TRAINABLE, FROZEN, EXPLORED)} | {(EXPLORED, TRAINABLE), (EXPLORED, FROZEN)}
    pairs = zip(old.tolist(), new.tolist(), strict=True)
    assert codes.arrives(old, new).tolist() == [int(pair in comes) for pair in pairs]


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every second": lambda t: t.repeat_interleave(2, 3)[..., ::2],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("of_mask", LAYOUTS)
@pytest.mark.parametrize("of_values", LAYOUTS)
def test_values_are_kept_and_replaced_to_the_bit(of_values, of_mask, dtype) -> None:
    torch.manual_seed(0)
    mask, values, others = torch.rand(40, 30, 12, 10) < 0.3, torch.randn(40, 30, 12, 10), torch.randn(40, 30, 12, 10)
    values[0, 0, 0], others[1, 0, 0] = math.nan, math.inf
    values, others = (LAYOUTS[of_values](t.to(dtype)) for t in (values, others))
    flags = LAYOUTS[of_mask](mask.to(torch.uint8) * FROZEN)
    kept, replaced = values.clone(), values.clone()
    for part, mine in codes.pieces(kept, flags):
        codes.keep_only(codes.used(mine), part, out=part)
    for part, other, mine in codes.pieces(replaced, others, flags):
        codes.replace(codes.used(mine), part, other)
    assert torch.equal(codes.bits(kept), codes.bits(values.masked_fill(~mask, 0)))
    assert torch.equal(codes.bits(replaced), codes.bits(torch.where(mask, others, values)))
    assert codes.count(mask) == int(mask.sum())


def test_what_is_written_is_counted() -> None:
    values, mask = torch.randn(300), torch.rand(300) < 0.5
    before = values._version
    codes.keep_only(mask.to(torch.uint8), values, out=values)
    assert values._version > before
    before = values._version
    codes.replace(mask.to(torch.uint8), values, torch.randn(300))
    assert values._version > before
