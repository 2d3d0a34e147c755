"""COCO's folders: what is read, and what is refused."""

import copy
import json

import pytest
from PIL import Image

from regrow.data.named import load
from regrow.errors import UserError

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
TRAIN = {
    "images": [{"id": 5, "file_name": "x.png", "width": 8, "height": 6},
               {"id": 9, "file_name": "y.png", "width": 8, "height": 6}],
    "annotations": [
        {"image_id": 9, "category_id": 3, "bbox": [1, 2, 3.5, 2]},
        {"image_id": 5, "category_id": 7, "bbox": [0, 0, 8, 6], "iscrowd": 0, "area": 48},
        {"image_id": 5, "category_id": 3, "bbox": [2, 2, 4, 4], "iscrowd": 1},
        {"image_id": 5, "category_id": 3, "bbox": [2, 2, 0, 4]},
    ],
    "categories": CATEGORIES,
}  # fmt: skip
VAL = {
    "images": [{"id": 1, "file_name": "z.png", "width": 8, "height": 6}],
    "annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 2], "iscrowd": 1}],
    "categories": CATEGORIES,
}


def write(root, train=TRAIN, val=VAL):
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for name, content in (("train2017", train), ("val2017", val)):
        text = content if isinstance(content, str) else json.dumps(content)
        (root / "annotations" / f"instances_{name}.json").write_text(text)
    for place in ("train2017/x.png", "train2017/y.png", "val2017/z.png"):
        (root / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), (10, 20, 30)).save(root / place)
    return root


def made(root):
    return load(f"coco:{root}", batch_size=1, workers=0, augment="none", val_fraction=0.0)


def test_images_boxes_and_crowds(tmp_path):
    data = made(write(tmp_path / "coco"))
    assert (data.classes, data.shape, data.task) == (("cat", "dog"), (3, 6, 8), "detection")
    seen = sorted((target["labels"].tolist(), target["boxes"].tolist()) for _, [target] in data.train.epoch(0))
    # a crowd is not trained on, and what has no area is left out
    assert seen == [([0], [[1, 2, 4.5, 4]]), ([1], [[0, 0, 8, 6]])]
    [([image], [target])] = list(data.test.epoch(0))
    assert (image[:, 0, 0] * 255).round().tolist() == [10, 20, 30]
    assert (target["labels"].tolist(), target["ignored"].tolist()) == ([1], [True])


def changed(place, value):
    content = copy.deepcopy(TRAIN)
    content["annotations"][1][place] = value
    return content


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (changed("category_id", 4), "annotation 1 of .*train2017.json has the unknown category 4"),
        (changed("image_id", 4), "annotation 1 of .*train2017.json is of image 4, which the file does not have"),
        (changed("bbox", [0, 0, 10, 6]), r"annotation 1 of .*json has the box \(0, 0, 10, 6\), outside its image"),
        (changed("bbox", [3, 0, -2, 6]), "annotation 1 of .*train2017.json has an empty box"),
        (changed("bbox", [3, 0, 2]), "train2017.json is damaged: annotations.1.bbox"),
        ({"images": []}, "train2017.json is damaged: annotations"),
        ("{", "train2017.json is not valid JSON"),
        ({**TRAIN, "images": [*TRAIN["images"], TRAIN["images"][0]]}, "train2017.json gives two images the same id"),
        ({**TRAIN, "images": [{**i, "file_name": "../../x.png"} for i in TRAIN["images"]]}, "which is outside of"),
        (changed("bbox", [8.2, 0, 0.5, 6]), r"annotation 1 of .* has the box .*, of which next to nothing is in"),
        ({**TRAIN, "categories": CATEGORIES[:1]}, "categories of .* differ: only one of them has 'cat'"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, train, said):
    with pytest.raises(UserError, match=said):
        made(write(tmp_path / "coco", train))


def test_what_is_missing_is_named(tmp_path):
    root = write(tmp_path / "coco")
    (root / "train2017" / "y.png").unlink()
    with pytest.raises(UserError, match=r"the file .*y\.png, which .*instances_train2017\.json lists, does not exist"):
        made(root)
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(UserError, match=r"annotations has no file instances_val\*\.json"):
        made(root)
    with pytest.raises(UserError, match="nowhere does not exist"):
        made(tmp_path / "nowhere")
