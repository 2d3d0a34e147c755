"""The coupling: groups of small models by hand, equality of masked and thin models for real ones."""

import copy
import random
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from channel_models import Attention, Chain, Dense, Flatten, Lambda, Residual, build, scramble
from masked_and_thin import deviation, random_keep
from regrow.coupling.couple import Group, Slice, couple
from regrow.coupling.resolve import components
from regrow.errors import UserError
from regrow.surgery import resize

IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def table(coupling, group):
    return {(part.name, part.dim): part.channel.tolist() for part in coupling[group].slices}


def sizes(coupling, group):
    return {(part.module, part.attribute): part.channel.tolist() for part in coupling[group].sizes}


def same(model, coupling, inputs, tolerance=1e-10):
    """Masked equals thin, in double precision, before and after a training step, for two random choices."""
    model, inputs = copy.deepcopy(model).double(), inputs.double()
    for seed, share in ((0, 0.5), (1, 0.8)):
        keep = random_keep(coupling, share, seed)
        assert deviation(model, coupling, keep, (inputs,)) < tolerance
        assert deviation(model, coupling, keep, (inputs,), steps=1) < tolerance
    return True


class TestByHand:
    def test_residual(self):
        coupling = couple(Residual(), IMAGE)
        eight, twelve = list(range(8)), list(range(12))
        assert coupling.ids == ("stem", "conv1")
        assert table(coupling, "stem") == {
            ("stem.weight", 0): eight, ("stem.bias", 0): eight, ("conv1.weight", 1): eight, ("conv2.weight", 0): eight,
            ("bn2.weight", 0): eight, ("bn2.bias", 0): eight, ("bn2.running_mean", 0): eight,
            ("bn2.running_var", 0): eight, ("head.weight", 1): eight,
        }  # fmt: skip
        assert table(coupling, "conv1") == {
            ("conv1.weight", 0): twelve, ("bn1.weight", 0): twelve, ("bn1.bias", 0): twelve,
            ("bn1.running_mean", 0): twelve, ("bn1.running_var", 0): twelve, ("conv2.weight", 1): twelve,
        }  # fmt: skip
        assert sizes(coupling, "conv1") == {
            ("conv1", "out_channels"): twelve, ("bn1", "num_features"): twelve, ("conv2", "in_channels"): twelve,
        }  # fmt: skip
        assert coupling.dense == {"head.weight": "it is the model's output", "head.bias": "it is the model's output"}

    def test_entries_and_widths(self):
        model = Residual()
        coupling = couple(model, IMAGE)
        shapes = {name: p.shape for name, p in model.named_parameters()}
        parameters = [s for s in coupling["conv1"].slices if s.name in shapes]
        entries = Group("g", 12, tuple(parameters)).entries(shapes)
        assert entries == 12 * 8 * 9 + 12 + 12 + 8 * 12 * 9
        keep = {"conv1": torch.arange(12) < 5}
        assert coupling.widths(keep) == {
            ("conv1", "out_channels", None): 7, ("bn1", "num_features", None): 7, ("conv2", "in_channels", None): 7,
        }  # fmt: skip

    def test_flatten_maps_many_indices_to_one_channel(self):
        coupling = couple(Flatten(), IMAGE)
        assert table(coupling, "conv")["fc1.weight", 1] == [c for c in range(6) for _ in range(16)]
        assert coupling["fc1"].size == 10

    def test_one_dimension_in_two_groups(self):
        coupling = couple(Dense(), IMAGE)
        assert table(coupling, "a")["last.weight", 1] == [0, 1, 2, 3, 4, -1, -1, -1, -1]
        assert table(coupling, "b")["last.weight", 1] == [-1, -1, -1, -1, -1, 0, 1, 2, 3]
        assert sizes(coupling, "b")["bn", "num_features"] == [-1, -1, -1, -1, -1, 0, 1, 2, 3]

    def test_depthwise(self):
        coupling = couple(Chain(nn.Conv2d(8, 8, 3, padding=1, groups=8)), IMAGE)
        assert coupling.ids == ("first",)
        assert table(coupling, "first")["middle.weight", 0] == list(range(8))
        assert {("middle", "groups"), ("middle", "in_channels"), ("middle", "out_channels")} <= set(
            sizes(coupling, "first")
        )

    def test_grouped_convolution_loses_whole_groups_where_they_are_many(self):
        coupling = couple(Chain(nn.Conv2d(8, 16, 3, padding=1, groups=4), out=16), IMAGE)
        assert table(coupling, "first")["first.weight", 0] == [0, 0, 1, 1, 2, 2, 3, 3]
        assert table(coupling, "first")["middle.weight", 0] == [g for g in range(4) for _ in range(4)]
        assert sizes(coupling, "first")["middle", "groups"] == [0, 1, 2, 3]

    def test_grouped_convolution_loses_positions_where_groups_are_wide(self):
        coupling = couple(Chain(nn.Conv2d(8, 12, 3, padding=1, groups=2), out=12), IMAGE)
        assert table(coupling, "first")["first.weight", 0] == [0, 1, 2, 3, 0, 1, 2, 3]
        assert table(coupling, "first")["middle.weight", 1] == [0, 1, 2, 3]
        assert table(coupling, "middle")["middle.weight", 0] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
        assert ("middle", "groups") not in sizes(coupling, "first")

    def test_heads(self):
        model = Attention()
        coupling = couple(model, torch.randn(2, 7, 6))
        assert coupling.ids == ("qkv",)
        heads = [h for h in range(4) for _ in range(3)]
        assert table(coupling, "qkv") == {
            ("qkv.weight", 0): heads * 3, ("qkv.bias", 0): heads * 3, ("proj.weight", 1): heads,
        }  # fmt: skip
        assert sizes(coupling, "qkv")["", "num_heads"] == [0, 1, 2, 3]
        assert sizes(coupling, "qkv")["", "attn_dim"] == heads
        assert "normalised together" in coupling.dense["embed.weight"]

    def test_components(self):
        rng = np.random.default_rng(0)
        for _ in range(50):
            n, m = int(rng.integers(1, 30)), int(rng.integers(0, 30))
            a, b = rng.integers(0, n, m), rng.integers(0, n, m)
            root = list(range(n))
            for x, y in zip(a.tolist(), b.tolist(), strict=True):
                low, high = sorted((root[x], root[y]))
                root = [low if r == high else r for r in root]
            assert components(n, a, b).tolist() == root


