"""Methods and patterns of the user's own in recipes and on the command line."""

import doctest
import json
import shutil
import sys

import pytest

import regrow
import tiny_recipe as tiny
from outcome import outcome
from regrow.cli import main
from regrow.commands.compare import _default_methods
from regrow.errors import UserError
from regrow.study import planning
from regrow.study.grid import cells_of
from regrow.training import loop, own
from regrow.training.recipe import load
from regrow.training.trust import foreign
from regrow.zoo.models import build

MINE = '''
from __future__ import annotations
open("imported", "a").close()
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal
import regrow
from regrow.methods import Method
from regrow.patterns import Pattern
from regrow.schedule import Budget

@dataclass(frozen=True)
class Gentle(regrow.RigL):
    """Takes its time.

    Args:
        mood: how it takes it.
        waits: how long, several times.
    """

    name: ClassVar[str] = "gentle"
    interval: int = 4
    mood: Literal["calm", "wild"] = "calm"
    waits: tuple[int, ...] = (1, 2)
    second: Budget = Budget("cosine", 0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.waits) > 3:
            raise ValueError("it cannot wait so often")

@dataclass(frozen=True)
class RigL(regrow.RigL):
    interval: int = 5

@dataclass(frozen=True)
class More(regrow.Weights):
    """Keeps a little more.

    Args:
        more: weights in each layer.
    """

    name: ClassVar[str] = "more"
    more: int = 1

    def counts_of(self, parameters):
        found = super().counts_of(parameters)
        return {name: (min(size, kept + self.more), size) for name, (kept, size) in found.items()}

@dataclass(frozen=True)
class Thin(regrow.Channels):
    name: ClassVar[str] = "thin"

@dataclass(frozen=True)
class Bound(Pattern):
    name: ClassVar[str] = "bound"
    share: float = 0.5
    def bind(self, model, example_inputs=None):
        return regrow.Weights(1 - self.share).bind(model, example_inputs)

def function(): pass
class Nothing: pass
class Plain(regrow.RigL): pass
@dataclass(frozen=True)
class Abstract(Method): pass
@dataclass(frozen=True)
class Nameless(Pattern):
    def bind(self, model, example_inputs=None): raise NotImplementedError
@dataclass(frozen=True)
class Unresolved(regrow.Static):
    what: Missing = None
@dataclass(frozen=True)
class Odd(regrow.Static):
    what: Nothing | None = None
@dataclass(frozen=True)
class Silent(regrow.Static):
    what: int = field(default=1, init=False)
@dataclass(frozen=True)
class Holding(regrow.Static):
    what: Callable[..., object] = print
@dataclass(frozen=True)
class Forgetful(regrow.Static):
    what: tuple[int, ...] | list[int] = (1,)
    def __post_init__(self): object.__setattr__(self, "what", tuple(self.what) + (1,))
'''
THEIRS = '''
from dataclasses import dataclass
import regrow

@dataclass(frozen=True)
class Gentle(regrow.SET):
    """Another one of that name."""

    interval: int = 3
'''
CHOSEN = ["--method.name", "mine:Gentle", "--method.mood", "wild", "--pattern.name", "mine:More",
          "--pattern.sparsity", "0.8", "--pattern.more", "2"]  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A directory with two modules of the user's, and a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "theirs.py").write_text(THEIRS)
    tiny.write(tmp_path)
    for name in ("mine", "theirs"):  # of other tests, if there are any
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("mine", "theirs"):
        sys.modules.pop(name, None)


def results(directory):
    return json.loads((directory / "results.json").read_text())


