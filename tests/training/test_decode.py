"""Image folders: what is read, decoded once, cached, and one sentence for what is wrong."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_data import batches, image, same, write_folder
from regrow.errors import UserError
from regrow.training import decode
from regrow.training.data import load


def test_folder(tmp_path):
    made = load(f"folder:{write_folder(tmp_path / 'pets')}", batch_size=4)
    assert (made.classes, made.shape, made.num_classes) == (("cat", "dog"), (3, 8, 8), 2)
    assert (made.train.examples, made.val.examples, made.test.examples) == (11, 1, 12)
    assert made.train.flip
    expected = np.asarray(Image.open(tmp_path / "pets/test/dog/002.png"))
    assert torch.equal(made.test.images[8].permute(1, 2, 0), torch.from_numpy(expected.copy()))
    assert made.test.labels.tolist() == [0] * 6 + [1] * 6


def test_folder_with_train_and_val_tests_on_val(tmp_path):
    made = load(f"folder:{write_folder(tmp_path / 'pets', ('train', 'val'))}", batch_size=4)
    assert (made.train.examples, made.val.examples, made.test.examples) == (11, 1, 12)
    assert made.val.images is made.train.images


def test_folder_with_all_three_uses_them_as_they_are(tmp_path):
    spec = f"folder:{write_folder(tmp_path / 'pets', ('train', 'val', 'test'))}"
    made = load(spec, batch_size=4)
    assert (made.train.examples, made.val.examples, made.test.examples) == (12, 12, 12)
    expected = np.asarray(Image.open(tmp_path / "pets/val/cat/000.png"))
    assert torch.equal(made.val.images[0].permute(1, 2, 0), torch.from_numpy(expected.copy()))
    with pytest.raises(UserError, match="validation set of its own: leave val_fraction out"):
        load(spec, batch_size=4, val_fraction=0.1)


def test_grey_images_have_one_channel_only_if_all_are_grey(tmp_path):
    grey = write_folder(tmp_path / "grey", mode="L")
    assert load(f"folder:{grey}", batch_size=4).shape == (1, 8, 8)
    image(1).save(grey / "train" / "cat" / "colour.png")
    assert load(f"folder:{grey}", batch_size=4).shape == (3, 8, 8)


def test_resizing_and_pooling(tmp_path):
    pets = write_folder(tmp_path / "pets", size=(12, 8))
    assert load(f"folder:{pets}", batch_size=4).shape == (3, 8, 12)
    assert load(f"folder:{pets}", batch_size=4, size=6).shape == (3, 6, 6)
    assert load(f"folder:{pets},size=16,pool=2", batch_size=4).shape == (3, 8, 8)
    pooled = load(f"folder:{pets},pool=2", batch_size=4)
    whole = load(f"folder:{pets}", batch_size=4)
    expected = whole.test.images.double().unflatten(2, (4, 2)).unflatten(4, (6, 2)).mean((3, 5)).round().byte()
    assert torch.equal(pooled.test.images, expected)


def test_nested_hidden_and_other_files(tmp_path):
    pets = write_folder(tmp_path / "pets")
    (pets / "train" / "cat" / "more").mkdir()
    image(7).save(pets / "train" / "cat" / "more" / "x.JPG", format="JPEG")
    (pets / "train" / "cat" / "notes.txt").write_text("not an image")
    (pets / "train" / ".thumbnails").mkdir()
    made = load(f"folder:{pets}", batch_size=4, val_fraction=0.0)
    assert made.train.examples == 13


# --- the cache


def test_second_start_reads_the_cache(tmp_path, root, monkeypatch):
    pets = write_folder(tmp_path / "pets")
    first = load(f"folder:{pets}", batch_size=4)
    assert [f.suffix for f in (root / "decoded").iterdir()] == [".safetensors"]

    def refuse(*args):
        raise AssertionError("decoded again")

    decode_all = decode._decode_all
    monkeypatch.setattr(decode, "_decode_all", refuse)
    assert same(batches(load(f"folder:{pets}", batch_size=4).train), batches(first.train))
    # another size, another file time, another file: decoded again
    with pytest.raises(AssertionError, match="decoded again"):
        load(f"folder:{pets}", batch_size=4, size=4)
    os.utime(pets / "train" / "cat" / "000.png", ns=(1, 1))
    with pytest.raises(AssertionError, match="decoded again"):
        load(f"folder:{pets}", batch_size=4)
    monkeypatch.setattr(decode, "_decode_all", decode_all)
    image(99).save(pets / "train" / "cat" / "000.png")
    assert not torch.equal(load(f"folder:{pets}", batch_size=4).train.images, first.train.images)


def test_damaged_cache_is_made_anew(tmp_path, root):
    pets = write_folder(tmp_path / "pets")
    first = load(f"folder:{pets}", batch_size=4)
    (cache,) = (root / "decoded").iterdir()
    cache.write_bytes(cache.read_bytes()[:100])
    assert torch.equal(load(f"folder:{pets}", batch_size=4).train.images, first.train.images)
    assert cache.stat().st_size > 100


def test_works_without_a_place_for_the_cache(tmp_path, root):
    root.write_text("a file where the folder would be")
    assert load(f"folder:{write_folder(tmp_path / 'pets')}", batch_size=4).train.examples == 11


# --- what is refused


def remove(*parts: str):
    return lambda pets: shutil.rmtree(pets.joinpath(*parts))


def empty(pets: Path) -> None:
    for file in (pets / "train" / "dog").iterdir():
        file.unlink()


def truncate(pets: Path) -> None:
    file = pets / "test" / "cat" / "003.png"
    file.write_bytes(file.read_bytes()[:60])


def scribble(pets: Path) -> None:
    (pets / "train" / "dog" / "004.png").write_text("no image")


def grow(pets: Path) -> None:
    image(3, (9, 8)).save(pets / "test" / "dog" / "005.png")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (remove(), r"image folder .*pets does not exist"),
        (remove("train"), r"pets must have train/ and test/"),
        (remove("test"), r"pets must have train/ and test/"),
        (remove("test", "dog"), r"classes of .*train and .*test differ: only one of them has 'dog'"),
        (empty, r"no images in .*train/dog"),
        (truncate, r"the image .*test/cat/003.png cannot be read"),
        (scribble, r"the image .*train/dog/004.png cannot be read: not an image"),
        (grow, r"test/dog/005.png has 8x9 pixels and .*train/cat/000.png 8x8: give a size="),
    ],
)
def test_bad_folder_is_one_sentence(tmp_path, harm, sentence):
    pets = write_folder(tmp_path / "pets")
    harm(pets)
    with pytest.raises(UserError, match=sentence) as caught:
        load(f"folder:{pets}", batch_size=4)
    assert "\n" not in str(caught.value)


def test_one_class_is_refused(tmp_path):
    pets = write_folder(tmp_path / "pets", classes=("cat",))
    with pytest.raises(UserError, match="only one class, 'cat'"):
        load(f"folder:{pets}", batch_size=4)


def test_images_without_class_folders_are_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "flat" / split).mkdir(parents=True)
        image(0).save(tmp_path / "flat" / split / "0.png")
    with pytest.raises(UserError, match=r"no class folders with images in .*flat/train"):
        load(f"folder:{tmp_path / 'flat'}", batch_size=4)


def test_what_does_not_fit_in_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "_IN_MEMORY_LIMIT", 1000)
    with pytest.raises(UserError, match="24 images of 8x8 do not fit in memory: use imagenet:PATH"):
        load(f"folder:{write_folder(tmp_path / 'pets')}", batch_size=4)
