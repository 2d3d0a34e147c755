"""Whether a checkpoint fits a run: all that torch and the training loop would take on trust.

A schema cannot know what the state of an optimizer looks like, but a step can show it: one of a second optimizer, on
parameters of the same shapes, leaves the keys, shapes and types that a checkpoint must have too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.ema import SparseAverage
from regrow.errors import UserError
from regrow.optim_state import KINDS
from regrow.sparsifier import Sparsifier
from regrow.training.recipe import Recipe


class Resumable(Protocol):
    """What a checkpoint must fit: `regrow.training.run.Run`."""

    recipe: Recipe
    model: nn.Module
    optimizer: Optimizer
    sparsifier: Sparsifier
    ema: SparseAverage | None
    total_steps: int
    start_active: dict[str, int]
    start_widths: dict[str, int]


def check(run: Resumable, state: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that does not fit; to be called at full width.

    Raises:
        UserError: naming the first key that does not fit.
    """
    step = state["step"]
    if step > run.total_steps:
        raise UserError(f"it is at step {step}, but the run has only {run.total_steps}")
    if state["sparsifier"].get("step") != step:
        raise UserError(f"it is at step {step}, but its sparsifier at {state['sparsifier'].get('step')!r:.40}")
    _check_tensors("model", state["model"], run.model.state_dict())
    if (state["ema"] is None) != (run.ema is None):
        raise UserError("ema is there in only one of checkpoint and recipe")
    if run.ema is not None:
        _check_tensors("ema", state["ema"], run.ema.averaged.state_dict())
    for key, own in (("start_active", run.start_active), ("start_widths", run.start_widths)):
        if state.get(key, {}).keys() != own.keys():
            raise UserError(f"{key} has other names than the model")
    sizes = {name: mask.numel() for name, mask in run.sparsifier.masks.items()}
    sizes |= {group: size for group, (_, size) in run.sparsifier.widths().items()}
    for name, count in [*state["start_active"].items(), *state.get("start_widths", {}).items()]:
        if count > sizes.get(name, count):
            raise UserError(f"{name!r} starts with {count} of {sizes[name]}")
    _check_optimizer(run, state["optimizer"], step)


def check_processes(begun: int | None, here: int, device: torch.device, directory: Path) -> None:
    """Refuses to go on with another number of processes than before, which would mean batches of another size.

    Args:
        begun: processes that began the run; None where its checkpoint is too old to know.
        here: processes that would go on.
        device: of this one.
        directory: of the run.

    Raises:
        UserError: saying how to start the right number.
    """
    if begun is not None and begun != here:
        way = f"torchrun --nproc-per-node {begun} -m regrow" if begun > 1 else "regrow"
        if begun > 1 and device.type == "cpu":
            way = f"ACCELERATE_USE_CPU=true {way}"  # without it, Accelerate takes each process for the only one
        raise UserError(
            f"the run in {directory} was begun by {_processes(begun)}, and {_processes(here)} would train another "
            f"model: continue it with `{way} train --out {directory} --resume`, or start anew with another --out"
        )


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"


def groups(run: Resumable, saved: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The optimizer's groups to go on with: the options are those of the recipe; what steps change is saved."""
    own = run.optimizer.state_dict()["param_groups"]
    return [{**mine, **{k: theirs[k] for k in mine if k in theirs}} for mine, theirs in zip(own, saved, strict=True)]


def _check_tensors(what: str, saved: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
    if other := sorted(saved.keys() ^ own.keys()):
        raise UserError(f"{what}.{other[0]} is there in only one of checkpoint and model")
    for name, tensor in saved.items():
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype or tensor.layout != own[name].layout:
            raise UserError(f"{what}.{name} is {_form(tensor)}, but {_form(own[name])} in the model")


def _check_optimizer(run: Resumable, saved: Mapping[str, Any], step: int) -> None:
    before = run.optimizer.state_dict()["param_groups"]
    example = _example(run)
    after = example["param_groups"]
    if len(saved["param_groups"]) != len(before):
        raise UserError(f"the optimizer has {len(saved['param_groups'])} groups, but {len(before)} in the recipe")
    for number, (theirs, mine, later) in enumerate(zip(saved["param_groups"], before, after, strict=True)):
        if list(theirs.get("params", [])) != list(mine["params"]):
            raise UserError(f"optimizer.param_groups.{number} has other parameters than the model")
        for key in theirs.keys() & mine.keys() - {"params", "lr"}:
            if mine[key] != later[key] or key == "train_mode":
                _check_number(f"optimizer.param_groups.{number}.{key}", theirs[key], mine[key])
            elif type(theirs[key]) is not type(mine[key]) or theirs[key] != mine[key]:
                raise UserError(
                    f"optimizer.param_groups.{number}.{key} is {theirs[key]!r:.60}, but {mine[key]!r:.60} in the recipe"
                )
    for number, entry in saved["state"].items():
        if number not in example["state"]:
            raise UserError(f"optimizer.state.{number} is of no parameter")
        _check_entry(f"optimizer.state.{number}", entry, example["state"][number], step)


def _check_number(name: str, found: Any, least: Any) -> None:
    """Of what grows with the steps, from what it is at first."""
    good = type(found) is type(least) and math.isfinite(found) and (isinstance(least, bool) or found >= least)
    if not good:
        raise UserError(f"{name} is {found!r:.60}, which no step leaves there")


def _check_entry(name: str, entry: Mapping[str, Any], example: Mapping[str, Any], step: int) -> None:
    if other := sorted(entry.keys() ^ example.keys()):
        raise UserError(f"{name}.{other[0]} is there in only one of checkpoint and optimizer")
    for key, value in entry.items():
        mine = example[key]
        if type(value) is not type(mine) or (isinstance(mine, bool) and value != mine):
            raise UserError(f"{name}.{key} is {value!r:.60}, which no step leaves there")
        if isinstance(value, Tensor):
            if value.shape != mine.shape or value.dtype != mine.dtype or value.layout != mine.layout:
                raise UserError(f"{name}.{key} is {_form(value)}, but a step leaves {_form(mine)}")
            if KINDS.get(key) == "second" and bool((value < 0).any()):
                raise UserError(f"{name}.{key} is an average of squares, but less than zero")
        if key == "step" and not 0 <= float(value) <= step:
            raise UserError(f"{name}.step is {float(value):g} after {step} steps")


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _example(run: Resumable) -> dict[str, Any]:
    """The state of an optimizer of this kind after a step."""
    zeros = [(name, nn.Parameter(torch.zeros_like(p), p.requires_grad)) for name, p in run.model.named_parameters()]
    optimizer: Optimizer = run.recipe.optimizer.build(zeros)
    switch = getattr(optimizer, "train", None)
    if callable(switch):
        switch()
    for _, parameter in zeros:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer.state_dict()