def test_a_run_and_its_continuation(place, capsys):
    words = ["train", "tiny.yaml", *CHOSEN, "--train.checkpoint_steps", "10", "--quiet", "--out"]
    assert main([*words, "whole"]) == 0
    found = results(place / "whole")
    assert found["recipe"]["method"] == {
        "name": "mine:Gentle", "interval": 4, "budget": {"shape": "cosine", "start": 0.3}, "update_end": 0.75,
        "start": "random", "start_steps": None, "mood": "wild", "waits": [1, 2],
        "second": {"shape": "cosine", "start": 0.1},
    }  # fmt: skip
    assert found["recipe"]["pattern"]["name"] == "mine:More"
    assert (found["runs"][0]["method"], found["runs"][0]["label"]) == ("mine:Gentle", "Gentle")
    assert "Gentle" in (place / "whole" / "report.html").read_text()
    layers = json.loads((place / "whole" / "structure.json").read_text())["layers"]
    theirs = regrow.Weights(0.8).counts(build("digits-cnn", 10, 1, width=4))
    assert {layer["name"]: layer["active"] - 2 for layer in layers} == {
        name: kept for name, (kept, _) in theirs.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_stop_wanted", lambda self, stop: self.run.step == 17)
        assert main([*words, "stopped"]) == 130
    resumed = ["train", "--out", "stopped", "--resume", "--quiet"]
    assert main(resumed) == 2
    assert "mine:Gentle (method.name), mine:More (pattern.name); add --trust" in capsys.readouterr().err
    assert main([*resumed, "--method.mood", "calm", "--trust"]) == 2
    assert "method.mood differs from the recipe" in capsys.readouterr().err
    assert main([*resumed, "--trust"]) == 0
    assert outcome(place / "stopped") == outcome(place / "whole")


def test_help_lists_the_options(capsys):
    assert main(["train", "tiny.yaml", *CHOSEN, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--method.mood {calm,wild} how it takes it. (type: Literal['calm', 'wild'], default: wild)" in text
    assert "--pattern.more MORE weights in each layer. (type: int, default: 2)" in text
    assert "package.module:Class,mine:Gentle}" in text
    assert "--method.second.start" in text


@pytest.mark.usefixtures("one_server")
def test_a_comparison_with_two_classes_of_one_name(place, capsys):
    slow = "slow: {name: 'mine:Gentle', interval: 6, recipe: {pattern: {name: 'mine:More', sparsity: 0.5}}}"
    tiny.write(place, f"compare:\n  {slow}\n")
    assert foreign(load("tiny.yaml")) == {
        "compare.slow.name": "mine:Gentle", "compare.slow.recipe.pattern.name": "mine:More",
    }  # fmt: skip
    compared = ["compare", "tiny.yaml", "--methods", "mine:Gentle,theirs:Gentle,slow", "--seeds", "0",
                "--out", "both", "--quiet"]  # fmt: skip
    assert main(compared) == 0
    shown = capsys.readouterr().out
    labels = ["mine.Gentle", "theirs.Gentle", "slow"]
    runs = results(place / "both")["runs"]
    assert [(run["label"], run["method"]) for run in runs] == list(
        zip(labels, ["mine:Gentle", "theirs:Gentle", "mine:Gentle"], strict=True)
    )
    assert runs[0]["density"] < 0.3 < 0.5 < runs[2]["density"]
    page = (place / "both" / "report.html").read_text()
    assert all(label in shown and label in page for label in labels)
    assert main(compared) == 0  # it is finished, and continued as such


def test_runs_of_two_classes_of_one_name_in_one_report(place):
    words = ["--method.name", "mine:Gentle", "--quiet", "--no-report", "--out", "first"]
    assert main(["train", "tiny.yaml", *words]) == 0
    for directory, method in (("second", "theirs:Gentle"), ("third", "mine:Gentle")):
        found = results(place / "first")
        shutil.copytree(place / "first", place / directory)
        found["runs"][0] |= {"method": method, "seed": 1}
        (place / directory / "results.json").write_text(json.dumps(found))
    assert main(["report", "first", "second", "third", "--out", "page.html"]) == 0
    page = (place / "page.html").read_text()
    assert "Gentle (second)" in page
    assert "Gentle (third)" not in page


def test_ones_own_method_is_compared_first_where_nobody_says():
    weights, channels = (_default_methods(load("tiny.yaml", [*CHOSEN[:2], *more])) for more in ([], tiny.CHANNELS))
    assert weights == ["mine:Gentle", "iee", "rigl", "set", "static", "dense"]
    assert channels == ["mine:Gentle", "iee", "halp", "uniform", "oneshot", "dense"]
    thin = ["--pattern.name", "mine:Thin", "--pattern.flops", "0.5"]
    assert _default_methods(load("tiny.yaml", thin)) == channels[1:]
    assert _default_methods(load("tiny.yaml")) == weights[1:]


def test_channels_of_ones_own_are_channels(place, monkeypatch):
    monkeypatch.setattr("regrow.training.speed._SECONDS", 0.1)
    words = ["--pattern.name", "mine:Thin", "--pattern.flops", "0.5", "--pattern.round_to", "1", "--method.name",
             "oneshot", "--quiet", "--no-report", "--out", "thin"]  # fmt: skip
    assert main(["train", "tiny.yaml", *words]) == 0
    run = results(place / "thin")["runs"][0]
    assert run["inference_flops"] <= 0.5 * run["dense_flops"]
    assert run["latency"] > 0


def test_a_pattern_that_is_none_of_single_entries(place):
    words = ["--pattern.name", "mine:Bound", "--pattern.share", "0.25", "--method.name", "static"]
    assert main(["train", "tiny.yaml", *words, "--quiet", "--no-report", "--out", "bound"]) == 0
    assert results(place / "bound")["runs"][0]["density"] == pytest.approx(0.25, abs=0.01)
    recipe = load("tiny.yaml", words)
    cells = cells_of(recipe, {"static": "static"}, {})
    settings = (place / "latency.json", [0], True)
    assert [variant.recipe for variant in planning.planned(cells, "steps", *settings).variants] == [recipe]
    with pytest.raises(
        UserError, match="--match cost cannot be planned for mine:Bound, as a step costs what the structures"
    ):
        planning.planned(cells, "cost", *settings)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--method.name mine:function", "method.name: 'mine:function' is no method: derive it from regrow.methods.Me"),
        ("--method.name mine:Nothing", "method.name: 'mine:Nothing' is no method: derive it from regrow.methods.Met"),
        ("--method.name mine:More", "method.name: 'mine:More' is no method"),
        ("--pattern.name mine:RigL", "pattern.name: 'mine:RigL' is no pattern: derive it from regrow.patterns.Pattern"),
        ("--method.name mine:Plain", "'mine:Plain' does not say what its options are: write @dataclass(frozen=True)"),
        ("--method.name mine:Abstract", "'mine:Abstract' is not complete: it has no "),
        ("--pattern.name mine:Nameless", "has no name for messages: add name: ClassVar[str] = 'nameless' to it"),
        ("--method.name mine:Unresolved", "has options of types that cannot be found: name 'Missing' is not defined"),
        ("--method.name mine:Odd", "has an option 'what' of a type that no recipe can give"),
        ("--method.name mine:Silent", "has an option 'what' of a type that no recipe can give"),
        ("--method.name mine:Holding", "method: Holding has an option that no recipe can hold: "),
        ("--method.name mine:Forgetful", "Forgetful has an option 'what' that a recipe does not give back as it was"),
        ("--method.name mine:Gentl", "method.name: 'mine:Gentl': there is no 'Gentl' in 'mine'; did you mean 'Gentle'"),
        ("--method.name absent:Gentle", "method.name: 'absent:Gentle': the module 'absent' cannot be imported"),
        ("--method.name mine:Gentle --method.moode wild", "unknown key 'method.moode'; did you mean 'method.mood'?"),
        ("--method.name mine:Gentle --method.mood wilt", "method.mood must be one of calm, wild, not 'wilt'; did you"),
        ("--method.name mine:Gentle --method.interval 0", "method: interval is 0, but must be"),
        ("--method.name mine:Gentle --method.waits 1,2,3,4", "Gentle refuses these options: it cannot wait so often"),
        ("--pattern.name mine:More --pattern.more x", "pattern.more must be a whole number, not 'x'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(place, capsys, words, said):
    before = {path.name for path in place.iterdir()} | {"imported"}
    assert main(["train", "tiny.yaml", *words.split(), "--out", "new"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert {path.name for path in place.iterdir()} <= before


@pytest.mark.parametrize(
    ("section", "named"),
    [("method", "mine:Gentle (method.name)"), ("pattern", "mine:More (pattern.name)"),
     ("compare", "mine:Gentle (compare.slow.name)")],
)  # fmt: skip
def test_classes_of_a_run_are_not_imported(place, capsys, section, named):
    theirs = {
        "method": {"name": "mine:Gentle"},
        "pattern": {"name": "mine:More", "sparsity": 0.5},
        "compare": {"slow": {"name": "mine:Gentle"}},
    }
    directory = place / "run"
    directory.mkdir()
    recipe = {**load("tiny.yaml").resolved(), section: theirs[section]}
    (directory / "recipe.yaml").write_text(json.dumps(recipe))
    (directory / "metrics.jsonl").write_text("")
    for words in (
        ["train", "./run", "--out", "new"], ["train", "--out", "run", "--resume"], ["compare", "./run", "--out", "new"],
        ["train", "./run", "--print_config"], ["train", "./run", "--help"],
    ):  # fmt: skip
        assert main(words) == 2
        assert f"names code that would be imported and called: {named}; add --trust" in capsys.readouterr().err
    assert main(["report", "run", "--out", "page.html"]) == 0
    assert not (place / "imported").exists()
    if section == "compare":  # which is none of the run's own
        return
    assert main(["train", "tiny.yaml", "--out", "run", "--resume"]) == 2
    assert f"{section}.name differs" in capsys.readouterr().err
    shutil.copytree(directory, place / "both" / "recipes")
    shutil.copy(directory / "recipe.yaml", place / "both")
    assert main(["compare", "tiny.yaml", "--out", "both"]) == 2
    assert not (place / "imported").exists()


def test_labels():
    assert doctest.testmod(own, extraglobs={}).failed == 0
    assert own.labels(["a.b:C.D", "rigl", "a:GMP"]) == {"D": "a.b:C.D", "rigl": "rigl", "a.GMP": "a:GMP"}
    assert own.labels(["slow", "a:Slow"]) == {"slow": "slow", "a.Slow": "a:Slow"}
    with pytest.raises(UserError, match=r"runs of 'a.b:C' and of 'a:b.C' would both be called 'a.b.C'"):
        own.labels(["a.b:C", "a:b.C"])
