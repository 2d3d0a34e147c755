from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine import network
from regrow import Channels, Weights
from regrow.errors import UserError
from regrow.patterns.layers import EXCLUDED, FIRST, NOT_INCLUDED


class NotCopied:
    def __deepcopy__(self, memo: object) -> None:
        raise RuntimeError("not this")


def test_convolutions_and_linear_layers_but_no_norm_or_bias() -> None:
    assert list(Weights(0.9, "erk").parameters(network())) == ["0.weight", "3.weight", "7.weight"]


def test_uniform_keeps_the_first_layer_dense_but_not_the_only_one() -> None:
    assert list(Weights(0.9).parameters(network())) == ["3.weight", "7.weight"]
    assert list(Weights(0.9).parameters(nn.Linear(4, 4))) == ["weight"]
    assert list(Weights(0.9, include=["0", "7"]).parameters(network())) == ["0.weight", "7.weight"]
    assert list(Weights(0.9, exclude=["0"]).parameters(network())) == ["3.weight", "7.weight"]


def test_every_kind_of_layer() -> None:
    model = nn.ModuleDict(
        {
            "one": nn.Conv1d(2, 2, 3),
            "up": nn.ConvTranspose2d(2, 4, 3),
            "attention": nn.MultiheadAttention(8, 2),
            "split": nn.MultiheadAttention(8, 2, kdim=4, vdim=4),
            "embedding": nn.Embedding(5, 8),
            "lstm": nn.LSTM(4, 4),
        }
    )
    assert list(Weights(0.5, "erk").parameters(model)) == [
        "one.weight", "up.weight", "attention.in_proj_weight", "attention.out_proj.weight", "split.q_proj_weight",
        "split.k_proj_weight", "split.v_proj_weight", "split.out_proj.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0",
    ]  # fmt: skip
    named = Weights(0.5, include=["embedding", "lstm.weight_*"])
    assert list(named.parameters(model)) == ["embedding.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"]


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["a"], ["b.0.weight", "b.1.weight"]),
        (["b"], ["a.weight"]),
        (["b.*"], ["a.weight"]),
        (["*.1.weight"], ["a.weight", "b.0.weight"]),
        (["?"], None),
    ],
)
def test_exclude_by_name_module_or_pattern(names, left) -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))})
    pattern = Weights(0.5, "erk", exclude=names)
    if left is None:
        with pytest.raises(UserError, match="nothing is left"):
            pattern.parameters(model)
    else:
        assert list(pattern.parameters(model)) == left


def test_a_name_that_is_not_there_gets_a_hint() -> None:
    model = nn.ModuleDict({"layer1": nn.Linear(3, 3)})
    with pytest.raises(UserError, match="exclude names 'layr1', which the model does not have; did you mean 'layer1'"):
        Weights(0.5, exclude=["layr1"]).parameters(model)
    with pytest.raises(UserError, match="distribution names 'fc'"):
        Weights(0.5, {"fc": 0.1}).counts(model)


def test_counts() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 20))
    assert Weights(0.9, "er").counts(model) == {"0.weight": (12, 100), "1.weight": (18, 200)}
    assert Weights(0.9, {"0": 0.5}).counts(model) == {"0.weight": (50, 100), "1.weight": (20, 200)}


def test_names_do_not_carry_the_marks_of_wrappers() -> None:
    model = nn.Sequential(nn.Linear(3, 3), torch.compile(nn.Linear(3, 3), backend="eager"))
    assert list(Weights(0.5, "erk").parameters(torch.compile(model, backend="eager"))) == ["0.weight", "1.weight"]


def test_uniform_keeps_no_other_layer_dense_where_the_first_one_is_frozen() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    chosen = Weights(0.9).select(model)
    assert list(chosen.parameters) == ["3.weight", "7.weight"]
    assert chosen.dense == {"0.weight": "does not train (requires_grad=False)"}


def test_what_stays_dense_has_its_reason() -> None:
    chosen = Weights(0.9, exclude=["7"]).select(network())
    assert list(chosen.parameters) == ["3.weight"]
    assert chosen.dense == {"0.weight": FIRST, "7.weight": EXCLUDED}
    assert Weights(0.9, include=["7"]).select(network()).dense == {"0.weight": NOT_INCLUDED, "3.weight": NOT_INCLUDED}


@pytest.mark.parametrize("junk", ["a batch", torch.randn(2, 17), {"x": torch.randn(2, 1, 8, 8)}, [], object()])
def test_an_example_that_the_model_does_not_take_is_refused_as_channels_refuse_it(junk: Any) -> None:
    said = []
    for pattern in (Weights(0.9, "erk"), Channels(flops=0.5)):
        with pytest.raises(UserError) as caught:
            pattern.bind(network(), junk)
        said.append(str(caught.value))
    way_out = "; without example_inputs, matrices are found by layer, shape and name"
    assert said[0].endswith(way_out)
    if isinstance(junk, torch.Tensor):  # where kernels fail, they do so in words of the device's own
        for text in said:
            assert text.startswith("the model cannot be traced, as it does not run on the example input: ")
            assert "(pass several arguments as a tuple, keyword arguments as a dict, both as (args, kwargs))" in text
    else:
        assert said[0] == said[1] + way_out


def test_a_model_that_cannot_be_copied_leaves_a_note() -> None:
    model = network()
    model.kept = NotCopied()
    chosen = Weights(0.9, "erk").select(model, torch.randn(2, 1, 8, 8))
    assert list(chosen.parameters) == ["0.weight", "3.weight", "7.weight"]
    assert chosen.flops is None
    assert chosen.note == (
        "matrices were found by layer, shape and name, as the model cannot be traced, as it cannot be copied: not this"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((90,), r"sparsity is 90, .*; did you mean 0.9 \(90%\)\?"),
        ((99.5,), r"did you mean 0.995 \(99.5%\)"),
        ((-90,), r"the share of weights to remove$"),
        (("0.9",), "sparsity is '0.9'"),
        ((0.9, {"fc": 50}), r"gives 'fc' the density 50, .*; did you mean 0.5 \(50%\)"),
        ((0.9, {"fc": None}), r"distribution\['fc'\] is None, but must be a number"),
        ((0.9, 0.5), "distribution is 0.5, but must be a name"),
    ],
)
def test_shares_in_per_cent_and_other_kinds_of_values(options: tuple[Any, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Weights(*options)
