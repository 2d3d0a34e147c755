"""Latency of models that take several tensors, keywords or lists, in every form in which inputs are given."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fixed_latency
import regrow
from regrow.errors import UserError
from regrow.inputs import Inputs
from regrow.latency.measure import make_runtime, measure, verify
from regrow.latency.network import network_of
from regrow.profiling import profile


class Two(nn.Module):
    """Two images, each through a layer of its own; one may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(3, 16, 3, padding=1)
        self.mix = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 1.0) -> Tensor:
        z = self.a(x) if y is None else self.a(x) + scale * self.b(y)
        return self.head(torch.relu(self.mix(torch.relu(z))).mean((2, 3)))


class Words(nn.Module):
    """Token numbers and a mask, as encoders take them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        x = x + self.down(torch.relu(self.up(x)))
        keep = attention_mask[..., None].to(x.dtype)
        return {"logits": self.head((x * keep).sum(1) / keep.sum(1))}


class Listed(nn.Module):
    """A list of images of one size, as detectors take them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 3)

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        x = torch.relu(self.deep(torch.relu(self.conv(torch.stack(images)))))
        return list(self.head(x.mean((2, 3))))


X, Y = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IDS, MASK = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0)), torch.ones(2, 5)
CASES = {
    "two": (Two, (X, Y)),
    "one of two": (Two, X),
    "keywords": (Two, {"x": X, "y": Y}),
    "keywords in another order": (Two, {"y": Y, "x": X}),
    "both": (Two, ((X,), {"y": Y})),
    "a number": (Two, (X, Y, 0.5)),
    "words": (Words, {"input_ids": IDS, "attention_mask": MASK}),
    "words by place": (Words, (IDS, MASK)),
    "images": (Listed, [*X]),
}


def made(name):
    torch.manual_seed(0)
    kind, given = CASES[name]
    return kind(), given


@pytest.mark.parametrize("name", CASES)
def test_a_table_is_measured_and_checked(name):
    model, given = made(name)
    table, checks = profile(model, given, time_limit=0.3, check=1, progress=False)
    layers = {name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert {unit.name for unit in table.network.units} & layers == layers - ({"b"} if name == "one of two" else set())
    assert table.batch == 2
    assert all(0 < seconds < math.inf for pair in checks for seconds in pair)


@pytest.mark.parametrize("name", ["two", "keywords", "keywords in another order", "both"])
def test_every_form_of_a_call_has_the_same_units(name):
    model, given = made(name)
    assert network_of(model, given) == network_of(model, (X, Y))
    assert network_of(model, given) == network_of(model, Inputs.of(given).first())


@pytest.mark.parametrize("name", CASES)
def test_a_latency_budget_is_met(name, monkeypatch):
    monkeypatch.setattr("regrow.profiling.profile", fixed_latency.profile)
    model, given = made(name)
    dense = fixed_latency.table_of(model, given)
    sparsifier = regrow.Sparsifier(
        model, torch.optim.SGD(model.parameters(), 0.01), pattern=regrow.Channels(latency=0.6, round_to=2),
        method=regrow.Static(), criterion="magnitude", total_steps=10, example_inputs=given,
    )  # fmt: skip
    assert dense.predict(network_of(sparsifier.compact(), given)) <= 0.6 * dense.measured


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", [name for name in CASES if name != "images"])
def test_onnxruntime_is_fed_what_belongs_to_each_name(name):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, given = made(name)
    inputs = Inputs.of(given)
    out = make_runtime("onnxruntime", 2, 1).whole(model, inputs)()
    expected = inputs(model)
    expected = expected["logits"] if isinstance(expected, dict) else expected
    torch.testing.assert_close(torch.from_numpy(out[0]), expected.detach(), rtol=1e-4, atol=1e-5)


class Unused(nn.Module):
    """Never looks at its second tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor, unused: Tensor) -> Tensor:
        return self.head(x)


def test_onnxruntime_with_tensors_that_nobody_uses():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, inputs = Unused(), Inputs.of((torch.randn(2, 3), torch.randn(2, 4)))
    (out,) = make_runtime("onnxruntime", 2, 1).whole(model, inputs)()
    torch.testing.assert_close(torch.from_numpy(out), inputs(model).detach())


def test_a_batch_of_another_size_is_refused_in_every_form():
    model, given = made("keywords")
    table = measure(model, given, time_limit=0.1, progress=False)
    with pytest.raises(UserError, match="batches of 2, the example has 3"):
        verify(table, [model], {"x": torch.randn(3, 3, 8, 8), "y": torch.randn(3, 3, 8, 8)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X, Y[:, :2]), r"does not run on inputs of shapes \(2, 3, 8, 8\), \(2, 2, 8, 8\): "),
        ({"x": X, "z": Y}, "does not run on inputs of .*unexpected keyword argument 'z'.*dict was taken as keyword"),
        (("x", 3), "there is no tensor in the example"),
        ({"x": X[:0], "y": Y[:0]}, r"the example has the shapes \(0, 3, 8, 8\), \(0, 3, 8, 8\)"),
        ({}, "example_inputs is empty"),
    ],
)
def test_what_cannot_be_called_is_one_sentence(given, message):
    with pytest.raises(UserError, match=message) as caught:
        profile(Two(), given, progress=False)
    assert "\n" not in str(caught.value)
