"""Splits: exact sizes, even over the classes, and a test set that nothing moves."""

import pytest
import torch

from image_data import batches, joined
from regrow.data.batches import generator
from regrow.data.named import load
from regrow.data.splits import Settings, in_memory, stratified


def test_test_set_never_moves_and_shares_no_image():
    first, second = (load("digits", batch_size=64, seed=s, split_seed=s) for s in (0, 1))
    assert torch.equal(joined(first.test)[1], joined(second.test)[1])
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.val.indices, second.val.indices)
    parts = [first.train.indices, first.val.indices]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(first.train.images)))
    assert len(first.train.images) + len(first.test.images) == 1797


def test_validation_fraction():
    assert load("digits", batch_size=8, val_fraction=0.25).val.examples == round(0.25 * 1438)
    without = load("digits", batch_size=8, val_fraction=0.0)
    assert (without.train.examples, without.val.examples, len(without.val)) == (1438, 0, 0)
    assert batches(without.val) == []


@pytest.mark.parametrize("fraction", [0.01, 0.1, 1 / 3, 0.5])
@pytest.mark.parametrize("counts", [(100, 100), (7, 1, 30), (3, 3, 3, 3), (500, 20)])
def test_stratified(counts, fraction):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator(0))]
    kept, taken = stratified(labels, fraction, seed=3)
    assert torch.equal(torch.cat([kept, taken]).sort().values, torch.arange(len(labels)))
    assert len(taken) == max(1, round(fraction * len(labels)))
    assert torch.bincount(labels[kept], minlength=len(counts)).min() >= 1
    for label, count in enumerate(counts):
        assert abs(int((labels[taken] == label).sum()) - count * fraction) <= 1
    assert torch.equal(taken, stratified(labels, fraction, seed=3)[1])


def test_normalised_with_the_statistics_of_the_training_images():
    images = torch.randint(0, 256, (200, 3, 8, 8), dtype=torch.uint8)
    made = in_memory((images, torch.arange(200) % 2), (images, torch.arange(200) % 2), Settings(batch_size=10))
    chosen = images[made.train.indices].double()
    torch.testing.assert_close(made.train.mean, chosen.mean((0, 2, 3)).float())
    torch.testing.assert_close(made.train.std, chosen.transpose(0, 1).flatten(1).std(1, correction=0).float())
    x, _ = next(made.test.epoch(0))
    expected = (images[:10] - made.train.mean.view(3, 1, 1)) / made.train.std.view(3, 1, 1)
    torch.testing.assert_close(x, expected)
