"""Images decoded on the fly: ImageNet, and the user's torch data sets."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from image_data import batches, joined, same, write_folder
from regrow.data import streams
from regrow.data.named import load
from regrow.errors import UserError

# --- torch data sets


def test_callable_with_torch_data_sets(my_data):
    made = load("my_data:pair", batch_size=4, workers=0)
    assert (made.classes, made.shape) == (("a", "b"), (1, 2, 2))
    assert (made.train.examples, made.val.examples, made.test.examples) == (18, 2, 6)
    made = load("my_data:triple", batch_size=4, workers=0)
    assert (made.train.examples, made.val.examples, made.test.examples) == (20, 4, 6)
    x, y = joined(made.test)
    assert y.tolist() == [0, 1, 0, 1, 0, 1]
    assert torch.equal((x[:, 0, 0, 0] / 10).floor(), torch.arange(6.0))
    assert load("my_data:tensors", batch_size=4, workers=0).num_classes == 3


def test_random_data_sets_are_a_function_of_seed_epoch_and_batch(my_data):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    whole = batches(load("my_data:pair", batch_size=4, seed=1, workers=0).train, 3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    with_workers = load("my_data:pair", batch_size=4, seed=1, workers=2).train
    assert same(batches(with_workers, 3, 1), whole[1:])
    assert not same(batches(with_workers, 2), whole)
    # two examples never share their noise
    noise = joined(with_workers)[0]
    assert len((noise[:, 0, 0, 0] % 10).unique()) == len(noise)


def test_labels_of_a_subset():
    base = TensorDataset(torch.rand(6, 1, 2, 2), torch.arange(6))
    assert streams._labels(Subset(base, [4, 1])).tolist() == [4, 1]


# --- ImageNet


def test_imagenet(tmp_path):
    pets = write_folder(tmp_path / "pets", ("train", "val"), size=(40, 30))
    made = load(f"imagenet:{pets}", batch_size=4, size=28, workers=0)
    assert (made.classes, made.shape) == (("cat", "dog"), (3, 28, 28))
    assert (made.train.examples, made.val.examples, made.test.examples) == (11, 1, 12)
    x, _ = joined(made.test)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = x * std.view(3, 1, 1) + mean.view(3, 1, 1)
    torch.testing.assert_close(pixels * 255, (pixels * 255).round(), atol=1e-3, rtol=0)
    # validation images are the training images without augmentation
    assert same(batches(made.val), batches(made.val, 1))
    assert not torch.equal(joined(made.train)[0].sum(), joined(made.train, 1)[0].sum())
    assert load(f"imagenet:{pets}", batch_size=4, workers=0).shape == (3, 224, 224)


def test_imagenet_resumes_exactly_whatever_the_workers(tmp_path):
    pets = write_folder(tmp_path / "pets", ("train", "val"), size=(20, 20))
    whole = batches(load(f"imagenet:{pets},size=16", batch_size=2, workers=0).train, 1)
    assert same(batches(load(f"imagenet:{pets},size=16", batch_size=2, workers=2).train, 1, 2), whole[2:])
    shares = [load(f"imagenet:{pets},size=16", batch_size=1, workers=0, rank=r, world=2) for r in (0, 1)]
    parts = zip(*(batches(s.train, 1) for s in shares), strict=True)
    assert same([tuple(map(torch.cat, zip(*p, strict=True))) for p in parts], whole)


def test_imagenet_without_augmentation(tmp_path):
    pets = write_folder(tmp_path / "pets", ("train", "val"), size=(20, 20))
    made = load(f"imagenet:{pets},size=16", batch_size=2, workers=0, augment="none", val_fraction=0.0)
    first, second = (joined(made.train, k)[0].flatten(1).sum(1).sort().values for k in (0, 1))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("workers", [0, 1])
def test_imagenet_names_a_corrupt_image(tmp_path, workers):
    pets = write_folder(tmp_path / "pets", ("train", "val"))
    (pets / "val" / "dog" / "005.png").write_text("no image")
    made = load(f"imagenet:{pets},size=8", batch_size=4, workers=workers)
    with pytest.raises(UserError, match=r"^the image .*val/dog/005.png cannot be read: not an image$"):
        batches(made.test)


def test_imagenet_bad_folders(tmp_path):
    with pytest.raises(UserError, match=r"neither train/ and val/ folders of class folders nor ImageNet's archives"):
        load(f"imagenet:{tmp_path}", batch_size=4)
    pets = write_folder(tmp_path / "pets", ("train", "val"))
    (pets / "val" / "cat").rename(pets / "val" / "cow")
    with pytest.raises(UserError, match=r"classes of .*train and .*val differ: only one of them has 'cat'"):
        load(f"imagenet:{pets}", batch_size=4)
