"""Images with boxes: what is drawn, what is ignored, and randomness that depends on seed, epoch and batch alone."""

import random

import pytest
import torch

from regrow.data.boxes import BoxImages, Objects, box_in, boxed
from regrow.data.named import load
from regrow.data.shapes import CLASSES, draw, drawn
from regrow.data.splits import Settings
from regrow.errors import UserError


def flat(batches):
    """All tensors of batches, in order."""
    return [t for images, targets in batches for t in (*images, *(v for one in targets for v in one.values()))]


def same(a, b):
    a, b = flat(a), flat(b)
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_shapes_are_what_their_name_says():
    made = load("shapes:20", batch_size=4)
    assert (made.task, made.num_classes, made.shape, made.classes) == ("detection", 3, (3, 64, 64), CLASSES)
    assert (made.train.examples, made.val.examples, made.test.examples) == (18, 2, 5)
    images, targets = next(made.test.epoch(0))
    assert [image.shape for image in images] == [(3, 64, 64)] * 4
    assert all(float(image.min()) >= 0 and float(image.max()) <= 1 for image in images)
    for target in targets:
        x1, y1, x2, y2 = target["boxes"].T
        assert len(x1) > 0
        assert ((x1 >= 0) & (y1 >= 0) & (x2 <= 64) & (y2 <= 64) & (x2 - x1 > 6) & (y2 - y1 > 6)).all()
        assert set(target["labels"].tolist()) <= {0, 1, 2}
        assert not target["ignored"].any()
    assert load("shapes:20,size=96", batch_size=4).shape == (3, 96, 96)


def test_an_image_depends_on_its_number_side_and_split_alone():
    few, many = drawn(2, 32, "train"), drawn(4, 32, "train")
    assert all(torch.equal(a, b) for a, b in zip(few.images, many.images, strict=False))
    assert not torch.equal(few.images[0], drawn(1, 32, "test").images[0])


def test_a_box_is_the_smallest_around_its_shape():
    import numpy as np

    class Still:  # a circle of radius 10 around (20, 20), on grey, and nothing else
        def __init__(self):
            self.uniforms = iter([np.full(3, 100.0), 10 / 64, (20.0, 20.0), np.full(3, 200.0)])

        def uniform(self, *_):
            return next(self.uniforms)

        def normal(self, _mean, _std, shape):
            return np.zeros(shape)

        def integers(self, *bounds):
            return 1 if len(bounds) == 2 else 0

    made = draw(Still(), 64)
    image, objects = made.image, made.objects
    assert made.mask.unique().tolist() == [0, 1]
    assert (made.mask == 1).sum() == (image[0] == 200).sum()
    assert objects.boxes.tolist() == [[10.0, 10.0, 30.0, 30.0]]
    assert objects.labels.tolist() == [0]
    assert image[0, 20, 20] == 200
    assert image[0, 5, 5] == 100


@pytest.mark.parametrize("augmentation", ["flip", "ssd"])
def test_augmentation_is_a_function_of_seed_epoch_and_batch(augmentation):
    images = drawn(12, 48, "train")

    def source(seed, workers=0):
        settings = Settings(4, seed=seed, val_fraction=0.0)
        made = boxed(images, images, settings, classes=CLASSES, shape=(3, 48, 48), augmentation=augmentation,
                     workers=workers)  # fmt: skip
        return made.train

    before = torch.get_rng_state(), random.getstate()
    whole = list(source(1).epoch(2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert same(list(source(1).epoch(2, start=1)), whole[1:])
    assert not same(list(source(1).epoch(3)), whole)
    assert not same(list(source(2).epoch(2)), whole)
    for batch_images, targets in whole:
        for image, target in zip(batch_images, targets, strict=True):
            height, width = image.shape[-2:]
            x1, y1, x2, y2 = target["boxes"].T
            assert ((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height) & (x1 < x2) & (y1 < y2)).all()
            assert len(target["labels"]) == len(target["ignored"]) == len(x1)
    if augmentation == "flip":
        assert same(list(source(1, workers=1).epoch(2)), whole)


def test_processes_share_the_images():
    made = [load("shapes:20", batch_size=3, rank=rank, world=2).test for rank in (0, 1)]
    shares = [[image for images, _ in source.epoch(0) for image in images] for source in made]
    whole = [image for images, _ in load("shapes:20", batch_size=3).test.epoch(0) for image in images]
    assert sorted(float(image.sum()) for share in shares for image in share) == sorted(float(i.sum()) for i in whole)


def test_what_is_ignored_is_trained_on_only_where_the_data_set_says_so():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    objects = Objects.of([(0, 0, 4, 4), (2, 2, 8, 8)], [0, 1], [False, True])
    for wanted in (False, True):
        images = BoxImages([image], [objects], trains_on_ignored=wanted)
        made = boxed(images, images, Settings(1, val_fraction=0.0), classes="ab", shape=(3, 8, 8), augmentation="flip",
                     workers=0)  # fmt: skip
        _, [trained] = next(made.train.epoch(0))
        _, [tested] = next(made.test.epoch(0))
        assert trained["labels"].tolist() == ([0, 1] if wanted else [0])
        assert tested["labels"].tolist() == [0, 1]
        assert tested["ignored"].tolist() == [False, True]


def test_boxes_are_cut_by_a_pixel_and_refused_beyond():
    assert box_in((-1.0, 0.0, 4.5, 3.0), (4.0, 3.0), "it") == (0.0, 0.0, 4.0, 3.0)
    with pytest.raises(UserError, match=r"it has the box \(0, 0, 6, 3\), outside its image of 4x3 pixels"):
        box_in((0.0, 0.0, 6.0, 3.0), (4.0, 3.0), "it")
    with pytest.raises(UserError, match=r"it has an empty box \(2, 0, 2, 3\)"):
        box_in((2.0, 0.0, 2.0, 3.0), (4.0, 3.0), "it")


@pytest.mark.parametrize("spec", ["shapes:1", "shapes:0", "shapes:many", "shapes:20,size=8", "shapes:999999999"])
def test_shapes_that_cannot_be_drawn_are_refused(spec):
    with pytest.raises(UserError, match="shapes"):
        load(spec, batch_size=4)