PIECES = {
    "transposed": (nn.ConvTranspose2d(8, 6, 2, stride=2), 6, 2),
    "transposed grouped, positions": (nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2), 12, 2),
    "transposed grouped, whole": (nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8), 8, 1),
    "depthwise with multiplier": (nn.Conv2d(8, 16, 3, padding=1, groups=8), 16, 1),
    "batch norm without affine": (nn.BatchNorm2d(8, affine=False), 8, 1),
    "instance norm": (nn.InstanceNorm2d(8, affine=True), 8, 1),
    "group norm": (nn.GroupNorm(4, 8), 8, 1),
    "prelu": (nn.PReLU(8), 8, 1),
    "dropout": (nn.Dropout2d(0.5), 8, 1),
    "sigmoid": (nn.Sigmoid(), 8, 1),
    "glu": (nn.GLU(dim=1), 4, 1),
    "pixel shuffle": (nn.PixelShuffle(2), 2, 1),
    "pixel unshuffle": (nn.PixelUnshuffle(2), 32, 1),
    "channel shuffle": (nn.ChannelShuffle(2), 8, 1),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)), 8, 2),
    "spectral norm": (nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1)), 8, 2),
    "upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), 8, 1),
    "pool": (nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2)), 8, 1),
    "pad": (nn.ReflectionPad2d(1), 8, 1),
    "flip": (Lambda(lambda x: x.flip(1)), 8, 1),
    "roll in space": (Lambda(lambda x: x.roll((1, 1), (2, 3))), 8, 1),
    "stack": (Lambda(lambda x: torch.stack([x, x], 2).flatten(1, 2)), 16, 1),
    "split": (Lambda(lambda x: torch.cat(x.chunk(4, 1)[::-1], 1)), 8, 1),
    "own softmax gate": (Lambda(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()), 8, 1),
    "channels last": (Lambda(lambda x: F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), 8, 1),
    "normalised over space": (Lambda(lambda x: F.normalize(x.flatten(2), dim=2).view_as(x)), 8, 1),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces(name):
    middle, out, groups = PIECES[name]
    torch.manual_seed(0)
    model = scramble(Chain(middle, out=out))
    coupling = couple(model, IMAGE[:1])
    assert len(coupling.groups) == groups, coupling.dense
    assert same(model, coupling, IMAGE)


