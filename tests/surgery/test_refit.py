"""Thin models come back exactly in fresh dense ones, and what does not fit is refused before anything changes."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import regrow
from channel_models import Attention, Chain, Dense, Flatten, Residual, build, scramble
from damage import edit, truncate
from masked_and_thin import random_keep
from regrow import UserError, storage
from regrow.coupling.couple import couple
from regrow.surgery import resize

IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))
PICTURE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """One factor for each channel, in a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.rand(8, 1, 1), persistent=False)

    def forward(self, x):
        return x * self.scale


class Tied(nn.Module):
    """The same weight twice."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.last(torch.relu(self.b(torch.relu(self.a(torch.relu(self.first(x)))))))


MODELS = {
    "residual": (Residual, IMAGE),
    "flatten": (Flatten, IMAGE),
    "concatenation": (Dense, IMAGE),
    "heads": (Attention, TOKENS),
    "tied": (Tied, TOKENS),
    "grouped": (lambda: Chain(nn.Conv2d(8, 12, 3, padding=1, groups=2), out=12), IMAGE),
    "whole groups": (lambda: Chain(nn.Conv2d(8, 16, 3, padding=1, groups=4), out=16), IMAGE),
    "depthwise": (lambda: Chain(nn.Conv2d(8, 8, 3, padding=1, groups=8)), IMAGE),
    "transposed": (lambda: Chain(nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2), out=12), IMAGE),
    "group norm": (lambda: Chain(nn.GroupNorm(4, 8)), IMAGE),
    "batch norm without affine": (lambda: Chain(nn.BatchNorm2d(8, affine=False)), IMAGE),
    "prelu": (lambda: Chain(nn.PReLU(8)), IMAGE),
    "weight norm": (lambda: Chain(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))), IMAGE),
    "spectral norm": (lambda: Chain(nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))), IMAGE),
    "unsaved buffer": (lambda: Chain(Scaled()), IMAGE),
    "resnet18": (lambda: build("tv:resnet18", 64), PICTURE),
    "mobilenet_v2": (lambda: build("tv:mobilenet_v2", 64), PICTURE),
    "densenet121": (lambda: build("tv:densenet121", 64), PICTURE),
    "vit": (lambda: build("vit_tiny_patch16_224", 64), PICTURE),
    "swin": (lambda: build("swin-small", 64), PICTURE),
}


def dense(name, seed=0):
    torch.manual_seed(seed)
    return scramble(MODELS[name][0](), seed)


def thin(name, share=0.5):
    model = dense(name)
    coupling = couple(model, MODELS[name][1][:1])
    return resize.compact(model, coupling, random_keep(coupling, share))


def state(model):
    return dict([*model.named_parameters(), *model.named_buffers()])


def numbers(model):
    """All plain numbers among the attributes of all modules."""
    return {
        (name, key): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | tuple)
    }


def same(a, b):
    a_state, b_state = state(a), state(b)
    return (
        a_state.keys() == b_state.keys()
        and all(torch.equal(a_state[k], b_state[k]) and a_state[k].dtype == b_state[k].dtype for k in a_state)
        and numbers(a) == numbers(b)
        and vars(a).get("regrow_thin") == vars(b).get("regrow_thin")
    )


@torch.no_grad()
def outputs(model, x):
    return model.eval()(x)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact(tmp_path, name):
    model = thin(name)
    fresh = dense(name, seed=1)
    assert numbers(model) != numbers(fresh) or name == "prelu"
    assert not same(model, fresh)
    parameters = list(fresh.parameters())
    buffers = list(fresh.buffers())
    regrow.save(model, tmp_path / "m")
    assert regrow.load(fresh, tmp_path / "m") is fresh
    assert same(fresh, model)
    assert all(a is b for a, b in zip(fresh.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(fresh.buffers(), buffers, strict=True))
    assert torch.equal(outputs(fresh, MODELS[name][1]), outputs(model, MODELS[name][1]))
    again = copy.deepcopy(fresh)  # and into a model that is already thin
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    assert same(regrow.load(again, tmp_path / "m"), model)


def test_the_manifest_has_the_widths(tmp_path):
    model = Residual()
    coupling = couple(model, IMAGE)
    resize.compact(model, coupling, {"conv1": torch.arange(12) < 5})
    assert model.regrow_thin == {
        "conv1": {"out_channels": 5}, "bn1": {"num_features": 5}, "conv2": {"in_channels": 5},
    }  # fmt: skip
    regrow.save(model, tmp_path / "m")
    assert storage.read_manifest(tmp_path / "m")["thin"] == model.regrow_thin
    assert regrow.load(Residual(), tmp_path / "m").conv1.out_channels == 5
    regrow.save(Residual(), tmp_path / "dense")
    assert "thin" not in storage.read_manifest(tmp_path / "dense")


def test_tuples_and_forced_groups(tmp_path):
    model = scramble(Attention())
    coupling = couple(model, TOKENS, force=["embed"])
    resize.compact(model, coupling, {"embed": torch.arange(10) < 6})
    assert model.regrow_thin["norm"] == {"normalized_shape": (6,)}
    regrow.save(model, tmp_path / "m")
    fresh = regrow.load(Attention(), tmp_path / "m")
    assert same(fresh, model)
    assert fresh.norm.normalized_shape == (6,)


def test_tied_stays_tied(tmp_path):
    model = thin("tied")
    assert model.a.weight.shape[0] < 8
    regrow.save(model, tmp_path / "m")
    fresh = regrow.load(dense("tied", seed=1), tmp_path / "m")
    assert fresh.b.weight is fresh.a.weight
    assert (fresh.b.out_features, fresh.b.in_features) == fresh.b.weight.shape
    shared = Tied()  # two parameters, one memory
    shared.b.weight = nn.Parameter(shared.a.weight.data)
    regrow.load(shared, tmp_path / "m")
    assert shared.a.weight.data_ptr() == shared.b.weight.data_ptr()
    assert torch.equal(shared.b.weight, model.b.weight)


def test_memory_format_dtype_and_gradients(tmp_path):
    model = thin("residual").to(torch.bfloat16)
    regrow.save(model, tmp_path / "m")
    with pytest.raises(UserError, match=r"is bfloat16 in .*, but float32 in the model"):
        regrow.load(Residual(), tmp_path / "m")
    fresh = Residual().to(torch.bfloat16).to(memory_format=torch.channels_last)
    fresh(IMAGE.bfloat16()).sum().backward()
    regrow.load(fresh, tmp_path / "m")
    assert same(fresh, model)
    assert fresh.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert not fresh.conv2.weight.is_contiguous()
    assert fresh.conv1.weight.grad is None
    assert fresh.head.bias.grad is not None
    optimizer = torch.optim.AdamW(fresh.parameters())
    fresh(IMAGE.bfloat16()).sum().backward()
    optimizer.step()


def test_sparse_and_thin(tmp_path):
    model = thin("resnet18")
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.masked_fill_(torch.rand(p.shape) < 0.9, 0)
    regrow.save(model, tmp_path / "m")
    assert storage.read_manifest(tmp_path / "m")["tensors"]["conv1.weight"]["encoding"] == "bitmask"
    assert same(regrow.load(dense("resnet18", seed=1), tmp_path / "m"), model)


def test_in_a_fresh_process(tmp_path):
    model = thin("residual")
    regrow.save(model, tmp_path / "m")
    torch.save((IMAGE, outputs(model, IMAGE)), tmp_path / "expected")
    code = (
        "import sys, torch, regrow; from channel_models import Residual\n"
        "torch.set_num_threads(1)\n"
        "x, y = torch.load(sys.argv[2], weights_only=True)\n"
        "model = regrow.load(Residual(), sys.argv[1]).eval()\n"
        "assert torch.equal(model(x), y)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m"), str(tmp_path / "expected")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], timeout=600)


class TestNotes:
    def test_compacting_twice(self, tmp_path):
        model = scramble(Residual())
        resize.compact(model, couple(model, IMAGE), {"conv1": torch.arange(12) < 9, "stem": torch.arange(8) < 6})
        resize.compact(model, couple(model, IMAGE), {"conv1": torch.arange(9) > 3})
        assert model.regrow_thin["conv1"] == {"in_channels": 6, "out_channels": 5}
        assert model.regrow_thin["stem"] == {"out_channels": 6}
        regrow.save(model, tmp_path / "m")
        assert same(regrow.load(Residual(), tmp_path / "m"), model)

    def test_shrinking_and_expanding(self, tmp_path):
        model = scramble(Residual())
        coupling = couple(model, IMAGE)
        remainder = resize.shrink(model, coupling, {"conv1": torch.arange(12) < 5})
        first = copy.deepcopy(model.regrow_thin)
        resize.note(model, remainder)
        assert model.regrow_thin == first
        regrow.save(model, tmp_path / "thin")
        assert same(regrow.load(Residual(), tmp_path / "thin"), model)
        resize.expand(model, remainder)
        assert not hasattr(model, "regrow_thin")
        regrow.save(model, tmp_path / "wide")
        assert same(regrow.load(Residual(), tmp_path / "wide"), model)

    def test_expanding_to_an_earlier_note(self):
        model = scramble(Residual())
        resize.compact(model, couple(model, IMAGE), {"conv1": torch.arange(12) < 9})
        before = copy.deepcopy(model.regrow_thin)
        remainder = resize.shrink(model, couple(model, IMAGE), {"conv1": torch.arange(9) < 4})
        assert model.regrow_thin["conv1"] == {"out_channels": 4}
        resize.expand(model, remainder)
        assert model.regrow_thin == before

    def test_nothing_removed_is_not_noted(self):
        model = Residual()
        resize.compact(model, couple(model, IMAGE), {"conv1": torch.ones(12, dtype=torch.bool)})
        assert not hasattr(model, "regrow_thin")

    def test_copies_and_pickles(self):
        model = thin("residual")
        assert copy.deepcopy(model).regrow_thin == model.regrow_thin
        assert pickle.loads(pickle.dumps(model)).regrow_thin == model.regrow_thin
        kinds = {type(value) for attributes in model.regrow_thin.values() for value in attributes.values()}
        assert kinds == {int}

    def test_thin_inside_of_another_model(self, tmp_path):
        whole, fresh = nn.Sequential(thin("residual"), nn.Linear(5, 2)), nn.Sequential(Residual(), nn.Linear(5, 2))
        regrow.save(whole, tmp_path / "m")
        regrow.load(fresh, tmp_path / "m")
        assert fresh.regrow_thin["0.conv1"] == whole[0].regrow_thin["conv1"]
        assert torch.equal(outputs(fresh, IMAGE), outputs(whole, IMAGE))

    def test_a_module_replaced_afterwards(self, tmp_path):
        model = thin("flatten")
        width = model.fc1.out_features
        model.fc2 = nn.Sequential(nn.Linear(width, 4))
        regrow.save(model, tmp_path / "m")
        fresh = Flatten()
        fresh.fc2 = nn.Sequential(nn.Linear(width, 4))
        assert torch.equal(outputs(regrow.load(fresh, tmp_path / "m"), IMAGE), outputs(model, IMAGE))

    def test_an_unsaved_buffer_is_saved_if_it_was_cut(self, tmp_path):
        model = thin("unsaved buffer")
        regrow.save(model, tmp_path / "m")
        kept = model.middle.scale.shape[0]
        assert storage.read_manifest(tmp_path / "m")["thin"]["middle"] == {"scale": [kept, 1, 1]}
        fresh = regrow.load(dense("unsaved buffer", seed=1), tmp_path / "m")
        assert torch.equal(fresh.middle.scale, model.middle.scale)


def note(module, attribute, value):
    return edit(lambda m: m["thin"].setdefault(module, {}).update({attribute: value}))


def shape(name, value):
    return edit(lambda m: m["tensors"][name].update(shape=value))


def deep(directory):
    (directory / storage.MANIFEST).write_text('{"thin":' * 100_000)


def other_thin():
    model = Residual()
    return resize.compact(model, couple(model, IMAGE), {"stem": torch.arange(8) < 6})


def narrower():
    model = Residual()
    model.conv1, model.bn1, model.conv2 = nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3)
    return model


NO_NUMBER = "which is no number in the model: it was saved from another model"
NOT_THINNER = "which is no thinner form of the"
LAYER = "does not go with the widths of its module there"
NOT_POSITIVE = "which is no positive number"
REFUSED = {
    "unknown module": (note("conv9", "out_channels", 5), "a module 'conv9', which the model does not have"),
    "unknown attribute": (note("conv1", "width", 5), f"'conv1.width', {NO_NUMBER}"),
    "method": (note("", "forward", 5), f"'forward', {NO_NUMBER}"),
    "class": (note("", "__class__", 5), f"'__class__', {NO_NUMBER}"),
    "dictionary": (note("", "__dict__", 5), f"'__dict__', {NO_NUMBER}"),
    "bool in the model": (note("", "training", 1), f"'training', {NO_NUMBER}"),
    "module in the model": (note("", "conv1", 1), f"'conv1', {NO_NUMBER}"),
    "parameter in the model": (note("conv1", "weight", [5, 8, 3, 3]), f"'conv1.weight', {NO_NUMBER}"),
    "float in the model": (note("bn1", "eps", 1), f"'bn1.eps', {NO_NUMBER}"),
    "text in the model": (note("conv1", "padding_mode", 1), f"'conv1.padding_mode', {NO_NUMBER}"),
    "wider": (note("conv1", "out_channels", 13), rf"'conv1.out_channels' is 13 in .*, {NOT_THINNER} 12"),
    "huge": (note("conv1", "out_channels", 10**4000), rf"'conv1.out_channels' is 10+\.\.\. in .*, {NOT_THINNER} 12"),
    "negative": (note("conv1", "out_channels", -5), f"'conv1.out_channels' is -5, {NOT_POSITIVE}"),
    "zero": (note("conv1", "out_channels", 0), NOT_POSITIVE),
    "bool": (note("conv1", "out_channels", True), f"is True, {NOT_POSITIVE}"),
    "float": (note("conv1", "out_channels", 5.0), NOT_POSITIVE),
    "text": (note("conv1", "out_channels", "5"), NOT_POSITIVE),
    "null": (note("conv1", "out_channels", None), NOT_POSITIVE),
    "object": (note("conv1", "out_channels", {"a": 1}), NOT_POSITIVE),
    "no numbers": (note("conv1", "kernel_size", []), NOT_POSITIVE),
    "list of bools": (note("conv1", "kernel_size", [True, True]), NOT_POSITIVE),
    "list for a number": (note("conv1", "out_channels", [5]), NOT_THINNER),
    "number for a tuple": (note("conv1", "kernel_size", 3), NOT_THINNER),
    "longer tuple": (note("conv1", "kernel_size", [3, 3, 3]), NOT_THINNER),
    "list of modules": (edit(lambda m: m.update(thin=[1])), "does not describe the widths"),
    "text for a module": (edit(lambda m: m["thin"].update(conv1="out_channels")), "does not describe the widths"),
    "true for a note": (edit(lambda m: m.update(thin=True)), "does not describe the widths"),
    "no note": (edit(lambda m: m.pop("thin")), r"'stem.weight' has shape \[6, 3, 3, 3\] in .*, but \[8, 3, 3, 3\] in"),
    "entry missing": (edit(lambda m: m["thin"].pop("conv1")), rf"'conv1.weight' .* {LAYER}"),
    "attribute too small": (note("conv1", "out_channels", 1), rf"'conv1.weight' .* {LAYER}"),
    "tensor larger": (shape("conv1.weight", [13, 8, 3, 3]), rf"shape \[13, 8, 3, 3\] in .*, {NOT_THINNER}"),
    "tensor huge": (shape("conv1.weight", [2**62, 8, 3, 3]), NOT_THINNER),
    "tensor empty": (shape("conv1.weight", [0, 8, 3, 3]), NOT_THINNER),
    "tensor of another rank": (shape("conv1.weight", [5, 8]), NOT_THINNER),
    "tensor with a bool": (shape("conv1.weight", [True, 8, 3, 3]), r"shape\.0 should be a valid integer"),
    "tensor elsewhere": (shape("head.weight", [4, 4]), rf"'head.weight' .* {LAYER}"),
    "tensor missing": (edit(lambda m: m["tensors"].pop("bn1.weight")), "has no tensor 'bn1.weight'"),
    "file truncated": (truncate(storage.WEIGHTS), "is damaged or no safetensors file"),
    "manifest truncated": (truncate(storage.MANIFEST), "is not valid JSON"),
    "manifest without an end": (deep, "is not valid JSON"),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "m"
    model = Residual()
    keep = {"conv1": torch.arange(12) < 5, "stem": torch.arange(8) < 6}
    regrow.save(resize.compact(model, couple(model, IMAGE), keep), directory)
    return directory


def refused(model, directory, message):
    before = copy.deepcopy(model)
    for p in before.parameters():
        p.grad = None
    with pytest.raises(UserError, match=message) as error:
        regrow.load(model, directory)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert same(model, before)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_files_are_refused(tmp_path, saved, name):
    import shutil

    damage, message = REFUSED[name]
    shutil.copytree(saved, tmp_path / "m")
    damage(tmp_path / "m")
    refused(Residual(), tmp_path / "m", message)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (other_thin, "the model is already thin, in another way than"),
        (narrower, "no thinner form of the"),
        (Flatten, "which the model does not have: it was saved from another model"),
    ],
)
def test_models_that_do_not_fit_are_refused(saved, model, message):
    refused(model(), saved, message)


def test_a_thin_model_takes_no_dense_file(tmp_path):
    regrow.save(Residual(), tmp_path / "m")
    refused(other_thin(), tmp_path / "m", r"has shape \[8, 3, 3, 3\] in .*, but \[6, 3, 3, 3\] in the model")
