"""What a model is called with, in every form, and what comes out of it, however deep."""

import collections
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import regrow
from regrow.coupling.couple import couple
from regrow.errors import UserError
from regrow.inputs import Inputs, output_tensors
from regrow.tracing.flops import count_flops

X, Y = torch.randn(2, 4), torch.randn(2, 4)


class Keywords(nn.Module):
    """Takes its images by a keyword only, and perhaps labels."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, *, pixels, shift=None):
        return self.net(pixels if shift is None else pixels + shift)


class Mixed(Keywords):
    """One positional argument, one keyword."""

    def forward(self, pixels, *, shift):
        return self.net(pixels + shift)


class Batch(Keywords):
    """A dict as its one argument."""

    def forward(self, batch):
        return self.net(batch["pixels"])


class Lists(Keywords):
    """A list of tensors of any number."""

    def forward(self, batch):
        return self.net(torch.cat(batch))


FORMS = {
    "tensor": (lambda: Keywords().net, X),
    "tuple": (lambda: Batch(), ({"pixels": X},)),
    "keywords": (Keywords, {"pixels": X}),
    "user dict": (Keywords, collections.UserDict(pixels=X, shift=Y)),
    "both": (Mixed, ((X,), {"shift": Y})),
    "list": (Lists, [X, Y]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_serves_everything(form):
    build, example = FORMS[form]
    model = build()
    assert count_flops(model, example).total > 0
    assert len(couple(model, example).groups) == 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pattern = regrow.Channels(params=0.6, round_to=1, thin=False)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=pattern, method=regrow.OneShot(), total_steps=3, example_inputs=example
    )
    Inputs.of(example)(model).sum().backward()
    optimizer.step()
    (width,) = sparsifier.widths().values()
    assert width[0] < width[1] == 16
    assert sparsifier.training_cost(example)["total"] < 1


@pytest.mark.parametrize(
    ("build", "example", "said"),
    [
        (lambda: Keywords().net, [X, torch.zeros(2)], r"of a loader's \[inputs, labels\] pass what the model takes"),
        (Keywords, X, "keyword arguments as a dict"),
        (Batch, {"pixels": X}, r"if the model takes the dict itself, pass \(batch,\)"),
        (Mixed, (X, Y), "a tuple was taken as positional arguments"),
    ],
)
def test_a_form_that_does_not_fit_says_the_other_one(build, example, said):
    model = build()
    for call in (lambda: couple(model, example), lambda: count_flops(model, example)):
        with pytest.raises(UserError, match=said):
            call()


@pytest.mark.parametrize("kind", ["DataLoader", "TensorDataset", "Subset"])
def test_where_batches_come_from_is_none(kind):
    data = torch.utils.data.TensorDataset(torch.zeros(2, 3))
    given = {"DataLoader": torch.utils.data.DataLoader(data), "TensorDataset": data,
             "Subset": torch.utils.data.Subset(data, [0])}[kind]  # fmt: skip
    with pytest.raises(UserError, match=rf"example_inputs is a {kind}; pass .* next\(iter\(loader\)\)\[0\]"):
        Inputs.of(given)


@pytest.mark.parametrize("empty", [None, (), [], {}])
def test_empty(empty):
    with pytest.raises(UserError, match="example_inputs is empty"):
        Inputs.of(empty)


@pytest.mark.parametrize(
    ("example", "batch"),
    [
        (torch.ones(3, 2), 3),
        ({"scale": 2, "x": torch.ones(5, 2)}, 5),
        (([torch.ones(3, 8, 8)] * 4,), 4),  # a list of images
        ([torch.ones(2, 5), torch.ones(2, 6)], 2),  # a list of inputs
        ((7,), 1),
    ],
)
def test_batch(example, batch):
    assert Inputs.of(example).batch == batch


@pytest.mark.parametrize(
    ("example", "shapes"),
    [
        (torch.ones(3, 2), [(1, 2)]),
        ({"x": torch.ones(5, 2), "mask": torch.ones(5, 7), "places": torch.ones(7)}, [(1, 2), (1, 7), (7,)]),
        (([torch.ones(3, 8, 8)] * 4, [{"boxes": torch.ones(9, 4)}] * 4), [(3, 8, 8), (9, 4)]),
        ([torch.ones(2, 5), torch.ones(2, 6)], [(1, 5), (1, 6)]),
        (((torch.ones(2, 5),), {"deep": {"y": [torch.ones(2, 3), 1.0]}}), [(1, 5), (1, 3)]),
    ],
)
def test_the_first_example(example, shapes):
    first = Inputs.of(example).first()
    assert [tuple(t.shape) for t in first.tensors] == shapes
    assert first.batch == 1


class Slots:
    __slots__ = ("first", "rest")

    def __init__(self, *tensors):
        self.first, self.rest = tensors[0], list(tensors[1:])


@dataclass
class Deep:
    inner: object
    note: str = "text"


class Pair(NamedTuple):
    a: object
    b: object


def test_output_tensors_at_any_depth_once():
    a, b, c, d, e = (torch.full((1,), float(i)) for i in range(5))
    cyclic = Deep(None)
    cyclic.inner = {"self": cyclic, "deep": Deep([Slots(b, c), Pair(d, (None, 3, a))])}
    mapping = collections.UserDict(e=e)
    assert [float(t) for t in output_tensors([a, cyclic, mapping, "text", nn.Linear(2, 2)])] == [0, 1, 2, 3, 4]


def test_arrays_of_numpy_are_refused() -> None:
    with pytest.raises(UserError, match=r"example_inputs is an array of NumPy; pass a tensor: torch\.from_numpy"):
        Inputs.of(np.zeros((2, 3)))
