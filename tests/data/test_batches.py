"""Batches: exact resumption, exact augmentation, exact shares."""

import pytest
import torch

from image_data import batches, joined, plain, same
from regrow.data.batches import shift
from regrow.data.named import load
from work import Work

# --- order and augmentation


def test_resumes_exactly_in_the_middle_of_an_epoch():
    state = torch.get_rng_state()
    whole = batches(load("generated:100", batch_size=8, seed=3).train, k=2)
    assert len(whole) == 11
    for start in (0, 1, 7, 11):
        assert same(batches(load("generated:100", batch_size=8, seed=3).train, 2, start), whole[start:])
    assert torch.equal(torch.get_rng_state(), state)


def test_epochs_and_seeds_differ_and_each_sees_every_example_once():
    source = plain(seed=1, augment="none").train
    first, second = joined(source, 0), joined(source, 1)
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], joined(plain(seed=2, augment="none").train)[0])
    for x, _ in (first, second):
        key = x.flatten(1).sum(1).sort().values
        assert torch.equal(key, source.images.float().flatten(1).sum(1).sort().values)


@pytest.mark.parametrize(("size", "pad"), [(8, 1), (16, 2), (28, 3), (32, 4)])
def test_every_image_has_its_own_shift_and_flip(size, pad):
    source = plain(size=size).train
    assert source.pad == pad
    found = set()
    x, y = joined(source)
    order = torch.cat([positions for positions, _, _ in source._batches(0, 0)])
    for image, label, position in zip(x, y, order, strict=True):
        assert label == source.labels[position]
        original = torch.nn.functional.pad(source.images[position].float(), (pad,) * 4)
        matches = [
            (row, column, flip)
            for row in range(2 * pad + 1)
            for column in range(2 * pad + 1)
            for flip in (False, True)
            if torch.equal(image.flip(-1) if flip else image, original[:, row : row + size, column : column + size])
        ]
        assert len(matches) == 1
        found.add(matches[0])
    assert {flip for _, _, flip in found} == {False, True}
    assert len(found) > (8 if pad == 1 else 20)


def test_shift_equals_the_slow_way():
    images = torch.randint(0, 256, (5, 2, 6, 9), dtype=torch.uint8)
    offsets = torch.tensor([[0, 0], [4, 4], [2, 2], [0, 3], [4, 1]])
    shifted = shift(images, offsets, 2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for i, (row, column) in enumerate(offsets.tolist()):
        assert torch.equal(shifted[i], padded[i, :, row : row + 6, column : column + 9])
    assert torch.equal(shifted[2], images[2])


def test_evaluation_is_in_order_and_not_augmented():
    made = load("generated:50", batch_size=8)
    for source in (made.val, made.test):
        assert (source.pad, source.flip, source.training) == (0, False, False)
        x, y = joined(source)
        assert torch.equal(y, source.labels[source.indices])
        assert len(x) == source.examples
        assert same(batches(source, 0), batches(source, 5))


def test_augmentation_none():
    made = load("generated:50", batch_size=8, augment="none")
    assert (made.train.pad, made.train.flip) == (0, False)


# --- several processes


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_of_one(world):
    alone = load("generated:100", batch_size=12, seed=5)
    shares = [load("generated:100", batch_size=12 // world, seed=5, rank=r, world=world) for r in range(world)]
    assert {len(s.train) for s in shares} == {len(alone.train)}
    for whole, *parts in zip(batches(alone.train, 1), *(batches(s.train, 1) for s in shares), strict=True):
        assert torch.equal(whole[0], torch.cat([x for x, _ in parts]))
        assert torch.equal(whole[1], torch.cat([y for _, y in parts]))


@pytest.mark.parametrize("examples", [1, 3, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_example_once(examples, world):
    source = plain(examples=40).test
    source.indices = torch.arange(examples)
    source.batch_size = 4
    shares = [source.shard(rank, world) for rank in range(world)]
    seen = [batches(s) for s in shares]
    assert len({len(s) for s in shares}) == 1
    assert all(len(found) == len(s) for found, s in zip(seen, shares, strict=True))
    pixels = torch.cat([x for found in seen for x, _ in found]).flatten(1).sum(1)
    assert torch.equal(pixels.sort().values, source.images[:examples].float().flatten(1).sum(1).sort().values)
    if examples >= world:
        assert all(len(x) for found in seen for x, _ in found)


# --- work


def test_a_batch_is_made_by_as_few_operations_as_a_small_one():
    counts = []
    for size in (16, 128):
        ready = load("generated:2000", batch_size=size).train.epoch(0)
        with Work() as first:
            next(ready)
        with Work() as second:
            x, _ = next(ready)
        assert second.written < 12 * x.numel()
        counts.append((first.operations, second.operations))
    assert counts[0] == counts[1]
    assert max(counts[0]) < 100
