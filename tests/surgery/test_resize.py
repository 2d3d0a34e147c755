"""Surgery: thin and wide again without losing a bit, with the optimizer along."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from channel_models import Attention, Chain, Dense, Flatten, Residual, scramble
from masked_and_thin import deviation, random_keep
from regrow.coupling.couple import couple
from regrow.errors import UserError
from regrow.surgery import resize
from work import Work

IMAGE = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0))

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "sgd without momentum": lambda p: torch.optim.SGD(p, lr=0.05),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}
EXACT = ["sgd", "sgd without momentum", "adam", "adamw", "rmsprop"]
MODELS = {
    "residual": (Residual, IMAGE),
    "flatten": (Flatten, IMAGE),
    "concatenation": (Dense, IMAGE),
    "heads": (Attention, TOKENS),
    "grouped": (lambda: Chain(nn.Conv2d(8, 12, 3, padding=1, groups=2), out=12), IMAGE),
    "depthwise": (lambda: Chain(nn.Conv2d(8, 8, 3, padding=1, groups=8)), IMAGE),
}


def make(name, optimizer="sgd"):
    torch.manual_seed(0)
    kind, inputs = MODELS[name]
    model = scramble(kind())
    return model, couple(model, inputs), OPTIMIZERS[optimizer](model.parameters()), inputs


def step(model, optimizer, inputs, masks=None):
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    if masks:
        resize.zero(model, *masks, gradients=True)
    optimizer.step()
    if masks:
        resize.zero(model, *masks)


def everything(model, optimizer):
    """All numbers of weights, gradients, buffers, optimizer state and attributes, as plain lists and tensors."""
    numbers = {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}
    numbers |= {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            numbers[f"{name}:{key}"] = value.clone() if isinstance(value, torch.Tensor) else torch.tensor(value or 0)
    attributes = {
        (name, key): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (int, tuple))
    }
    return numbers, attributes


def equal(a, b):
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_the_identity(name, optimizer):
    model, coupling, opt, inputs = make(name, optimizer)
    for _ in range(3):
        step(model, opt, inputs)
    keep = random_keep(coupling, 0.5)
    identities = [id(p) for p in model.parameters()]
    wide = everything(model, opt)
    remainder = resize.shrink(model, coupling, keep, opt)
    thin = everything(model, opt)
    assert any(thin[0][k].shape != wide[0][k].shape for k in wide[0])
    resize.expand(model, remainder, opt)
    assert equal(everything(model, opt), wide)
    remainder = resize.shrink(model, coupling, keep, opt)
    assert equal(everything(model, opt), thin)
    assert [id(p) for p in model.parameters()] == identities
    resize.expand(model, remainder, opt)
    assert equal(everything(model, opt), wide)


@pytest.mark.parametrize("optimizer", EXACT)
@pytest.mark.parametrize("name", MODELS)
def test_thin_training_is_masked_training(name, optimizer):
    model, coupling, opt, inputs = make(name, optimizer)
    model.double()  # where a gradient is zero but for rounding, Adam would make steps of the rounding
    inputs = inputs.double()
    step(model, opt, inputs)
    keep = random_keep(coupling, 0.5, seed=1)
    other = copy.deepcopy(model)
    other_opt = OPTIMIZERS[optimizer](other.parameters())
    other_opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    resize.zero(other, coupling, keep)

    remainder = resize.shrink(model, coupling, keep, opt)
    for _ in range(10):
        step(model, opt, inputs)
        step(other, other_opt, inputs, (coupling, keep))
    resize.expand(model, remainder, opt)
    kept = coupling.kept(keep)
    for (label, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        for dim, mask in kept.get(label, {}).items():
            a, b = (t.index_select(dim, mask.nonzero().reshape(-1)) for t in (a, b))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    step(model, opt, inputs)  # and on at full width


def test_what_was_removed_waits_bit_for_bit():
    model, coupling, opt, inputs = make("residual", "adamw")
    step(model, opt, inputs)
    keep = {"conv1": torch.arange(12) < 5}
    before = everything(model, opt)[0]
    remainder = resize.shrink(model, coupling, keep, opt)
    for _ in range(3):
        step(model, opt, inputs)
    trained = everything(model, opt)[0]
    resize.expand(model, remainder, opt)
    after = everything(model, opt)[0]
    for key in ("conv1.weight", "conv1.weight:exp_avg", "conv1.weight:exp_avg_sq", "conv1.weight.grad"):
        assert torch.equal(after[key][5:], before[key][5:])
        assert torch.equal(after[key][:5], trained[key])
    assert torch.equal(after["conv2.weight"][:, 5:], before["conv2.weight"][:, 5:])
    assert torch.equal(after["bn1.running_var"], torch.cat([trained["bn1.running_var"], before["bn1.running_var"][5:]]))
    assert after["conv1.weight:step"] == 4


def test_state_that_starts_while_thin_is_zero_elsewhere():
    model, coupling, opt, inputs = make("residual")
    keep = {"conv1": torch.arange(12) < 5}
    remainder = resize.shrink(model, coupling, keep, opt)
    step(model, opt, inputs)
    momentum = opt.state[model.conv1.weight]["momentum_buffer"].clone()
    resize.expand(model, remainder, opt)
    whole = opt.state[model.conv1.weight]["momentum_buffer"]
    assert torch.equal(whole[:5], momentum)
    assert whole.shape == (12, 8, 3, 3)
    assert not whole[5:].any()
    assert not model.conv1.weight.grad[5:].any()
    step(model, opt, inputs)


def test_several_optimizers():
    model, coupling, _, inputs = make("residual")
    convolutions = [p for p in model.parameters() if p.dim() == 4]
    others = [p for p in model.parameters() if p.dim() != 4]
    opts = [torch.optim.SGD(convolutions, lr=0.05, momentum=0.9), torch.optim.AdamW(others, lr=1e-2)]
    both = SimpleNamespace(state={**opts[0].state, **opts[1].state})

    def train():
        model(inputs).square().mean().backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
        both.state = {**opts[0].state, **opts[1].state}

    train()
    wide = everything(model, both)
    remainder = resize.shrink(model, coupling, random_keep(coupling, 0.5), opts)
    for p in model.parameters():
        for value in both.state[p].values():
            assert value.shape in (p.shape, ())
    resize.expand(model, remainder, opts)
    assert equal(everything(model, both), wide)
    resize.shrink(model, coupling, random_keep(coupling, 0.5), opts)
    train()


def test_wrapped_optimizers():
    model, coupling, _, inputs = make("residual")
    timm = pytest.importorskip("timm.optim")
    opt = timm.Lookahead(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), k=1)
    step(model, opt, inputs)
    remainder = resize.shrink(model, coupling, {"conv1": torch.arange(12) < 5}, SimpleNamespace(optimizer=opt))
    state = opt._base_optimizer.state[model.conv1.weight]
    assert {key: value.shape[0] for key, value in state.items()} == {"momentum_buffer": 5, "lookahead_slow_buff": 5}
    step(model, opt, inputs)
    resize.expand(model, remainder, SimpleNamespace(optimizer=opt))
    step(model, opt, inputs)


def test_compacting_takes_the_optimizer_along():
    model, coupling, opt, inputs = make("residual", "adamw")
    step(model, opt, inputs)
    before = opt.state[model.conv1.weight]["exp_avg"].clone()
    assert resize.compact(model, coupling, {"conv1": torch.arange(12) < 5}, opt) is model
    assert torch.equal(opt.state[model.conv1.weight]["exp_avg"], before[:5])
    step(model, opt, inputs)


def test_attributes():
    model, coupling, opt, _ = make("heads")
    remainder = resize.shrink(model, coupling, {"qkv": torch.tensor([True, False, True, False])}, opt)
    assert (model.num_heads, model.attn_dim, model.head_dim) == (2, 6, 3)
    assert (model.qkv.out_features, model.proj.in_features, model.proj.out_features) == (18, 6, 10)
    assert model(TOKENS).shape == (4, 5)
    resize.expand(model, remainder, opt)
    assert (model.num_heads, model.attn_dim, model.qkv.out_features) == (4, 12, 36)


class TiedTwice(nn.Module):
    """A weight in two layers, another in an embedding and a layer."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
        self.last, self.logits = nn.Linear(8, 6), nn.Linear(6, 11, bias=False)
        self.b.weight = self.a.weight
        self.logits.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens)
        return self.logits(self.last(torch.relu(self.a(x)) + torch.relu(self.b(x))))


