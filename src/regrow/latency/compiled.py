"""Runs whole models as `torch.compile` makes them."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from regrow.errors import UserError
from regrow.inputs import Inputs, first_line
from regrow.latency.eager import Eager, Work

_FORMS = 256  # of one model's code that are kept compiled: thin copies share it


class Compiled(Eager):
    """Times whole models as `torch.compile` makes them, in eval mode, on the CPU.

    Units are timed as PyTorch runs them eagerly: compiling each width of each would take hours. What compiling saves is
    in the whole models that a table is fitted to, so that it needs thin ones.
    """

    name = "compile"

    def whole(self, model: nn.Module, inputs: Inputs) -> Work:
        """One forward pass of a compiled model; it is compiled here.

        Raises:
            UserError: if it cannot be compiled.
        """
        return first_run(super().whole(compiled(model), inputs))


def compiled(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """A model as `torch.compile` makes it, in eval mode, when it is first run."""
    made = torch.compile(model.eval(), backend=backend, dynamic=False)
    return cast("nn.Module", made)


def first_run(work: Work) -> Work:
    """The same, after what is compiled in it has been.

    Raises:
        UserError: if it cannot be.
    """
    from torch._dynamo import config  # imports the compiler

    try:
        with config.patch(recompile_limit=_FORMS, accumulated_recompile_limit=_FORMS):
            work()
    except Exception as error:  # compilers raise whatever they like
        raise UserError(
            f"the model cannot be compiled: {first_line(error)}; --runtime eager (runtime='eager') takes any model"
        ) from error
    return work
