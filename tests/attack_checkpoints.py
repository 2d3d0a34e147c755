"""Attacks on checkpoints: damaged or edited ones of real runs, which are then resumed to their end."""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiny_recipe as tiny
from attack import VALUES, changed, crash_points, flip, garble, inside, places
from regrow import UserError, storage
from regrow.training import checkpoint, loop, rundir
from regrow.training.progress import Interrupted
from regrow.training.recipe import load

STEP = 6  # of 9, in an exploration
SHORT = ("--steps", "14", "--train.log_every", "4", "--train.eval_every", "0")
KINDS: dict[str, tuple[str, ...]] = {
    "iee, sgd": (),
    "rigl, adamw, ema": ("--method.name", "rigl", "--method.interval", "4", "--optimizer.name", "adamw",
                         "--optimizer.lr", "0.01", "--train.ema", "0.9"),
    "channels, rmsprop": (*tiny.CHANNELS, "--optimizer.name", "rmsprop", "--optimizer.lr", "0.01"),
    "schedule-free": ("--optimizer.name", "schedulefree-adamw", "--schedule.name", "constant"),
}  # fmt: skip


class Stopped:
    """A run that was stopped, its recipe, and what becomes of it."""

    def __init__(self, place: Path, words: tuple[str, ...]) -> None:
        self.recipe = load(tiny.write(place), [*SHORT, *words])
        self.out = place / "run"
        original = loop.Trainer._stop_wanted
        try:
            loop.Trainer._stop_wanted = lambda trainer, stop: trainer.run.step == STEP  # type: ignore[method-assign]
            loop.train(self.recipe, self.out, quiet=True)
        except Interrupted:
            pass
        finally:
            loop.Trainer._stop_wanted = original  # type: ignore[method-assign]
        self.state = torch.load(checkpoint.path_in(self.out), weights_only=True)
        self.bytes = checkpoint.path_in(self.out).read_bytes()
        self.right = self.resumed(place)

    def resumed(self, place: Path) -> list[Any]:
        """The outcome of going on in a copy of the directory."""
        copied = place / "resumed"
        shutil.copytree(self.out, copied)
        try:
            loop.train(self.recipe, copied, resume=True, quiet=True)
            results = json.loads((copied / "results.json").read_text())["runs"][0]
            weights = (copied / "model" / storage.WEIGHTS).read_bytes()
            return [weights, *(results[key] for key in ("accuracy", "density", "training_cost", "steps"))]
        finally:
            shutil.rmtree(copied)


def edited(state: dict[str, Any], random_: random.Random) -> tuple[Any, str]:
    """One change in a checkpoint: of any key, or of the numbers, shape or type of a tensor."""
    if random_.random() < 0.6:
        return changed(state, random_)
    state = copy.deepcopy(state)
    tensors = [path for path in places(state) if isinstance(inside(state, path), Tensor)]
    path = random_.choice(tensors)
    holder, key = inside(state, path[:-1]), path[-1]
    old = holder[key]
    value = random_.choice([v for v in VALUES if isinstance(v, int | float) and abs(v) < 1e38 and not math.isnan(v)])
    edits = {
        "filled": lambda: torch.full_like(old, float(value) if old.is_floating_point() else int(value) % 100),
        "negative": lambda: -old if old.dtype is not torch.bool else ~old,
        "double": lambda: old.double(), "whole": lambda: old.long(), "bytes": lambda: old.to(torch.uint8),
        "longer": lambda: torch.cat([old.flatten(), old.flatten()]), "flat": lambda: old.flatten(),
        "turned": lambda: old.t() if old.dim() == 2 else old.unsqueeze(0), "one": lambda: old.flatten()[:1],
        "empty": lambda: old.flatten()[:0], "nan": lambda: old.double() * float("nan"),
    }  # fmt: skip
    name = random_.choice(sorted(edits))
    holder[key] = edits[name]().clone()
    return state, f"{name} {'.'.join(map(str, path))}"


def damaged(run: Stopped, kind: str, random_: random.Random, spare: Sequence[str]) -> tuple[str, str]:
    """Damages the checkpoint of a run; returns how and what. "edited": by somebody who leaves the checksum alone;
    "sealed": who makes a new one; "old": who takes it out, as from before there were any."""
    path = checkpoint.path_in(run.out)
    how = random_.choice(["edited", "sealed", "sealed", "old", "bytes"]) if kind == "edited" else "flipped"
    what = how
    if how in ("flipped", "bytes"):
        path.write_bytes((flip if how == "flipped" else garble)(run.bytes, random_))
        return how, what
    spared = {key: run.state[key] for key in spare}
    state, what = edited({key: value for key, value in run.state.items() if key not in spare}, random_)
    state |= spared
    if how == "sealed":
        try:
            state[checkpoint.CHECKSUM] = checkpoint.checksum(state)
        except Exception:
            how = "edited"  # into something that no checksum can be made of
    elif how == "old" and state.get("version") == checkpoint.VERSION:
        state["version"] = 1
        for key in (checkpoint.CHECKSUM, "processes"):
            state.pop(key, None)
    torch.save(state, path)
    return how, what


def attack(count: int, kind: str, place: Path, spare: Sequence[str] = ()) -> list[str]:
    """Damages so many checkpoints, but for the keys to spare, and goes on from them."""
    wrong = []
    for number, (name, words) in enumerate(KINDS.items()):
        home = place / str(number)
        home.mkdir()
        run = Stopped(home, words)
        for i in range(number, count, len(KINDS)):
            how, what = damaged(run, kind, random.Random(f"{kind} {i}"), spare)
            try:
                found = run.resumed(home)
            except UserError as error:
                said = (
                    None if "\n" not in str(error) and len(str(error)) < 900 else f"no sentence: {str(error)[:300]!r}"
                )
            except Exception as error:
                said = f"{type(error).__name__}: {str(error)[:200]}"
            else:  # another valid value is a checkpoint of another run; damage is not
                said = None if found == run.right or how in ("sealed", "old") else "was accepted, with another result"
            if said is not None:
                wrong.append(f"{name} {i} {how}: {what}: {said}")
    return wrong


def kills(place: Path, every: int = 1) -> tuple[int, list[str]]:
    """Kills a run at each operation of the file system (or at each so manieth), errors at it, and goes on from what is
    left: to the same outcome."""
    recipe = load(tiny.write(place), [*SHORT, "--train.checkpoint_steps", "5"])

    def train(out: Path) -> list[Any]:
        loop.train(recipe, out, resume=True, quiet=True)
        weights = (out / "model" / storage.WEIGHTS).read_bytes()
        lines = [json.loads(line) for line in (out / rundir.METRICS).read_text().splitlines()]
        losses = [(line["step"], line.get("loss"), line.get("accuracy")) for line in lines]
        return [weights, losses, json.loads((out / rundir.RESULTS).read_text())["runs"][0]["accuracy"]]

    home, copies = place / "home", place / "copies"
    home.mkdir()
    points = crash_points(lambda: train(home / "run"), home, copies)
    right, wrong = train(home / "again"), []
    for number, (operation, left) in enumerate(points):
        if number % every == 0:
            try:
                said = None if train(left / "run") == right else "another outcome"
                if leftovers := [str(path) for path in (left / "run").rglob(".*") if path.name != ".lock"]:
                    said = f"left {leftovers}"
            except Exception as error:
                said = f"{type(error).__name__}: {error!s:.200}"
            wrong += [] if said is None else [f"killed before {operation} {number}: {said}"]
        shutil.rmtree(left)
    return (len(points) + every - 1) // every, wrong
