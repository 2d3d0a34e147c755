"""Code that the recipe of a run directory names is not imported unless the user says so."""

import shutil
import sys

import pytest

import tiny_recipe as tiny
from regrow.cli import main
from regrow.training.recipe import load, shipped
from regrow.training.trust import foreign

MODULE = """
open("imported", "w").close()
from regrow.zoo.networks import DigitsCNN
def net(num_classes, in_channels, width): return DigitsCNN(num_classes, in_channels, width)
def score(weight): return weight.abs()
def images(settings):
    from regrow.data.named import load
    return load("generated:1x8x8:10:160", batch_size=settings.batch_size)
"""
CODE = {
    "model": (["--model.name", "theirs:net", "--model.options.width", "4"], "theirs:net (model.name)"),
    "criterion": (["--criterion", "theirs:score"], "theirs:score (criterion)"),
    "data": (["--data.name", "theirs:images"], "theirs:images (data.name)"),
    "library": (
        ["--model.name", "torchvision.models:resnet18", "--model.options={}"],
        "torchvision.models:resnet18 (model.name)",
    ),
    "ours": (["--criterion", "regrow.cli:main"], "regrow.cli:main (criterion)"),
    "several": (
        ["--model.name", "theirs:net", "--criterion", "theirs:score"],
        "theirs:net (model.name), theirs:score (criterion)",
    ),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a module that leaves a trace when it is imported, and a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "theirs.py").write_text(MODULE)
    tiny.write(tmp_path)
    yield tmp_path
    sys.modules.pop("theirs", None)


def run_directory(place, words, name="run"):
    """What an unfinished run of somebody else's looks like."""
    directory = place / name
    directory.mkdir(parents=True)
    (directory / "recipe.yaml").write_text(load("tiny.yaml", words).to_yaml())
    (directory / "metrics.jsonl").write_text("")
    return directory


@pytest.mark.parametrize("kind", CODE)
def test_what_a_run_names_is_not_imported(place, capsys, kind):
    words, named = CODE[kind]
    run_directory(place, words)
    (place / "mine.yaml").write_text("base: run/recipe.yaml\nseed: 3\n")
    shutil.copytree(place / "run", place / "bare")
    (place / "bare" / "metrics.jsonl").unlink()  # nothing but the recipe: still what is resumed
    for command, file in (
        (["train", "--out", "run", "--resume"], "run/recipe.yaml"),
        (["train", "--out", "bare", "--resume"], "bare/recipe.yaml"),
        (["train", "./run", "--out", "new"], "run/recipe.yaml"),
        (["train", "run/recipe.yaml", "--out", "new"], "run/recipe.yaml"),
        (["train", "mine.yaml", "--out", "new"], "run/recipe.yaml"),
        (["compare", "run/recipe.yaml", "--methods", "static", "--out", "new"], "run/recipe.yaml"),
    ):
        assert main(command) == 2
        assert capsys.readouterr().err == (
            f"regrow: {file} comes with a run, and names code that would be imported and called: {named}; add --trust "
            "if you trust whoever wrote it\n"
        )
    assert not (place / "imported").exists()
    assert not (place / "new").exists()


def test_a_recipe_inside_a_comparison(place, capsys):
    run_directory(place, CODE["criterion"][0], "theirs-compared/recipes")
    (place / "theirs-compared" / "runs").mkdir()
    (place / "theirs-compared" / "recipes" / "metrics.jsonl").unlink()
    assert main(["train", "theirs-compared/recipes/recipe.yaml", "--out", "new"]) == 2
    assert "names code that would be imported and called: theirs:score (criterion)" in capsys.readouterr().err


def test_trusted_or_replaced_or_ones_own(place, capsys):
    words, _ = CODE["several"]
    run_directory(place, words)
    assert main(["train", "./run", "--print_config"]) == 0  # to look at it is no risk
    assert main(["report", "run", "--out", "page.html"]) == 0
    assert not (place / "imported").exists()
    plain = ["--model.name", "digits-cnn", "--criterion", "magnitude"]
    assert main(["train", "./run", *plain, "--out", "replaced", "--quiet", "--no-report"]) == 0
    assert not (place / "imported").exists()
    assert main(["train", "tiny.yaml", *words, "--out", "mine", "--quiet", "--no-report"]) == 0
    assert (place / "imported").exists()
    assert main(["train", "--out", "run", "--resume", "--trust", "--quiet", "--no-report"]) == 0
    compared = ["compare", "tiny.yaml", *words, "--methods", "static", "--seeds", "0", "--out", "both", "--quiet"]
    assert main(compared) == 0
    capsys.readouterr()


def test_names_of_models_and_data_sets_are_no_code(tmp_path):
    for name in shipped():
        assert foreign(load(name)) == {}
    for words in (
        ["--model.name", "timm:resnet18"],
        ["--model.name", "torchvision:resnet18"],
        ["--data.name", "folder:theirs:x"],
        ["--data.name", "imagenet:/data"],
    ):
        assert foreign(load("digits-iee", words)) == {}
    entry = ["--compare.own.name", "rigl", "--compare.own.recipe.criterion", "theirs:score"]
    assert foreign(load("digits-iee", entry)) == {"compare.own.recipe.criterion": "theirs:score"}


def test_what_a_study_names_is_code_too(place, capsys):
    words = ["--study.methods", "static,theirs:Gentle"]
    words += ["--study.vary={criterion: [magnitude, 'theirs:score'], model.name: ['timm:resnet18', 'theirs:net']}"]
    assert foreign(load("digits-iee", words)) == {
        "study.methods": "theirs:Gentle",
        "study.vary.model.name": "theirs:net",
        "study.vary.criterion": "theirs:score",
    }
    run_directory(place, words)
    assert main(["compare", "run/recipe.yaml", "--out", "new"]) == 2
    assert "names code that would be imported and called: theirs:Gentle (study.methods), " in capsys.readouterr().err
    assert not (place / "imported").exists()
