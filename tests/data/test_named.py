"""Data sets by name, and one sentence for a name or a setting that is wrong."""

import numpy as np
import pytest
import torch

from image_data import batches, plain, same, write_folder
from regrow.data import named as data
from regrow.data.batches import TensorSource
from regrow.data.named import load
from regrow.errors import UserError


def test_digits():
    digits = load("digits", batch_size=64)
    assert (digits.num_classes, digits.shape, digits.classes) == (10, (1, 8, 8), tuple("0123456789"))
    assert (digits.train.examples, digits.val.examples, digits.test.examples) == (1294, 144, 359)
    assert (len(digits.train), len(digits.val), len(digits.test)) == (20, 3, 6)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.images.max() == 255
    x, y = next(digits.train.epoch(0))
    assert (x.shape, x.dtype, y.dtype) == ((64, 1, 8, 8), torch.float32, torch.int64)
    assert (digits.train.pad, digits.train.flip) == (1, False)
    # stratified: every class has a tenth of its images, give or take one
    counts = torch.bincount(digits.val.labels[digits.val.indices])
    assert counts.min() >= 13
    assert counts.max() <= 15


@pytest.mark.parametrize(
    ("spec", "shape", "classes"), [("generated:30", (3, 32, 32), 10), ("generated:1x8x9:4:30", (1, 8, 9), 4)]
)
def test_generated(spec, shape, classes):
    made = load(spec, batch_size=4)
    assert (made.shape, made.num_classes) == (shape, classes)
    assert (made.train.examples, made.val.examples, made.test.examples) == (27, 3, 7)
    assert same(batches(made.train), batches(load(spec, batch_size=4).train))


# --- torchvision's own


def fake_dataset(shape):
    class Fake:
        classes = ("zero", "one")

        def __init__(self, root, train, download):
            self.data = np.random.default_rng(train).integers(0, 256, (20, *shape), dtype=np.uint8)
            if len(shape) == 2:
                self.data = torch.from_numpy(self.data)
            self.targets = [i % 2 for i in range(20)]

    return Fake


@pytest.mark.parametrize(
    ("spec", "kind", "stored", "shape"),
    [
        ("cifar10", "CIFAR10", (32, 32, 3), (3, 32, 32)),
        ("cifar10,pool=2", "CIFAR10", (32, 32, 3), (3, 16, 16)),
        ("fashion-mnist", "FashionMNIST", (28, 28), (1, 28, 28)),
    ],
)
def test_torchvision_sets(monkeypatch, spec, kind, stored, shape):
    monkeypatch.setattr(f"torchvision.datasets.{kind}", fake_dataset(stored))
    made = load(spec, batch_size=4)
    assert (made.shape, made.classes) == (shape, ("zero", "one"))
    assert (made.train.examples, made.val.examples, made.test.examples) == (18, 2, 20)
    assert (made.train.pad, made.train.flip) == (shape[1] // 8, True)
    assert not torch.equal(made.train.images, made.test.images)


def test_no_data_and_no_network(monkeypatch, root):
    def refuse(*args, **kwargs):
        raise OSError("<urlopen error no network>\nmore")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", refuse)
    with pytest.raises(UserError, match=r"cifar10 is not in .*root and cannot be downloaded .*no network.*folder:PATH"):
        load("cifar10", batch_size=4)


def test_cifar10_unpacked_as_an_image_folder(root):
    write_folder(root / "cifar10")
    assert load("cifar10", batch_size=4).classes == ("cat", "dog")


# --- the user's own


def test_callable_that_makes_a_data_set(my_data):
    made = load("my_data:whole", batch_size=4, seed=7, rank=1, world=2)
    assert isinstance(made.train, TensorSource)
    assert (made.num_classes, made.train.batch_size, made.train.seed) == (3, 4, 7)
    assert (made.test.rank, made.test.world) == (1, 2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wrong", "returned neither a DataSet nor the data sets"),
        ("flat", r"must be \(image, label\), the image a tensor \(C, H, W\)"),
        ("missing", "no 'missing' in 'my_data'"),
    ],
)
def test_callable_with_wrong_data(my_data, name, sentence):
    with pytest.raises(UserError, match=sentence):
        load(f"my_data:{name}", batch_size=4, workers=0)


def test_a_new_name_is_one_entry(monkeypatch):
    monkeypatch.setitem(data.NAMED, "tall", data.Named(lambda settings, text: plain(int(text)), needs="number"))
    assert load("tall:24", batch_size=8).train.examples == 24
    with pytest.raises(UserError, match="the data set 'tall' needs a number: tall:…"):
        load("tall", batch_size=8)
    with pytest.raises(UserError, match="size=8 does not apply to the data set 'tall:24': leave it out"):
        load("tall:24,size=8", batch_size=8)


# --- what is refused


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("cifar-10", "unknown data set 'cifar-10'; did you mean 'cifar10'"),
        ("", "unknown data set ''"),
        ("folder", "'folder' needs a path: folder:…"),
        ("imagenet:", "'imagenet' needs a path"),
        ("generated:", "'generated' needs a number"),
        ("generated:many", "is not generated:N or generated:CxHxW:CLASSES:N"),
        ("generated:3x8x8:1:10", "at least 2 classes"),
        ("digits:5", "'digits' takes nothing after its name"),
        ("digits,size=16", "size=16 does not apply to the data set 'digits'"),
        ("digits,pol=2", "unknown option 'pol' of the data set 'digits'; did you mean 'pool'"),
        ("digits,pool=two", "pool=two of the data set 'digits' is not a positive whole number"),
        ("imagenet:x,pool=2", "pool=2 does not apply"),
        ("no_such.module:f", "'no_such.module' cannot be imported"),
    ],
)
def test_bad_name_is_one_sentence(spec, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        load(spec, batch_size=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pool": 3}, "pool=3 does not divide the images of 8x8 pixels"),
        ({"pool": 0}, "pool=0 is not a positive whole number"),
        ({"size": 0}, "size=0 is not a positive whole number"),
        ({"batch_size": 20}, "batch_size=20 is more than the 11 training images"),
        ({"batch_size": 6, "world": 2}, "batch_size=6 on each of 2 processes is more than the 11"),
        ({"batch_size": 0}, "batch_size=0 is not a positive whole number"),
        ({"val_fraction": 1.0}, "val_fraction=1.0 is not a share"),
        ({"augment": "standart"}, "unknown augmentation 'standart'; did you mean 'standard'"),
    ],
)
def test_bad_setting_is_one_sentence(tmp_path, options, sentence):
    pets = write_folder(tmp_path / "pets")
    with pytest.raises(UserError, match=sentence) as caught:
        load(f"folder:{pets}", **{"batch_size": 4} | options)
    assert "\n" not in str(caught.value)
