"""The files in ``studies/``: each can be planned to its last variant, and the smallest can be begun."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

import fixed_latency
from regrow.commands.compare import selection_of
from regrow.study import planning
from regrow.study.grid import cells_of
from regrow.training import own
from regrow.training.loop import train
from regrow.training.recipe import load

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
LONG = ("imagenet-latency", "imagenet-mobilenet-latency")  # of which two variants are planned, as each attaches
# stands in for what is downloaded, or takes long to read
DATA = {"imagenet:imagenet": "generated:3x32x32:1000:200", "cifar10": "generated:3x32x32:10:512"}


def cells(path, *words):
    """What a study compares, and its grid."""
    recipe = load(path, words)
    chosen = selection_of(recipe)
    vary = chosen.vary
    if recipe.data.name in DATA:
        words = [*words, "--data.name", DATA[recipe.data.name], "--data.batch_size", "8", "--train.accumulate", "1"]
        if "pattern.latency" in vary:  # the fixed table is of another network: the same shares of another budget
            words += ["--pattern.latency", "null", "--pattern.flops", "0.5"]
            words += ["--pattern.solver", "grouped", "--pattern.round_to", "32"]  # and found soon
            vary = {"pattern.flops": vary["pattern.latency"]}
        recipe = load(path, words)
    return chosen, cells_of(recipe, own.labels(chosen.methods), vary, apart=chosen.match == "cost")


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=[pytest.mark.thorough] if p.stem in LONG else []) for p in STUDIES],
)
def test_a_study_can_be_planned(path, monkeypatch, tmp_path):
    monkeypatch.setattr("regrow.profiling.profile", fixed_latency.profile)
    chosen, grid = cells(path)
    number = len(grid)
    assert number == prod(len(values) for values in chosen.vary.values())
    if path.stem in LONG:
        grid, number = [replace(grid[0], variants=grid[0].variants[:2])], 1
    plan = planning.planned(grid, chosen.match, tmp_path, chosen.seeds, True)
    of = [variant.of for variant in plan.variants]
    methods = chosen.methods[:2] if path.stem in LONG else chosen.methods
    assert list(dict.fromkeys(of)) == list(methods)
    shared = chosen.match == "steps" and "dense" in of
    assert len(of) == number * len(methods) - (number - 1) * shared


def test_all_have_a_sibling_for_a_cpu():
    names = {path.stem for path in STUDIES}
    shared = {"imagenet-mobilenet-latency": "imagenet-latency-cpu"}
    full = {name for name in names if not name.endswith("-cpu")}
    assert {shared.get(name, f"{name}-cpu") for name in full} == names - full


def test_the_smallest_begins(tmp_path):
    path = next(path for path in STUDIES if path.stem == "imagenet-2-4-cpu")
    _, grid = cells(path, "--epochs", "2", "--train.log_every", "1")
    found = train(grid[0].variants[0].recipe, tmp_path / "run", label=grid[0].variants[0].label, quiet=True)["runs"][0]
    assert (found["label"], found["density"], found["steps"]) == ("iee", 0.5, 40)
