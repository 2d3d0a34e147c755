"""Detectors: what their heads compute, what they find, and that thin ones find what masked ones do."""

import copy

import pytest
import torch

from masked_and_thin import random_keep
from regrow.coupling.couple import couple
from regrow.coupling.seen import difference
from regrow.errors import UserError
from regrow.inputs import Inputs, output_tensors
from regrow.surgery import resize
from regrow.tracing.flops import count_flops
from regrow.zoo.detectors import Detector, sizes_seen
from regrow.zoo.models import build, default_shape, example_input

TARGET = {"boxes": torch.tensor([[2.0, 3.0, 30.0, 40.0]]), "labels": torch.tensor([1])}


def shapes_ssd(**options):
    return build("shapes-ssd", 3, seed=0, **{"width": 4, "size": 32} | options)


def test_a_batch_gives_what_heads_compute_and_a_list_what_is_found():
    model, images = shapes_ssd().eval(), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    heads = model(images)
    # two classes of ratios on maps of 4, 2 and 1 places a side, four boxes in each place
    assert heads["cls_logits"].shape == (2, 4 * (16 + 4 + 1), 4)
    assert heads["bbox_regression"].shape == (2, 84, 4)
    for found in model(list(images)):
        assert found.keys() == {"boxes", "labels", "scores"}
        assert set(found["labels"].tolist()) <= {0, 1, 2}
        assert torch.equal(found["scores"], found["scores"].sort(descending=True).values)
    assert model.train()(images).keys() == heads.keys()
    losses = model(list(images), [TARGET, TARGET])
    assert losses.keys() == {"bbox_regression", "classification"}
    assert all(loss.requires_grad for loss in losses.values())


def test_what_heads_compute_is_what_boxes_are_picked_of():
    """The batch is normalised and resized as the detector's own transform does it."""
    for spec, options, side in (("shapes-ssd", {"width": 4}, 40), ("torchvision:retinanet_resnet50_fpn", {}, 50)):
        if spec.startswith("torchvision"):
            options = {"min_size": 48, "max_size": 96}
        model = build(spec, 3, seed=0, **options).eval()
        images = torch.rand(2, 3, side, side + 10, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            seen = model.net.transform(list(images))[0].tensors
            expected = model.net.head(list(model.net.backbone(seen).values()))
            assert difference(list(output_tensors(expected)), list(output_tensors(model(images)))) < 1e-5


@pytest.mark.parametrize("size", [(480, 640), (700, 300), (100, 100)])
def test_sizes_are_those_of_torchvision(size):
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    for options in ({"fixed_size": (96, 64), "size_divisible": 1}, {}):
        transform = GeneralizedRCNNTransform(320, 500, [0.0] * 3, [1.0] * 3, **options).eval()
        images, _ = transform([torch.zeros(3, *size)])
        assert sizes_seen(transform, size) == (images.image_sizes[0], tuple(images.tensors.shape[-2:]))


def test_thin_ones_compute_and_find_what_masked_ones_do():
    model = shapes_ssd(width=8).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    coupling = couple(model, Inputs.of(images))
    assert len(coupling.groups) == 8
    keep = random_keep(coupling, 0.5)
    masked, thin = copy.deepcopy(model), copy.deepcopy(model)
    resize.zero(masked, coupling, keep)
    resize.compact(thin, coupling, keep)
    assert sum(p.numel() for p in thin.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        assert difference(list(output_tensors(masked(images))), list(output_tensors(thin(images)))) < 1e-5
        for one, other in zip(masked(list(images)), thin(list(images)), strict=True):
            assert len(one["boxes"]) > 0
            assert torch.equal(one["labels"], other["labels"])
            torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "background"),
    [
        ("ssdlite320_mobilenet_v3_large", {"size": None}, True),
        ("fcos_resnet50_fpn", {"min_size": 64, "max_size": 64}, False),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", {"min_size": 64, "max_size": 64}, True),
    ],
)
def test_detectors_of_torchvision_train_and_find(name, options, background):
    options = {key: value for key, value in options.items() if value is not None}
    model = build(f"torchvision:{name}", 2, seed=0, **options)
    assert model.first_class == background
    images = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    losses = model(images, [TARGET, TARGET])
    assert all(bool(loss.isfinite()) for loss in losses.values())
    flops = count_flops(model, torch.rand(1, 3, 64, 64))
    assert flops.total > 1e7
    assert not flops.uncounted
    unreached = set(dict(model.named_parameters())) - flops.reached
    assert not unreached
    for found in model.eval()(images):
        assert set(found["labels"].tolist()) <= {0, 1}


def test_the_heads_of_a_detector_of_ones_own_are_found():
    made = build("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", 3, seed=0).eval()
    own, image = Detector(made.net, background=True).eval(), torch.rand(1, 3, 64, 64)
    found = list(output_tensors(own(image)))
    assert found
    assert all(torch.equal(a, b) for a, b in zip(found, output_tensors(made(image)), strict=True))
    with pytest.raises(UserError, match="Linear is not made as torchvision's detectors are"):
        Detector(torch.nn.Linear(2, 2), background=True)


def test_ssd512_is_as_in_the_paper():
    """Seven maps of 64 to 1 places a side, with 4 or 6 boxes in each place: 24,564 boxes, as SSD512 has them."""
    model = build("ssd512-resnet50", 20, seed=0)
    heads = [64, 32, 16, 8, 4, 2, 1]
    assert model.net.anchor_generator.num_anchors_per_location() == [4, 6, 6, 6, 6, 4, 4]
    assert sum(a * side**2 for a, side in zip([4, 6, 6, 6, 6, 4, 4], heads, strict=True)) == 24_564
    flops = count_flops(model, example_input(model, default_shape("ssd512-resnet50")))
    assert 9.0e10 < flops.total < 9.3e10
    maps = build("ssd512-resnet50", 20, seed=0, size=64).net.backbone(torch.rand(2, 3, 64, 64))
    assert [tuple(one.shape[1:]) for one in maps.values()] == [
        (1024, 8, 8), (512, 4, 4), (512, 2, 2), (256, 1, 1), (256, 1, 1), (256, 1, 1), (256, 1, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("torchvision:maskrcnn_resnet50_fpn", {}, "maskrcnn_resnet50_fpn needs more than boxes to train on"),
        ("shapes-ssd", {"size": 8}, "needs a width of at least 1 and a size of at least 32"),
        ("shapes-ssd", {"in_channels": 1}, "'shapes-ssd' takes images of 3 channels, not 1"),
        ("shapes-ssd", {"pretrained": True}, "there are no pretrained weights for 'shapes-ssd'"),
        ("ssd512-resnet50", {"size": 8}, "needs a size of at least 32"),
        ("ssd512-resnet51", {}, "did you mean 'ssd512-resnet50'"),
    ],
)
def test_what_cannot_be_built_is_refused(spec, options, said):
    with pytest.raises(UserError, match=said):
        build(spec, 3, options.pop("in_channels", 3), **options)


def test_weights_of_torchvisions_own_detector_are_taken(tmp_path):
    from regrow.training.initial import start_from

    model, other = shapes_ssd(), build("shapes-ssd", 3, seed=1, width=4, size=32)
    torch.save(other.net.state_dict(), tmp_path / "plain.pt")
    start_from(model, str(tmp_path / "plain.pt"), 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
