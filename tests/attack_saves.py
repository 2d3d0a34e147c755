"""Attacks on saved models: files that are damaged or edited, kills while one is saved over another, racing readers."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attack import changed, crash_points, failing_at, flip, garble
from regrow import UserError, schema, storage
from regrow.coupling.couple import couple
from regrow.surgery import resize

Outcome = str | None  # what went wrong; None for nothing
IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Two widths, one of them held by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.head((x + self.conv2(torch.relu(self.bn1(self.conv1(x))))).mean((2, 3)))


def plain(seed: int = 0) -> nn.Module:
    """A model with every kind of entry: sparse, dense, tied, of whole numbers, without entries."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16))
    with torch.no_grad():
        model[0].weight.masked_fill_(torch.rand_like(model[0].weight) > 0.1, 0.0)
        model[1].running_mean.normal_()
    model[4].weight = model[3].weight
    return model


def thin(seed: int = 0) -> nn.Module:
    """A model that has lost channels."""
    torch.manual_seed(seed)
    model = Residual()
    return resize.compact(model, couple(model, IMAGE), {"conv1": torch.arange(12) < 5, "stem": torch.arange(8) < 6})


MODELS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "plain": (plain, plain), "thin": (thin, lambda seed=0: Residual()),
}  # fmt: skip


def content(model: nn.Module) -> dict[str, Any]:
    """Every bit and every width of a model."""
    state = {
        name: (t.dtype, tuple(t.shape), t.detach().contiguous().flatten().view(torch.uint8).tolist())
        for name, t in model.state_dict().items()
    }
    numbers = {
        name: {k: v for k, v in vars(m).items() if isinstance(v, int | float | tuple)}
        for name, m in model.named_modules()
    }
    return {"state": state, "numbers": numbers, "thin": resize.noted(model)}


def loaded(directory: Path, fresh: Callable[..., nn.Module], right: list[dict[str, Any]]) -> Outcome:
    """Loads it into a fresh model: either one of the right models comes out, or a UserError and no change."""
    model = fresh(seed=9)
    before = content(model)
    try:
        storage.load(model, directory)
    except UserError as error:
        if "\n" in str(error) or len(str(error)) > 700:
            return f"no sentence: {str(error)[:200]!r}"
        return None if content(model) == before else f"refused, but the model is changed: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None if content(model) in right else "another model was accepted"


def damaged(directory: Path, random_: random.Random) -> str:
    """Does something to a saved model; returns what."""
    kind = random_.choice(["bytes", "bytes", "manifest", "manifest", "resealed", "resealed", "file"])
    manifest = directory / storage.MANIFEST
    if kind == "bytes":
        path = directory / random_.choice([storage.MANIFEST, storage.WEIGHTS])
        path.write_bytes(garble(path.read_bytes(), random_))
        return f"bytes of {path.name}"
    if kind == "file":
        path = directory / random_.choice([storage.MANIFEST, storage.WEIGHTS])
        path.unlink()
        how = random_.choice(["missing", "empty", "directory", "foreign"])
        if how == "directory":
            path.mkdir()
        elif how != "missing":
            path.write_text("" if how == "empty" else '{"format": "regrow-latency", "version": 3}')
        return f"{path.name} {how}"
    value, what = changed(json.loads(manifest.read_text()), random_)
    text = json.dumps(value if kind == "manifest" else schema.seal(value))
    if random_.random() < 0.03:
        text, what = "[" * 100_000, "nested deeply"
    manifest.write_text(text)
    return f"{kind}: {what}"


def flipped(directory: Path, random_: random.Random) -> str:
    """One bit of the tensors or the manifest."""
    path = directory / random_.choice([storage.WEIGHTS, storage.WEIGHTS, storage.MANIFEST])
    path.write_bytes(flip(path.read_bytes(), random_))
    return f"a bit of {path.name}"


