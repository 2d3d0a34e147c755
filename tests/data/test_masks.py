"""Images with a class for every pixel: what is read, what is varied, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from regrow.data.named import load
from regrow.data.shapes import CLASSES
from regrow.errors import UserError


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(p, q) for x, y in zip(a, b, strict=True) for p, q in zip(x, y, strict=True)
    )


def test_drawn_masks_are_those_of_the_drawn_boxes():
    masks, boxes = (load(f"{name}:8,size=32", batch_size=2, augment="none") for name in ("shapes-masks", "shapes"))
    assert (masks.task, masks.shape, masks.classes) == ("segmentation", (3, 32, 32), ("background", *CLASSES))
    images, classes = next(masks.test.epoch(0))
    others, targets = next(boxes.test.epoch(0))
    assert (images.shape, classes.shape, classes.dtype) == ((2, 3, 32, 32), (2, 32, 32), torch.int64)
    mean, std = masks.test.normalisation()
    back = images * std.view(3, 1, 1) + mean.view(3, 1, 1)
    for one, other, mask, target in zip(back, others, classes, targets, strict=True):
        torch.testing.assert_close(one / 255, other, atol=1e-5, rtol=0)
        assert set(mask.unique().tolist()) - {0} == {label + 1 for label in target["labels"].tolist()}
        x1, y1, x2, y2 = target["boxes"].T
        rows, columns = (mask > 0).nonzero().T
        assert (rows.min(), columns.min()) == (y1.min(), x1.min())
        assert (rows.max() + 1, columns.max() + 1) == (y2.max(), x2.max())


def test_flips_are_a_function_of_seed_epoch_and_batch_and_the_same_for_both():
    def source(seed):
        return load("shapes-masks:12,size=32", batch_size=3, seed=seed, val_fraction=0.0).train

    whole = list(source(1).epoch(2))
    assert same(list(source(1).epoch(2, start=2)), whole[2:])
    assert not same(list(source(2).epoch(2)), whole)
    plain = load("shapes-masks:12,size=32", batch_size=12, seed=1, val_fraction=0.0, augment="none").train
    known = list(zip(*next(plain.epoch(0)), strict=True))
    flipped = 0
    for images, masks in whole:
        for image, mask in zip(images, masks, strict=True):
            straight = any(torch.equal(image, i) and torch.equal(mask, m) for i, m in known)
            turned = any(torch.equal(image, i.flip(-1)) and torch.equal(mask, m.flip(-1)) for i, m in known)
            assert straight != turned
            flipped += turned
    assert 0 < flipped < 12


@pytest.fixture
def root(tmp_path):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for name, stems in {"train": "ab", "val": "c"}.items():
        (tmp_path / "ImageSets/Segmentation" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    for stem in "abc":
        Image.new("RGB", (8, 4), (10, 20, 30)).save(tmp_path / "JPEGImages" / f"{stem}.jpg")
        write_mask(tmp_path, stem, [[0, 0, 12, 12, 12, 12, 255, 255]] * 4)
    return tmp_path


def write_mask(root, stem, rows):
    image = Image.fromarray(np.array(rows, dtype=np.uint8), mode="P")
    image.putpalette([n % 256 for n in range(768)])
    image.save(root / "SegmentationClass" / f"{stem}.png")


def test_voc(root):
    data = load(f"voc-masks:{root},size=8", batch_size=1, workers=0, val_fraction=0.0)
    assert (data.num_classes, data.shape, data.classes[12]) == (21, (3, 8, 8), "dog")
    assert (data.train.examples, data.test.examples) == (2, 1)
    [(images, masks)] = list(data.test.epoch(0))
    assert images.shape == (1, 3, 8, 8)
    assert masks[0].tolist() == [[0, 0, 12, 12, 12, 12, 255, 255]] * 8
    assert set(next(data.train.epoch(0))[1].unique().tolist()) <= {0, 12, 255}


def test_what_is_wrong_is_named(root):
    write_mask(root, "c", [[0, 30]])
    made = load(f"voc-masks:{root}", batch_size=1, workers=0)
    with pytest.raises(UserError, match=r"c\.png has the shape \(1, 2\), but its image \(4, 8\)"):
        list(made.test.epoch(0))
    write_mask(root, "c", [[30] * 8] * 4)
    with pytest.raises(UserError, match=r"c\.png has class 30, but there are only 21"):
        list(made.test.epoch(0))
    (root / "SegmentationClass" / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png, which .*train\.txt lists, does not exist"):
        load(f"voc-masks:{root}", batch_size=1)
    (root / "ImageSets/Segmentation/train.txt").unlink()
    with pytest.raises(UserError, match=r"train\.txt does not exist"):
        load(f"voc-masks:{root}", batch_size=1)
    with pytest.raises(UserError, match="'shapes-masks:x' is not shapes-masks:N"):
        load("shapes-masks:x", batch_size=1)


@pytest.mark.parametrize("kind", [np.int32, np.float32, np.uint16])
def test_masks_of_numbers_that_are_no_classes_are_refused(root, kind):
    levels = np.full((4, 8), -1 if kind is np.int32 else 300, dtype=kind)
    (root / "SegmentationClass" / "c.png").unlink()
    Image.fromarray(levels).save(root / "SegmentationClass" / "c.png", "TIFF")
    with pytest.raises(UserError, match=r"c\.png (holds|has class 300)"):
        list(load(f"voc-masks:{root}", batch_size=1, workers=0).test.epoch(0))
    Image.fromarray(np.full((4, 8), 12, dtype=np.uint16)).save(root / "SegmentationClass" / "c.png", "TIFF")
    assert next(load(f"voc-masks:{root},size=4", batch_size=1, workers=0).test.epoch(0))[1].unique().tolist() == [12]