def test_attributes_of_tied_layers():
    torch.manual_seed(0)
    model, tokens = TiedTwice(), torch.arange(11)[None]
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    coupling = couple(model, tokens)
    keep = {name: torch.arange(coupling[name].size) < 5 for name in ("last", "a")}
    assert deviation(model, coupling, keep, (tokens,)) < 1e-5
    before = everything(model, opt)
    remainder = resize.shrink(model, coupling, keep, opt)
    assert model.words.embedding_dim == model.logits.in_features == model.last.out_features == 5
    for layer in (model.a, model.b, model.last, model.logits):
        assert layer.weight.shape == (layer.out_features, layer.in_features)
    assert resize.noted(model)["b"] == {"in_features": 5, "out_features": 5}
    resize.expand(model, remainder, opt)
    assert equal(everything(model, opt), before)


class ByEinsum(nn.Module):
    """Weights of layers that are never called."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(6, 8), nn.Linear(8, 12), nn.BatchNorm1d(12)
        self.mixed, self.last = nn.Conv1d(12, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        x = torch.einsum("btc,dc->btd", self.a(x).relu(), self.b.weight) * self.norm.weight
        return self.last(torch.einsum("btc,dc->btd", x, self.mixed.weight[..., 0]))


def test_attributes_of_layers_whose_weights_are_used_without_them():
    torch.manual_seed(0)
    model = ByEinsum()
    coupling = couple(model, TOKENS)
    resize.compact(model, coupling, {group.id: torch.arange(group.size) < 3 for group in coupling.groups})
    assert (model.a.out_features, model.b.in_features, model.last.in_features) == (3, 3, 3)
    assert model.b.weight.shape == (model.b.out_features, 3)
    assert model.b.bias.shape == (model.b.out_features,)  # which nothing uses
    assert model.norm.weight.shape == model.norm.bias.shape == (model.norm.num_features,)
    assert model.mixed.weight.shape == (model.mixed.out_channels, model.mixed.in_channels, 1)


def test_depthwise_attributes():
    model, coupling, _, _ = make("depthwise")
    resize.compact(model, coupling, {"first": torch.arange(8) < 3})
    conv = model.middle
    assert (conv.in_channels, conv.out_channels, conv.groups, conv.weight.shape[0]) == (3, 3, 3, 3)


def test_channels_last_stays():
    model, coupling, opt, inputs = make("residual")
    model.to(memory_format=torch.channels_last)
    remainder = resize.shrink(model, coupling, {"conv1": torch.arange(12) < 5}, opt)
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    step(model, opt, inputs)
    resize.expand(model, remainder, opt)
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_hooks_of_parameters_still_run():
    model, coupling, opt, inputs = make("residual")
    seen = []
    model.conv1.weight.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.grad.shape)))
    model.conv1.weight.register_hook(lambda g: seen.append(tuple(g.shape)))
    step(model, opt, inputs)
    remainder = resize.shrink(model, coupling, {"conv1": torch.arange(12) < 5}, opt)
    step(model, opt, inputs)
    resize.expand(model, remainder, opt)
    step(model, opt, inputs)
    assert seen == [(12, 8, 3, 3)] * 2 + [(5, 8, 3, 3)] * 2 + [(12, 8, 3, 3)] * 2


def test_nothing_to_remove():
    model, coupling, opt, inputs = make("residual")
    step(model, opt, inputs)
    before = everything(model, opt)
    remainder = resize.shrink(model, coupling, {"conv1": torch.ones(12, dtype=torch.bool)}, opt)
    assert not remainder.index
    assert equal(everything(model, opt), before)


class TestRefusals:
    def test_twice(self):
        model, coupling, opt, _ = make("residual")
        keep = {"conv1": torch.arange(12) < 5}
        remainder = resize.shrink(model, coupling, keep, opt)
        with pytest.raises(UserError, match="expand the model first"):
            resize.shrink(model, coupling, keep, opt)
        resize.expand(model, remainder, opt)
        with pytest.raises(UserError, match="expand a thin model once"):
            resize.expand(model, remainder, opt)

    def test_another_model(self):
        _, coupling, _, _ = make("residual")
        model = Flatten()
        with pytest.raises(UserError, match="of another model"):
            resize.shrink(model, coupling, {"conv1": torch.arange(12) < 5})

    def test_state_of_unknown_shape(self):
        model, coupling, opt, inputs = make("residual")
        step(model, opt, inputs)
        opt.state[model.conv1.weight]["sketch"] = torch.zeros(7)
        before = everything(model, opt)
        with pytest.raises(UserError, match=r"'sketch' of 'conv1.weight' has the shape \(7,\)"):
            resize.shrink(model, coupling, {"conv1": torch.arange(12) < 5}, opt)
        assert equal(everything(model, opt), before)

    def test_state_in_two_optimizers(self):
        model, coupling, opt, inputs = make("residual")
        other = torch.optim.AdamW(model.parameters())
        step(model, opt, inputs)
        step(model, other, inputs)
        before = everything(model, opt)
        with pytest.raises(UserError, match=r"two optimizers keep state of '[a-z0-9.]+'; let one of them train it"):
            resize.shrink(model, coupling, {"conv1": torch.arange(12) < 5}, [opt, other])
        assert equal(everything(model, opt), before)

    def test_empty_group(self):
        model, coupling, _, _ = make("residual")
        with pytest.raises(UserError, match="keep at least one"):
            resize.shrink(model, coupling, {"conv1": torch.zeros(12, dtype=torch.bool)})


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_shrinking_and_expanding_write_every_number_a_few_times(optimizer):
    """So that it takes a part of a step even on small images (with it or without it: benchmarks/thin_training.py)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.Conv2d(128, 256, 3), nn.ReLU(), nn.Conv2d(256, 64, 3))
    images = torch.randn(2, 3, 8, 8)
    opt = OPTIMIZERS[optimizer](model.parameters())
    coupling = couple(model, images)
    model(images).square().mean().backward()
    opt.step()
    numbers = sum(2 * p.numel() + sum(t.numel() for t in opt.state[p].values() if t is not None and t.dim())
                  for p in model.parameters())  # fmt: skip
    keep = random_keep(coupling, 0.5)
    with Work() as shrinking:
        remainder = resize.shrink(model, coupling, keep, opt)
    with Work() as expanding:
        resize.expand(model, remainder, opt)
    assert max(shrinking.written, expanding.written) < 4 * numbers
    assert max(shrinking.operations, expanding.operations) < 500
