"""Never silently wrong: what no rule knows costs sparsity, by name; thin models compute what masked ones do."""

import copy
import random
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import regrow
import strange
from channel_models import Chain
from regrow.coupling.couple import Group, Slice, couple
from regrow.coupling.seen import Seen, difference
from regrow.coupling.trial import Trial, about_half, few
from regrow.errors import UserError
from regrow.inputs import Inputs, output_tensors, two_examples

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def loss_of(out):
    return torch.stack([t.square().mean() for t in output_tensors(out)]).sum()


def trained(model, thin):
    """Attached, trained through two whole updates, and its outputs as the masked model computes them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Channels(params=0.85, round_to=1, thin=thin),
        method=regrow.IEE(h=2, j=1, q=1), criterion="taylor", total_steps=12, example_inputs=X,
    )  # fmt: skip
    for _ in range(12):
        optimizer.zero_grad()
        loss_of(model(X)).backward()
        optimizer.step()
    sparsifier.finalize()
    return sparsifier


@pytest.mark.filterwarnings("ignore:.*updates fit")
@pytest.mark.parametrize("name", strange.NETWORKS)
def test_strange_networks_are_never_silently_wrong(name, tmp_path):
    torch.manual_seed(0)
    build = strange.NETWORKS[name]
    model = build().double()
    fresh = copy.deepcopy(model)
    coupling = couple(model, X)
    assert "first" in coupling.ids
    followed = any(part.name == "wide.weight" and part.dim == 0 for group in coupling.groups for part in group.slices)
    assert followed is ("wide.weight" not in coupling.dense)
    assert followed or coupling.dense["wide.weight"]  # with its reason
    assert name not in strange.FOLLOWED or followed, coupling.dense["wide.weight"]
    assert name not in strange.DENSE or not followed

    sparsifier = trained(model, thin=False)
    assert any(kept < whole for kept, whole in sparsifier.widths().values())
    with torch.no_grad():
        masked = [t.clone() for t in output_tensors(model.eval()(X))]
        thin = sparsifier.compact()
        assert difference(masked, list(output_tensors(thin(X)))) < 1e-9
    regrow.save(thin, tmp_path / "thin")
    loaded = regrow.load(fresh, tmp_path / "thin").eval()
    with torch.no_grad():
        assert difference(list(output_tensors(thin(X))), list(output_tensors(loaded(X)))) == 0


def test_enough_strange_networks():
    assert len(strange.NETWORKS) >= 30
    assert len(strange.DENSE) >= 20


@pytest.mark.parametrize("name", ["heads_under_another_name", "heads_in_the_batch", "split_by_an_attribute"])
def test_attributes_of_any_name_follow(name):
    model = strange.NETWORKS[name]().double()
    (attribute,) = {key for key, value in vars(model).items() if type(value) is int}
    before = getattr(model, attribute)
    coupling = couple(model, X)
    (group,) = [g for g in coupling.groups if any(s.name == "wide.weight" and s.dim == 0 for s in g.slices)]
    assert [(size.module, size.attribute) for size in group.sizes if size.module == ""] == [("", attribute)]
    sparsifier = trained(model, thin=True)
    kept, whole = sparsifier.widths()[group.id]
    assert getattr(model, attribute) == before * kept // whole


PADDED = {
    "constant": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "in front": lambda x: F.pad(x, (2, 0)),
    "cropped": lambda x: F.pad(x, (-1, -1, -1, -1)),
    "zeros": nn.ZeroPad2d(1),
    "even kernel": nn.Conv2d(8, 8, 4, padding="same"),
    "reflected": nn.ReflectionPad2d(1),
}


@pytest.mark.parametrize("padding", PADDED)
def test_padding_over_space_keeps_channels_free(padding):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
            self.middle = PADDED[padding]

        def forward(self, x):
            return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))

    coupling = couple(Padded(), X.float())
    assert "first" in coupling.ids
    assert "first.weight" not in coupling.dense


def test_padding_over_channels_is_joined_with_nothing_that_could_go():
    class Widened(Chain):
        def forward(self, x):
            y = self.first(x)
            return self.last(F.pad(y, (0, 0, 0, 0, 0, 4)))

    coupling = couple(Widened(nn.Identity(), out=12), X.float())
    assert {part.name for part in coupling["first"].slices} == {"first.weight", "first.bias", "last.weight"}
    assert {len(s.channel) - int((s.channel >= 0).sum()) for s in coupling["first"].slices} == {0, 4}


def frozen_layer(model):
    model[2].requires_grad_(False)


def frozen_norms(model):
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)


def frozen_beginning(model):
    model[:4].requires_grad_(False)


def frozen_but_the_head(model):
    model[:-1].requires_grad_(False)


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
@pytest.mark.parametrize("freeze", [frozen_layer, frozen_norms, frozen_beginning, frozen_but_the_head])
def test_frozen_parameters_lose_channels_like_others(freeze, criterion, thin):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).double()  # fmt: skip
    freeze(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Channels(params=0.5, round_to=1, thin=thin), method=regrow.OneShot(h=2),
        criterion=criterion, total_steps=6, example_inputs=X,
    )  # fmt: skip
    for _ in range(6):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    assert set(sparsifier.widths()) == {"0", "2", "5"}
    with sparsifier.full_width():
        masks = sparsifier.masks
        for name, value in before.items():  # nothing but zeros has been written
            assert torch.equal(model.get_parameter(name), value * masks[name])
    with torch.no_grad():
        masked = model.eval()(X)
        assert difference([masked], [sparsifier.compact()(X)]) < 1e-12


class TestMessages:
    """What stays dense is named where it matters, the largest first."""

    def test_nothing_can_go(self):
        model = nn.Sequential(nn.GRU(16, 64, batch_first=True))
        with pytest.raises(UserError, match=r"no channels .* can be removed: 0\.weight_hh_l0 and \d more, as"):
            regrow.Channels(params=0.5).bind(model, torch.zeros(2, 5, 16))

    def test_too_little_can_go(self):
        model = strange.NETWORKS["functional_group_norm"]()
        with pytest.raises(UserError, match=r"cannot be met.* \d+% of the parameters cannot lose outputs: wide"):
            regrow.Channels(params=0.1, round_to=1).bind(model, X.float())

    def test_all_can_go_but_not_so_far(self):
        with pytest.raises(UserError, match=r"or lower these$"):
            regrow.Channels(params=0.01, round_to=4).bind(Chain(nn.Conv2d(64, 64, 3), 64, 64), X.float())


class TestTrial:
    def test_the_model_stays_as_it_is(self):
        model = strange.NETWORKS["dropped_channels"]().double().train()
        before = copy.deepcopy(model.state_dict())
        random = torch.get_rng_state()
        couple(model, X)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert model.training
        assert torch.equal(torch.get_rng_state(), random)

    def test_a_branch_that_begins_at_zero_is_looked_into(self):
        class Gated(strange.Strange):
            def build(self):
                self.scale = nn.Parameter(torch.zeros(1))

            def special(self, x):
                return x + self.scale * x * x.shape[1] ** -0.5

        assert "wide.weight" in couple(Gated(), X.float()).dense

    def test_small_outputs_are_looked_at_closely(self):
        class Small(strange.Strange):
            def special(self, x):
                return x * x.shape[1] ** -0.5

            def end(self, x):
                return x * 1e-9

        assert "wide.weight" in couple(Small(), X.float()).dense

    @pytest.mark.parametrize("batch", [1, 2, 5])
    def test_of_any_batch(self, batch):
        for name in ("heads_in_the_batch_as_a_number", "group_norm_by_hand"):
            example = torch.randn(batch, 3, 8, 8)
            assert "wide.weight" in couple(strange.NETWORKS[name](), example).dense

    def test_half_precision(self):
        coupling = couple(strange.NETWORKS["functional_group_norm"]().bfloat16(), X.bfloat16())
        assert coupling.ids == ("first", "after")

    def test_training_mode_that_needs_more(self):
        class Loss(strange.Strange):
            def special(self, x):
                return x

            def forward(self, x, target=None):
                out = super().forward(x)
                return (out - target).square().mean() if self.training else out

        assert "NoneType" in couple(Loss(), X.float()).untrained
        assert couple(Loss(), (X.float(), torch.zeros(2, 4, 8, 8))).untrained == ""

    def test_failure(self):
        model = strange.NETWORKS["scaled_by_the_width"]()
        plain = couple(Chain(nn.Identity()), X.float())
        trial = Trial(Chain(nn.Identity()), Inputs.of(X.float()), float("inf"))
        assert trial.failure(plain.groups) is None
        group = couple(strange.NETWORKS["dropped_channels"](), X.float())["wide"]
        failure = Trial(model, Inputs.of(X.float()), float("inf")).failure([group])
        assert failure is not None
        assert failure.module is None
        assert "computes something else with fewer channels" in failure.reason

    def test_what_raises_is_looked_for_by_running_the_thin_model_alone(self):
        runs = []

        class Unpacks(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)) for _ in range(2))
                self.wide, self.after = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 3, 1)

            def forward(self, x):
                runs.append(self.training)
                one, other = self.wide(self.second(self.first(x))).split(4, 1)  # of fewer it makes one piece
                return self.after(one + other)

        coupling = couple(Unpacks(), X.float())
        assert coupling.ids == ("first.0", "first.1", "second.0", "second.1")
        assert "not enough values to unpack" in coupling.dense["wide.weight"]
        total, trial = len(runs), Trial(Unpacks(), Inputs.of(X.float()), float("inf"))
        parts = [Slice(name, 0, torch.arange(8)) for name in ("wide.weight", "wide.bias")]
        bad = Group("wide", 8, tuple(parts))
        failure = trial.failure([*coupling.groups, bad])
        assert failure is not None
        assert failure.raised == (about_half, 0)
        del runs[:]
        assert (trial.raises([bad], about_half, 0), len(runs)) == (True, 1)
        del runs[:]
        assert (trial.raises(coupling.groups, about_half, 0), len(runs)) == (False, 2)  # in both modes
        assert total < 40  # each of four that are not guilty takes two

    def test_about_half(self):
        groups = couple(strange.NETWORKS["dropped_channels"](), X.float()).groups
        for seed in range(20):
            for group, mask in zip(groups, about_half(groups, seed).values(), strict=True):
                assert group.size // 4 <= int((~mask).sum()) <= group.size // 2

    def test_few(self):
        groups = couple(strange.NETWORKS["dropped_channels"](), X.float()).groups
        assert {g.id: int(few(groups)[g.id].sum()) for g in groups} == {
            g.id: min(max(3, g.size // 10), g.size - 1) for g in groups
        }


ONLY_FEW = {
    "many doubled": lambda x: x * 2 if x.shape[1] > 12 else x,
    "few divided": lambda x: x / (1 + x.square().mean((2, 3), keepdim=True)) if x.shape[1] < 8 else x,
    "few scaled by their number": lambda x: x * max(1.0, 8 / x.shape[1]),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("what", ONLY_FEW)
def test_code_that_differs_only_for_few_channels_is_found(what, seed):
    torch.manual_seed(seed)

    class Narrowed(strange.Strange):
        def special(self, x):
            return ONLY_FEW[what](x)

    coupling = couple(Narrowed(), X.float())
    assert coupling.ids == ("first", "after")
    assert "computes something else with fewer channels" in coupling.dense["wide.weight"]


def test_difference():
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([1.0, -1.0])
    nan = torch.tensor([1.0, float("nan")])
    assert difference([a], [b]) == 0.5
    assert difference([a * 1e-12], [b * 1e-12]) == 0.5
    assert difference([nan], [nan]) == 0
    assert difference([torch.zeros(2)], [torch.zeros(2)]) == 0
    for x, y in (([a], [nan]), ([a], [a[:1]]), ([a], []), ([torch.zeros(2)], [a])):
        assert difference(x, y) == float("inf")


def test_modules_of_other_widths_are_left_out():
    a, b, out = torch.tensor([1.0, -2.0]), torch.tensor([1.0, -1.0]), torch.zeros(0)
    assert Seen([], [a, b]).difference(Seen([], [a[:1], b])) == 0
    assert Seen([], [a, b]).difference(Seen([], [a[:1], a])) == 1
    assert Seen([out], [a]).difference(Seen([out], [a[:1]])) == float("inf")  # nothing is left to compare
    assert Seen([b], [a]).difference(Seen([a], [a[:1]])) == 1


def test_what_says_little():
    a = torch.randn(3, 5)
    for out in ([], [torch.zeros(0, 4)], [a, a.argmax(1)], [a, a > 0], [a.sign()], [(torch.rand(40, 5) * 8).round()]):
        assert Seen(out, []).says_little
    for out in ([a], [a.mean()], [a[:1, :3].relu()]):
        assert not Seen(out, []).says_little


class TwoHeads(nn.Module):
    """A backbone with two heads, of which the second depends on the width in a way that cannot be followed."""

    def __init__(self, returned):
        super().__init__()
        self.first, self.after = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        self.classes, self.other = nn.Linear(16, 4), nn.Linear(32, 4)
        self.returned = returned

    def forward(self, x):
        y = torch.relu(self.first(x))
        mean = y.mean((2, 3))
        z = self.classes(torch.relu(self.after(y)).mean((2, 3)))
        return self.returned(z, self.other(mean * mean.shape[1] ** 0.5))


RETURNED = {
    "labels": lambda z, h: (z, h.argmax(1)),
    "a mask": lambda z, h: (z, h > 0.05),
    "complex": lambda z, h: (z, torch.complex(h, h)),
    "a list": lambda z, h: (z, h.tolist()),
    "an array": lambda z, h: (z, h.detach().numpy()),
    "an array of tensors": lambda z, h: (z, np.array([h, None], dtype=object)),
    "values of a dict": lambda z, h: {"z": z, "h": h}.values(),
    "a deque": lambda z, h: deque([z, h]),
    "signs": lambda z, h: h.sign() + 0 * z,
    "sparse": lambda z, h: (z, h.relu().to_sparse()),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_outputs_of_any_kind_are_compared(kind):
    torch.manual_seed(0)
    coupling = couple(TwoHeads(RETURNED[kind]).double(), X)
    assert coupling.ids == ("after",)
    assert "computes something else with fewer channels" in coupling.dense["first.weight"]
    assert coupling.dense["other.weight"]
    assert coupling.dense["classes.weight"]


@pytest.mark.parametrize("kind", ["generator", "set", "zip"])
def test_outputs_that_cannot_be_told_apart_are_refused(kind):
    returned = {"generator": lambda z, h: (t for t in (z, h)), "set": lambda z, h: {z, h}, "zip": zip}[kind]
    with pytest.raises(UserError, match=rf"it returns a {kind}, in which .* outputs=lambda out"):
        couple(TwoHeads(returned).double(), X)
    coupling = couple(TwoHeads(returned).double(), X, outputs=lambda out: next(iter(out)))
    assert "after" in coupling.ids


CHANCE = {
    "random, low": lambda: random.random() < 0.2,
    "random, high": lambda: random.random() > 0.9,
    "torch, low": lambda: torch.rand(()) < 0.2,
    "torch, high": lambda: torch.rand(()) > 0.8,
}


@pytest.mark.parametrize("branch", CHANCE)
def test_branches_taken_by_chance_are_tried(branch):
    class ByChance(strange.Strange):
        def special(self, x):
            return x * x.shape[1] ** 0.5 if self.training and CHANCE[branch]() else x

    torch.manual_seed(0)
    coupling = couple(ByChance(), X.float())
    assert "computes something else with fewer channels" in coupling.dense["wide.weight"]


@pytest.mark.filterwarnings("ignore:.*updates fit")
def test_layers_that_the_example_does_not_reach_are_named():
    class Tasks(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.heads = nn.Linear(8, 32), nn.ModuleList(nn.Linear(32, 4) for _ in range(3))

        def forward(self, x, task=0):
            return self.heads[task](torch.relu(self.body(x)))

    model = Tasks()
    with pytest.warns(UserWarning, match=r"does not use heads\.1\.weight \(and 1 more\): where that of other inputs"):
        regrow.Sparsifier(
            model, torch.optim.SGD(model.parameters(), lr=0.1), pattern=regrow.Channels(params=0.9, round_to=1),
            method="oneshot", total_steps=10, example_inputs=torch.randn(2, 8),
        )  # fmt: skip


def test_two_examples():
    x = torch.arange(12.0).view(1, 3, 4)
    (two,) = two_examples(Inputs.of(x), other=True).tensors
    assert torch.equal(two[0], x[0])
    assert torch.equal(two[1], x[0].roll(1, -1))
    given = {"x": torch.randn(5, 4), "mask": torch.ones(5, 3, dtype=torch.bool), "table": torch.randn(7, 7)}
    found = two_examples(Inputs.of(given), other=True).kwargs
    assert found["x"].shape == (2, 4)
    assert bool(found["mask"].all())
    assert torch.equal(found["table"], given["table"])
    constant = two_examples(Inputs.of(torch.zeros(2, 3, 4)), other=True).tensors[0]
    assert not torch.equal(constant[0], constant[1])
    images = [torch.randn(3, 8, 8)], [{"boxes": torch.ones(1, 4), "name": "a"}]
    pictures, targets = two_examples(Inputs.of(images), other=True).args
    assert len(pictures) == len(targets) == 2
    assert targets[1]["name"] == "a"
