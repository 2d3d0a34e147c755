"""Attacks on run directories and comparisons: damaged or edited files, from which a report and a table are made."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from pathlib import Path

import yaml

from attack import changed, garble
from regrow import UserError
from regrow.report.page import render
from regrow.report.runs import read
from regrow.study.printed import print_table
from regrow.training import rundir
from regrow.training.results import result_of
from regrow.training.statistics import summarise

FILES = ("results.json", "structure.json", "metrics.jsonl", "recipe.yaml")


def damaged(directory: Path, random_: random.Random) -> str:
    """Does something to one file of a run; returns what."""
    path = directory / random_.choice([*FILES, "results.json"])
    how = random_.choice(["bytes", "edit", "edit", "edit", "edit", "nested", "foreign"])
    if how == "bytes":
        path.write_bytes(garble(path.read_bytes(), random_))
    elif how == "nested":
        path.write_text(random_.choice(["[" * 100_000, '{"runs":' * 50_000, "[" * 900 + "]" * 900, "- " * 5000 + "x"]))
    elif how == "foreign":
        foreign = ["", "{}", "[]", "null", "3", '"x"', '{"runs": []}', '{"runs": [{}]}', "\x00", "\ufeff{}"]
        path.write_text(random_.choice(foreign))
    elif path.suffix == ".yaml":
        value, how = changed(yaml.safe_load(path.read_text()), random_)
        path.write_text(json.dumps(value))
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        number = random_.randrange(len(lines))
        value, how = changed(json.loads(lines[number]), random_)
        path.write_text("\n".join([*lines[:number], json.dumps(value), *lines[number + 1 :]]) + "\n")
    else:
        value, how = changed(json.loads(path.read_text()), random_)
        path.write_text(json.dumps(value))
    return f"{path.name}: {how}"


def used(comparison: Path) -> None:
    """What is made of a comparison: the report about it, about one of its runs, and the table on the terminal."""
    runs = sorted((comparison / "runs").iterdir())
    for place in (comparison, runs[0]):
        try:
            render(read([place]))
        except UserError as error:
            _sentence(error)
    records = []
    for run in runs:
        try:
            records.append(result_of(run / rundir.RESULTS))
        except UserError as error:
            _sentence(error)
    with contextlib.redirect_stdout(io.StringIO()):
        print_table(summarise(records))


def _sentence(said: object) -> None:
    if "\n" in str(said) or len(str(said)) > 700:
        raise ValueError(f"no sentence: {str(said)[:200]!r}")


def attack(count: int, comparison: Path, place: Path) -> list[str]:
    """Damages so many copies of a comparison, as ``write_compare`` of the report's tests makes one."""
    wrong = []
    for i in range(count):
        random_ = random.Random(i)
        copied = place / "damaged"
        shutil.copytree(comparison, copied)
        hit = random_.choice([copied, *sorted((copied / "runs").iterdir())])
        for name in FILES:
            if not (hit / name).exists():
                shutil.copy(next(iter(sorted((copied / "runs").iterdir()))) / name, hit / name)
        what = damaged(hit, random_)
        try:
            used(copied)
        except Exception as error:
            wrong.append(f"{i} {hit.name}: {what}: {type(error).__name__}: {error!s:.200}")
        shutil.rmtree(copied)
    return wrong
