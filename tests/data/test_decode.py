"""Image folders: what is read, decoded once, cached, and one sentence for what is wrong."""

import os
import pwd
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from image_data import batches, image, same, write_folder
from regrow.data import decode
from regrow.data.cache import write as write_cache
from regrow.data.named import load
from regrow.errors import UserError


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

NO_HOME = "no home directory is known for ~/.cache/regrow/data: set REGROW_DATA to a folder for data sets"


@pytest.fixture
def homeless(monkeypatch):
    """A user of whom the system knows no home directory, as in containers that run under a random number."""

    def unknown(_):
        raise KeyError("uid not found")

    for name in ("HOME", "REGROW_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


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


def cut(cache: Path, pets: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:100])


def flip(cache: Path, pets: Path) -> None:
    data = bytearray(cache.read_bytes())
    data[-7] ^= 1
    cache.write_bytes(data)


def rewrite(change):
    """The same images under the same description, but for a change."""

    def harm(cache: Path, pets: Path) -> None:
        with safe_open(cache, "pt") as file:
            metadata = file.metadata()
        save_file(change(load_file(cache)), cache, metadata=metadata)

    return harm


def of_another_folder(cache: Path, pets: Path) -> None:
    """Of another folder that has as many images of the same size."""
    load(f"folder:{write_folder(pets.parent / 'others', classes=('cow', 'pig'))}", batch_size=4)
    (other,) = (f for f in cache.parent.iterdir() if f != cache)
    other.replace(cache)


def of_other_labels(cache: Path, pets: Path) -> None:
    labels = {split: torch.zeros(12, dtype=torch.int64) for split in ("train", "test")}
    write_cache(cache, load_file(cache), labels)


@pytest.mark.parametrize(
    "harm",
    [
        cut,
        flip,
        rewrite(lambda images: {split: part[:-1].clone() for split, part in images.items()}),
        rewrite(lambda images: {split: part[..., :-1].clone() for split, part in images.items()}),
        rewrite(lambda images: {split: part.to(torch.int16) for split, part in images.items()}),
        rewrite(lambda images: {split: part.flatten(1) for split, part in images.items()}),
        rewrite(lambda images: {"train": images["train"]}),
        rewrite(lambda images: {**images, "val": images["test"].clone()}),
        rewrite(lambda images: {"train": images["test"], "test": images["train"]}),
        of_another_folder,
        of_other_labels,
    ],
)
def test_a_cache_of_something_else_is_made_anew(tmp_path, root, harm, caplog):
    pets = write_folder(tmp_path / "pets")
    first = load(f"folder:{pets}", batch_size=4)
    (cache,) = (root / "decoded").iterdir()
    good = cache.read_bytes()
    harm(cache, pets)
    again = load(f"folder:{pets}", batch_size=4)
    assert torch.equal(again.train.images, first.train.images)
    assert torch.equal(again.test.images, first.test.images)
    assert cache.read_bytes() == good
    [line] = caplog.messages
    assert line.startswith(f"the cache {cache} is damaged, and is made anew: ")


def test_a_cache_in_place_of_a_folder_is_no_obstacle(tmp_path, root, caplog):
    pets = write_folder(tmp_path / "pets")
    first = load(f"folder:{pets}", batch_size=4)
    (cache,) = (root / "decoded").iterdir()
    cache.unlink()
    cache.mkdir()
    assert torch.equal(load(f"folder:{pets}", batch_size=4).train.images, first.train.images)
    assert len(caplog.messages) == 2  # it is no cache, and cannot become one
    assert list((root / "decoded").iterdir()) == [cache]


def test_works_without_a_place_for_the_cache(tmp_path, root):
    root.write_text("a file where the folder would be")
    assert load(f"folder:{write_folder(tmp_path / 'pets')}", batch_size=4).train.examples == 11


def test_works_without_a_home_directory(tmp_path, homeless, caplog):
    assert load(f"folder:{write_folder(tmp_path / 'pets')}", batch_size=4).train.examples == 11
    assert caplog.messages == [f"decoded images are not cached: {NO_HOME}"]
    for spec in ("cifar10", "fashion-mnist"):
        with pytest.raises(UserError, match=f"^{re.escape(NO_HOME)}$"):
            load(spec, batch_size=4)
    for kind, path in (("folder", "~/pets"), ("folder", "~nobody-of-that-name/pets"), ("imagenet", "~/pets")):
        with pytest.raises(UserError, match=f"^no home directory is known for {path}: give the folder's whole path$"):
            load(f"{kind}:{path}", batch_size=4)


# --- names that are not UTF-8, which file systems allow


def renamed(path: Path, name: bytes) -> Path:
    other = path.parent / os.fsdecode(name)
    path.rename(other)
    return other


@pytest.mark.parametrize("name", [b"\xff", b"caf\xe9", "猫".encode("euc_jp"), b"half-\xe2\x82"])
def test_names_that_are_not_utf8(tmp_path, root, name):
    pets = write_folder(tmp_path / "pets")
    first = load(f"folder:{pets}", batch_size=4)
    renamed(pets / "train" / "dog" / "003.png", name + b".png")
    for split in ("train", "test"):
        renamed(pets / split / "dog", b"dog" + name)
    pets = renamed(pets, name)
    for _ in range(2):  # decoded, and from the cache
        again = load(f"folder:{pets}", batch_size=4)
        assert again.classes == ("cat", os.fsdecode(b"dog" + name))
        assert torch.equal(again.test.images, first.test.images)
    assert len(list((root / "decoded").iterdir())) == 2
    streamed = load(f"imagenet:{renamed(pets / 'test', b'val').parent}", batch_size=4, size=8, workers=0)
    assert streamed.classes == again.classes


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