def attack(
    count: int, damage: Callable[[Path, random.Random], str], place: Path, must_refuse: bool = False
) -> list[str]:
    """Damages so many copies of saved models; returns what went wrong."""
    wrong = []
    for name, (make, fresh) in MODELS.items():
        model = make()
        storage.save(model, place / name, extra={"accuracy": 0.5})
        right = [content(model)]
        for i in range(count // 2 + (count % 2 if name == "plain" else 0)):
            random_ = random.Random(f"{name} {i}")
            shutil.copytree(place / name, place / "damaged")
            what = damage(place / "damaged", random_)
            outcome = loaded(place / "damaged", fresh, [] if must_refuse else right)
            shutil.rmtree(place / "damaged")
            if outcome is not None:
                wrong.append(f"{name} {i}: {what}: {outcome}")
    return wrong


def crashes(place: Path) -> tuple[int, list[str]]:
    """Kills and errors at each operation of saving over an earlier save, and of a first save; what went wrong."""
    wrong, tried = [], 0
    for name, (make, fresh) in MODELS.items():
        old, new = make(seed=1), make(seed=2)
        for first in (False, True):
            home = place / f"{name}-{first}"
            home.mkdir()
            if not first:
                storage.save(old, home / "m")
            shutil.copytree(home, place / "start")
            points = crash_points(partial(storage.save, new, home / "m"), home, place / f"points-{name}-{first}")
            right = [content(new)] if first else [content(old), content(new)]
            for i, (operation, left) in enumerate(points):
                tried += 2
                said = None if first and not (left / "m").exists() else loaded(left / "m", fresh, right)
                if said is None and not first:  # nothing refused here: one of the two is there
                    said = _loads(left / "m", fresh)
                wrong += [] if said is None else [f"{name}: killed before {operation} {i}: {said}"]
                storage.save(new, left / "m")  # goes on from there
                said = loaded(left / "m", fresh, [content(new)])
                if said is not None or files(left / "m") != [storage.MANIFEST, storage.WEIGHTS]:
                    wrong.append(
                        f"{name}: saved again after a kill before {operation} {i}: {said}, {files(left / 'm')}"
                    )
            more, failed = _errors(place / "start", place / "again", new, fresh, right, first)
            tried, wrong = tried + more, wrong + [f"{name}: {said}" for said in failed]
            shutil.rmtree(place / "start")
    return tried, wrong


def _loads(directory: Path, fresh: Callable[..., nn.Module]) -> Outcome:
    try:
        storage.load(fresh(seed=9), directory)
    except UserError as error:
        return f"no model is left: {error}"
    return None


def _errors(
    start: Path, home: Path, new: nn.Module, fresh: Callable[..., nn.Module], right: list[dict[str, Any]], first: bool
) -> tuple[int, list[str]]:
    wrong, number = [], 0
    while True:
        shutil.copytree(start, home)
        failing = failing_at(number, OSError(28, "No space left on device"))
        try:
            with failing:
                storage.save(new, home / "m")
        except UserError:
            pass
        except Exception as error:
            wrong.append(f"an error in operation {number}: {type(error).__name__}: {error}")
        if not (first and not (home / "m").exists()):
            said = loaded(home / "m", fresh, right) or _loads(home / "m", fresh)
            wrong += [] if said is None else [f"an error in operation {number}: {said}"]
        shutil.rmtree(home)
        number += 1
        if failing.done < number:
            return number - 1, wrong


def files(directory: Path) -> list[str]:
    """Names of what is in a directory."""
    return sorted(path.name for path in directory.iterdir())


WRITER = """
import sys, torch
from torch import nn
from regrow import storage
models = []
for seed in (0, 1):
    models.append(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
    for p in models[-1].parameters(): nn.init.constant_(p, seed + 1.0)
for i in range(int(sys.argv[2])):
    storage.save(models[i % 2], sys.argv[1], extra={"number": i})
"""


def races(saves: int, readers: int, place: Path) -> tuple[int, list[str]]:
    """Readers load while another process saves two models by turns: each load gives all of one of them."""
    wrong: list[str] = []
    counts = [0] * readers
    subprocess.run([sys.executable, "-c", WRITER, str(place / "m"), "1"], check=True)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(place / "m"), str(saves)])

    def read(number: int) -> None:
        while writer.poll() is None:
            model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
            try:
                storage.load(model, place / "m")
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")
                continue
            values = {v.item() for p in model.parameters() for v in (p.min(), p.max())}
            if values not in ({1.0}, {2.0}):
                wrong.append(f"a mixture: {sorted(values)}")
            counts[number] += 1

    threads = [threading.Thread(target=read, args=(i,)) for i in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if writer.wait() != 0:
        wrong.append("the writer failed")
    return sum(counts), wrong
