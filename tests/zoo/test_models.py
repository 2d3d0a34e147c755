"""Models by name."""

import sys

import pytest
import torch
from torch import nn

from masked_and_thin import deviation, random_keep
from regrow.coupling.couple import couple
from regrow.errors import UserError
from regrow.importing import call_accepting, import_callable
from regrow.zoo.models import build, default_shape, example_input


@pytest.fixture
def my_models(tmp_path, monkeypatch):
    """A module of the user's in the current directory."""
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes, in_chans=3, hidden=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 4, hidden), nn.Linear(hidden, num_classes))\n"
        "def fixed(): return nn.Linear(2, 2)\n"
        "def wrong(): return 3\n"
        "def anything(in_channels, **kwargs): return nn.Linear(in_channels, kwargs['num_classes'], kwargs['bias'])\n"
        "number = 3\n"
    )
    (tmp_path / "my_broken.py").write_text("import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("my_models", "my_broken"):
        sys.modules.pop(name, None)


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("spec", "convolutions", "parameters"),
    # parameters of the reference implementation: 36.5M for 28-10 and 2.7M for 16-4
    [("wrn10-2", 10, None), ("wrn22-2", 22, 1_079_642), ("wrn16-4", 16, 2_748_890), ("wrn28-10", 28, 36_479_194)],
)
def test_wide_resnets(spec, convolutions, parameters):
    with torch.device("meta"):
        model = build(spec, 10)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convolutions
    assert parameters in (None, weights(model))
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_wide_resnet_initialisation():
    model = build("wrn10-2", 7, in_channels=1, seed=0, dropout=0.3)
    conv = model.stages[2][0].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert not model.head.bias.any()
    assert any(isinstance(m, nn.Dropout) for m in model.modules())
    assert not any(isinstance(m, nn.Dropout) for m in build("wrn10-2", 7).modules())
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 7)


def test_vision_transformers():
    model = build("vit2-32", 7, in_channels=1, seed=0, size=8, patch=2, heads=4)
    parts = {"stem": 32 * 4 + 32, "position": 16 * 32, "layers": 2 * (4 * 32 * 33 + 8 * 32 * 32 + 160 + 128)}
    assert weights(model) == sum(parts.values()) + 64 + 33 * 7
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    with pytest.raises(UserError, match="images of 4×4 pixels, but the model has size=8"):
        model(torch.randn(2, 1, 4, 4))
    assert build("vit12-192", 10).layers[0].heads == 6
    assert build("vit1-16", 10).layers[0].heads == 1


@pytest.mark.parametrize("heads", ["count", "width"])
def test_all_widths_of_a_vision_transformer_can_go(heads):
    model = build("vit2-32", 7, seed=0, size=8, patch=2, heads=4).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    coupling = couple(model, x, normalised=True, heads=heads)
    of_layers = {"query": 4, "up": 128} if heads == "count" else {"query": 8, "value": 8, "up": 128}
    expected = {"stem": 32} | {f"layers.{i}.{name}": size for i in range(2) for name, size in of_layers.items()}
    assert {group.id: group.size for group in coupling.groups} == expected
    exact = couple(model, x, heads=heads)
    assert deviation(model, exact, random_keep(exact, 0.5), (x,)) < 1e-12