KEEP_WIDTH = [name for name, (_, out, _) in PIECES.items() if out == 8 and name != "transposed grouped, whole"]


@pytest.mark.parametrize("seed", range(12))
def test_random_chains(seed):
    rng = random.Random(seed)
    names = [rng.choice(KEEP_WIDTH) for _ in range(3)]
    torch.manual_seed(seed)
    conv = [nn.Conv2d(8, 8, 3, padding=1, groups=rng.choice((1, 2, 4, 8))) for _ in range(2)]
    parts = [copy.deepcopy(PIECES[name][0]) for name in names]
    model = scramble(Chain(nn.Sequential(parts[0], conv[0], parts[1], conv[1], parts[2])), seed)
    images = torch.randn(2, 3, 16, 16)
    coupling = couple(model, images)
    assert coupling.groups or coupling.dense["first.weight"] == "all its channels can only go together", names
    assert same(model, coupling, images)


DENSE = {
    "layer norm": (Lambda(lambda x: F.layer_norm(x.movedim(1, 3), (8,)).movedim(3, 1)), "normalised together"),
    "one norm group": (nn.GroupNorm(1, 8), "normalised together"),
    "softmax": (nn.Softmax(dim=1), "reduced over"),
    "mean of channels": (Lambda(lambda x: x - x.mean(1, keepdim=True)), "reduced over"),
    "constant": (Lambda(lambda x: x * torch.arange(8.0)[:, None, None]), "fixed width"),
    "fixed cut": (Lambda(lambda x: torch.cat([x[:, :3], x[:, 3:]], 1)), "fixed place"),
    "fixed index": (Lambda(lambda x: x[:, torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])]), "fixed indices"),
    "product of activations": (Lambda(lambda x: (x.flatten(2) @ x.flatten(2).mT @ x.flatten(2)).view_as(x)), ""),
    "unknown operation": (Lambda(lambda x: torch.cdist(x.flatten(2), x.flatten(2)) @ torch.ones(8, 16)), "no rule"),
    "constant width": (Lambda(lambda x: x.reshape(-1, 8, 16).view(-1, 8, 4, 4)), "does not run with fewer channels"),
}  # fmt: skip


@pytest.mark.parametrize("name", DENSE)
def test_dense_with_a_named_reason(name):
    middle, reason = DENSE[name]
    model = Chain(middle)
    if name == "unknown operation":
        model.last = Lambda(lambda x: x)
    coupling = couple(model, IMAGE[:1])
    assert coupling.groups == ()
    assert reason in coupling.dense["first.weight"]


def test_float32_to_1e_5():
    torch.manual_seed(0)
    model = build("tv:resnet18", 64)
    images = torch.randn(2, 3, 64, 64)
    coupling = couple(model, images)
    assert deviation(model, coupling, random_keep(coupling, 0.5), (images,)) < 1e-5


