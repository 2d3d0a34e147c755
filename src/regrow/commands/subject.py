"""The model that a command is about, and the images that it takes: the options that say so, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from regrow.commands.words import MODEL, Parser, shape_of, whole
from regrow.errors import UserError, thing_of

if TYPE_CHECKING:
    from torch import nn


def add_model(command: Parser) -> None:
    """Has a command take a model."""
    command.add_argument("model", metavar="MODEL", help=MODEL)


def add_images(command: Parser) -> None:
    """Has it take the size of the model's images, and of its output."""
    command.add_argument(
        "--data-shape", metavar="C,H,W", help="shape of an image (default: what the model is made for)"
    )
    command.add_argument(
        "--classes", type=whole, metavar="N", help="number of classes (default: 10, or 1000 for 224 pixels)"
    )


def shape_in(args: argparse.Namespace) -> tuple[int, ...] | None:
    """The shape of an image, where it was given.

    Raises:
        UserError: it is none.
    """
    return shape_of(args.data_shape) if args.data_shape else None


def model_of(
    spec: str, shape: Sequence[int] | None, classes: int | None, seed: int | None = None
) -> tuple[nn.Module, tuple[int, ...]]:
    """The model, and the shape of its images.

    Args:
        spec: name of the model
        shape: (channels, height, width) of an image; default: what the model is made for
        classes: outputs; default: 1000 for images of 200 pixels or more, else 10
        seed: of its weights; default: none of their own

    Raises:
        UserError: it cannot be built, or nobody knows its shape.
    """
    from regrow.zoo.models import build, default_shape

    check_classes(classes)
    shape = tuple(shape or default_shape(spec))
    return build(spec, classes or (1000 if shape[-1] >= 200 else 10), shape[0], seed=seed), shape


def taken(shape: Sequence[int]) -> str:
    """What a model takes, in words."""
    of_text = thing_of(shape) == "text"
    return f"texts of {shape[0]} tokens" if of_text else f"images of {'×'.join(map(str, shape))}"


def check_classes(classes: int | None) -> None:
    """Refuses what is no number of classes.

    Raises:
        UserError: saying so.
    """
    if classes is not None and classes < 1:
        raise UserError(f"--classes must be at least 1, not {classes}")
