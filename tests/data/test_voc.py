"""Folders of PASCAL VOC: what is read, and what is refused."""

from itertools import pairwise

import pytest
import torch
from PIL import Image

from regrow.data.named import load
from regrow.errors import UserError


def annotation(*objects, width=8, height=6):
    """XML with objects (class, xmin, ymin, xmax, ymax, difficult)."""
    entries = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2, difficult in objects
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{entries}</annotation>"


def write(root, splits, files):
    """A folder of VOC: name of a list → stems, stem → annotation."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, stems in splits.items():
        (root / "ImageSets/Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    for stem, text in files.items():
        (root / "Annotations" / f"{stem}.xml").write_text(text)
        Image.new("RGB", (8, 6), (10, 20, 30)).save(root / "JPEGImages" / f"{stem}.jpg", quality=100)


FILES = {
    "a": annotation(("dog", 1, 1, 8, 6, 0), ("cat", 2, 3, 4, 5, 1)),
    "b": annotation(("person", 3, 2, 5, 4, 0)),
    "c": annotation(),
}


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "voc", {"trainval": ["a", "c"], "test": ["b"]}, FILES)
    return tmp_path / "voc"


def made(root, **options):
    return load(f"voc:{root}", batch_size=1, workers=0, augment="none", val_fraction=0.0, **options)


def test_images_and_boxes(root):
    data = made(root)
    assert (data.num_classes, data.task, data.shape) == (20, "detection", (3, 6, 8))
    assert (data.train.examples, data.test.examples) == (2, 1)
    seen = {len(target["labels"]): (image, target) for [image], [target] in data.train.epoch(0)}
    image, target = seen[2]
    assert image.shape == (3, 6, 8)
    assert torch.allclose(image[:, 0, 0] * 255, torch.tensor([10.0, 20, 30]), atol=3)
    # pixels count from 1 there, and the last one is in the box; difficult objects are trained on
    assert target["boxes"].tolist() == [[0, 0, 8, 6], [1, 2, 4, 5]]
    assert [data.classes[label] for label in target["labels"]] == ["dog", "cat"]
    assert target["ignored"].tolist() == [False, True]
    assert seen[0][1]["boxes"].shape == (0, 4)
    [_], [target] = next(data.test.epoch(0))
    assert target["boxes"].tolist() == [[2, 1, 5, 4]]


def test_a_size_resizes_images_and_boxes(root):
    data = made(root, size=16)
    assert data.shape == (3, 16, 16)
    [image], [target] = next(data.test.epoch(0))
    assert image.shape == (3, 16, 16)
    assert torch.allclose(target["boxes"], torch.tensor([[4.0, 16 / 6, 10.0, 64 / 6]]))


def test_several_years_and_classes_of_ones_own(tmp_path):
    write(tmp_path / "all" / "VOC2007", {"trainval": ["a"], "test": ["b"]}, FILES)
    write(tmp_path / "all" / "VOC2012", {"trainval": ["a", "b", "c"], "train": ["c"]}, FILES)
    data = made(tmp_path / "all")
    assert (data.train.examples, data.test.examples) == (4, 1)
    (tmp_path / "all" / "classes.txt").write_text("person\ncat\ndog\n")
    assert made(tmp_path / "all").classes == ("person", "cat", "dog")


def test_without_test_val_is_tested_on(tmp_path):
    write(tmp_path / "voc", {"train": ["a", "c"], "val": ["b"]}, FILES)
    assert (made(tmp_path / "voc").train.examples, made(tmp_path / "voc").test.examples) == (2, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (annotation(("dgo", 1, 1, 2, 2, 0)), "object 1 of .*a.xml has the unknown class 'dgo'; did you mean 'dog'"),
        (annotation(("dog", 1, 1, 20, 2, 0)), "object 1 of .*a.xml has the box .* outside its image of 8x6 pixels"),
        (annotation(("dog", 5, 1, 3, 2, 0)), "object 1 of .*a.xml has an empty box"),
        (annotation(("dog", "x", 1, 3, 2, 0)), "a.xml has 'x' as bndbox/xmin, where a number of pixels is due"),
        ("<annotation/>", "a.xml has '' as size/width"),
        ("<annotation>", "a.xml is no XML"),
    ],
)
def test_a_wrong_annotation_is_refused(root, text, said):
    (root / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(UserError, match=said):
        made(root)


def test_what_is_missing_is_named(root, tmp_path):
    (root / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"the file .*a\.jpg, which .*trainval\.txt lists, does not exist"):
        made(root)
    write(root, {}, FILES)
    (root / "Annotations" / "c.xml").unlink()
    with pytest.raises(UserError, match=r"the annotation .*c\.xml cannot be read: No such file"):
        made(root)
    (root / "ImageSets/Main/trainval.txt").unlink()
    with pytest.raises(UserError, match=r"trainval\.txt does not exist"):
        made(root)
    with pytest.raises(UserError, match="has no Annotations/"):
        made(root / "ImageSets")
    with pytest.raises(UserError, match="nowhere does not exist"):
        made(tmp_path / "nowhere")


def test_a_box_outside_the_file_itself_is_refused(root):
    (root / "Annotations" / "b.xml").write_text(annotation(("dog", 1, 1, 30, 30, 0), width=40, height=40))
    with pytest.raises(UserError, match=r"b\.jpg has 8x6 pixels, but a box that its annotation gives lies outside"):
        list(made(root).test.epoch(0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<?xml version="1.0" encoding="nonsense"?>', "a.xml is no XML: unknown encoding: nonsense"),
        ('<?xml version="1.0" encoding="shift-jis"?>', "a.xml is no XML: multi-byte encodings are not supported"),
        ('<?xml version="1.0" encoding="idna"?>', "a.xml is no XML: decoding with 'idna' codec failed"),
    ],
)
def test_an_encoding_that_cannot_be_read_is_refused(root, text, said):
    (root / "Annotations" / "a.xml").write_text(text + FILES["a"])
    with pytest.raises(UserError, match=said):
        made(root)


def test_entities_do_not_grow(root):
    entities = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in pairwise("abcdefghij"))
    text = f'<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">{entities}]><annotation>&j;</annotation>'
    (root / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(UserError, match=r"a\.xml is no XML: limit on input amplification"):
        made(root)


@pytest.mark.parametrize("box", [(9, 1, 9, 6), ("9.2", 1, "8.9", 6), ("0.5", 1, 0, 6), (1, 1, "1e-9", 6)])
def test_a_box_of_which_nothing_is_left_is_refused(root, box):
    (root / "Annotations" / "a.xml").write_text(annotation(("dog", *box, 0)))
    with pytest.raises(UserError, match=r"object 1 of .*a\.xml has .* box .*: correct the annotation"):
        made(root)


def test_flags_are_0_or_1(root):
    (root / "Annotations" / "a.xml").write_text(annotation(("dog", 1, 1, 8, 6, "true")))
    with pytest.raises(UserError, match=r"object 1 of .*a\.xml has 'true' as difficult, where 0 or 1 is due"):
        made(root)