def test_digits_cnn():
    model = build("digits-cnn", 10, in_channels=1)
    assert 30_000 < weights(model) < 100_000
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("spec", ["digits-cnn", "wrn10-2", "timm:resnet18"])
def test_seed_decides_and_leaves_the_global_randomness_alone(spec):
    state = torch.get_rng_state()
    first, second, other = (build(spec, 3, in_channels=1, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)
    build(spec, 3, in_channels=1)
    assert not torch.equal(torch.get_rng_state(), state)


def test_libraries():
    assert build("timm:mobilenetv3_small_050", 7, in_channels=1).conv_stem.in_channels == 1
    assert build("torchvision:mobilenet_v3_small", 7).classifier[-1].out_features == 7
    model = build("torchvision:squeezenet1_1", 7, dropout=0.1)
    assert model.classifier[0].p == 0.1


def test_nothing_is_downloaded_unless_asked_for(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    build("torchvision:mobilenet_v3_small", 7)
    with pytest.raises(UserError, match="'torchvision:mobilenet_v3_small' cannot be built: no network"):
        build("torchvision:mobilenet_v3_small", 7, pretrained=True)


def test_pretrained_weights_that_fit_are_taken(monkeypatch):
    import torchvision

    saved = torchvision.models.mobilenet_v3_small(num_classes=1000).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: saved)
    model = build("torchvision:mobilenet_v3_small", 7, pretrained=True)
    assert torch.equal(model.features[0][0].weight, saved["features.0.0.weight"])
    assert model.classifier[-1].out_features == 7


def test_callables(my_models):
    model = build("my_models:tiny", 5, in_channels=2, hidden=6)
    assert (model[1].in_features, model[1].out_features, model[2].out_features) == (8, 6, 5)
    assert build("my_models:fixed", 5).out_features == 2
    assert build("my_models:anything", 5, in_channels=2, bias=False).bias is None


@pytest.mark.parametrize(
    ("spec", "options", "sentence"),
    [
        ("wrn23-2", {}, r"depth of a WideResNet is 6n \+ 4"),
        ("wrn4-2", {}, r"depth of a WideResNet is 6n \+ 4"),
        ("wrn22-0", {}, "width at least 1"),
        ("vit0-96", {}, "the width must be a multiple of heads"),
        ("vit6-96", {"heads": 5}, r"vit6-96: the width must be a multiple of heads \(5\)"),
        ("vit6-96", {"size": 15}, "images of 15 pixels are no whole number of patches of 4"),
        ("vit6", {}, "did you mean 'vit6-96'"),
        ("wrn222", {}, "did you mean 'wrn22-2'"),
        ("digit-cnn", {}, "did you mean 'digits-cnn'"),
        ("", {}, "unknown model ''"),
        ("timm:resnet5O", {}, "did you mean 'resnet50'"),
        ("timm:", {}, "timm has no model ''"),
        ("torchvision:resnet81", {}, "torchvision has no model 'resnet81'; did you mean 'resnet18'"),
        ("torchvision:r3d_18", {}, "torchvision's r3d_18 is a model for video, but only"),
        ("wrn22-2", {"droput": 0.1}, "no option 'droput'; did you mean 'dropout'"),
        ("wrn22-2", {"pretrained": True}, "no pretrained weights for 'wrn22-2'"),
        ("timm:resnet18", {"foo": 1}, "'timm:resnet18' cannot be built: .*'foo'"),
        ("torchvision:resnet18", {"foo": 1}, "'torchvision:resnet18' cannot be built: .*'foo'"),
        ("no_such.module:f", {}, "module 'no_such.module' cannot be imported"),
        ("my_broken:f", {}, "'my_broken' cannot be imported: No module named 'no_such_module'"),
        ("my_models:tinny", {}, "no 'tinny' in 'my_models'; did you mean 'tiny'"),
        ("my_models:number", {}, "is a int and cannot be called"),
        ("my_models:wrong", {}, "returned a int, not a torch.nn.Module"),
        ("my_models:tiny", {"hiden": 3}, "no option 'hiden'; did you mean 'hidden'"),
    ],
)
def test_bad_input_is_one_sentence(my_models, spec, options, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        build(spec, 10, **options)
    assert "\n" not in str(caught.value)


def test_torchvision_takes_colour_images_only():
    with pytest.raises(UserError, match=r"takes images of 3 channels, not 1.*timm:"):
        build("torchvision:resnet18", 10, in_channels=1)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("wrn22-2", (3, 32, 32)),
        ("vit6-96", (3, 32, 32)),
        ("digits-cnn", (1, 8, 8)),
        ("timm:resnet18", (3, 224, 224)),
        ("torchvision:inception_v3", (3, 299, 299)),
    ],
)
def test_default_shapes(spec, shape):
    assert default_shape(spec) == shape
    assert example_input(spec, batch=2).shape == (2, *shape)


def test_example_input():
    model = build("digits-cnn", 10, 1)
    x = example_input(model, (1, 8, 8))
    assert x.shape == (1, 1, 8, 8)
    assert torch.equal(x, example_input("digits-cnn"))
    assert example_input(model.to("meta"), (1, 8, 8)).device.type == "meta"
    with pytest.raises(UserError, match=r"of 'torch.nn:Linear' is not known: give one, such as --data-shape"):
        example_input("torch.nn:Linear")
    with pytest.raises(UserError, match="input shape of the model is not known"):
        example_input(model)


def test_call_accepting_offers_only_what_is_taken():
    assert call_accepting(lambda a, b=2: (a, b), "f", {"b": 5}, a=1, c=3) == (1, 5)
    assert import_callable("torch.nn:Module.train") is nn.Module.train
