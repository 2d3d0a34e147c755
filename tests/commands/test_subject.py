"""The model of a command and its images: the same options, and the same defaults, wherever they are taken."""

from __future__ import annotations

import argparse

import pytest
import torch

from regrow.commands import inspect, profile
from regrow.commands.subject import check_classes, model_of, shape_in
from regrow.commands.words import Parser
from regrow.errors import UserError


def test_commands_say_the_same_of_images() -> None:
    group = Parser(prog="regrow").add_subparsers(parser_class=Parser)
    said = []
    for command in (inspect.add(group), profile.add(group)):
        actions = [one for one in command._actions if one.dest in ("model", "data_shape", "classes")]
        said.append([(one.option_strings, one.metavar, one.help, one.type, one.default) for one in actions])
    assert len(said[0]) == 3
    assert said[0] == said[1]


def test_model_and_shape() -> None:
    assert shape_in(argparse.Namespace(data_shape="3x16x16")) == (3, 16, 16)
    assert shape_in(argparse.Namespace(data_shape=None)) is None
    model, shape = model_of("digits-cnn", None, None, seed=4)
    again, _ = model_of("digits-cnn", None, None, seed=4)
    assert shape == (1, 8, 8)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    model, shape = model_of("digits-cnn", [3, 224, 224], None)
    assert shape == (3, 224, 224)
    assert [p.shape[0] for p in model.parameters()][-1] == 1000
    assert [p.shape[0] for p in model_of("digits-cnn", (1, 8, 8), 7)[0].parameters()][-1] == 7


def test_no_classes_are_refused() -> None:
    check_classes(None)
    check_classes(1)
    with pytest.raises(UserError, match=r"^--classes must be at least 1, not 0$"):
        model_of("digits-cnn", None, 0)