class TestUntouched:
    def test_model_inputs_and_random_state(self):
        torch.manual_seed(0)
        model = Residual().train()
        model.bn2.eval()
        model(IMAGE).sum().backward()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        grads = {k: p.grad.clone() for k, p in model.named_parameters()}
        before = torch.get_rng_state(), random.getstate()
        hooks = [len(m._forward_hooks) for m in model.modules()]
        couple(model, IMAGE)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert all(torch.equal(p.grad, grads[k]) for k, p in model.named_parameters())
        assert model.training
        assert not model.bn2.training
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert [len(m._forward_hooks) for m in model.modules()] == hooks
        assert not any(hasattr(t, "_regrow_labels") for t in (*model.parameters(), *model.buffers(), IMAGE))

    def test_unused_parameters_are_named(self):
        model = Residual()
        model.spare = nn.Linear(3, 3)
        coupling = couple(model, IMAGE)
        assert coupling.dense["spare.weight"] == "the forward pass does not use it"

    def test_heads_that_only_training_uses(self):
        class Auxiliary(Residual):
            def __init__(self, fails):
                super().__init__()
                self.aux, self.fails = nn.Linear(8, 5), fails

            def forward(self, x):
                if self.training and self.fails:
                    raise RuntimeError("too small")
                y = self.aux(self.stem(x).mean((2, 3))) if self.training else 0
                return super().forward(x) + y

        assert ("aux.weight", 1) in table(couple(Auxiliary(False), IMAGE), "stem")
        assert (
            "training mode does not run on the example input (too small)"
            in couple(Auxiliary(True), IMAGE).dense["aux.weight"]
        )

    def test_meta_model(self):
        with torch.device("meta"):
            model = Residual()
        assert couple(model, torch.empty(1, 3, 4, 4, device="meta")).ids == ("stem", "conv1")


class TestUsers:
    def test_forbid(self):
        coupling = couple(Residual(), IMAGE, forbid=["conv2"])
        assert coupling.ids == ("conv1",)
        assert coupling.dense["stem.weight"] == "the user forbids it"
        assert couple(Residual(), IMAGE, forbid=["*conv1"]).ids == ("stem",)

    def test_force(self):
        model = scramble(Attention())
        tokens = torch.randn(2, 7, 6)
        coupling = couple(model, tokens, force=["embed"])
        assert coupling.ids == ("embed", "qkv")
        assert not coupling["embed"].exact
        assert coupling["qkv"].exact
        keep = {"embed": torch.arange(10) < 6}
        thin = resize.compact(copy.deepcopy(model), coupling, keep)
        assert thin.norm.normalized_shape == (6,)
        assert thin(tokens).shape == (2, 5)

    def test_impossible_force(self):
        with pytest.raises(UserError, match="'head' cannot be forced: it is the model's output"):
            couple(Residual(), IMAGE, force=["head"])

    def test_add(self):
        model = Residual()
        own = Group("mine", 12, couple(model, IMAGE)["conv1"].slices)
        coupling = couple(model, IMAGE, forbid=["conv1"], add=[own])
        assert coupling.ids == ("stem", "mine")
        with pytest.raises(UserError, match="already belongs to another group"):
            couple(model, IMAGE, add=[own])
        for part, said in (
            (Slice("nowhere", 0, torch.arange(3)), "is not there"),
            (Slice("head.bias", 0, torch.arange(3)), "needs 5 channel numbers"),
        ):
            with pytest.raises(UserError, match=said):
                couple(model, IMAGE, add=[Group("mine", 3, (part,))])

    def test_wrong_name(self):
        with pytest.raises(UserError, match="no parameter or module of the model is named 'conv3'"):
            couple(Residual(), IMAGE, forbid=["conv3"])

    def test_time_limit(self):
        class Slow(Residual):
            def forward(self, x):
                until = time.process_time() + 0.2
                while time.process_time() < until:
                    pass
                return super().forward(x)

        with pytest.raises(UserError, match=r"more than 0\.1 s of processor time"):
            couple(Slow(), IMAGE, time_limit=0.1)

    def test_model_that_does_not_run(self):
        with pytest.raises(UserError, match="does not run on the example input"):
            couple(Residual(), torch.randn(1, 4, 4, 4))

    def test_lazy_parameters(self):
        with pytest.raises(UserError, match="lazy"):
            couple(nn.Sequential(nn.LazyLinear(3)), torch.randn(1, 2))

    def test_masks(self):
        coupling = couple(Residual(), IMAGE)
        for keep, said in (
            ({"conv9": torch.ones(12, dtype=torch.bool)}, "no group 'conv9'; did you mean 'conv1'"),
            ({"conv1": torch.ones(11, dtype=torch.bool)}, "must be 12 bools"),
            ({"conv1": torch.ones(12)}, "must be 12 bools"),
            ({"conv1": torch.zeros(12, dtype=torch.bool)}, "lose all its channels"),
        ):
            with pytest.raises(UserError, match=said):
                coupling.kept(keep)
