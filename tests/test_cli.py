"""The command line: help, recipes and overrides, and each command from end to end."""

import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

import regrow
import tiny_recipe as tiny
from image_data import write_folder
from regrow.cli import _show_warning, main, parsers
from regrow.commands.recipes import split_overrides
from regrow.training import recipe as recipes

HEAVY = ["accelerate", "jsonargparse", "plotly", "rich", "scipy", "sklearn", "timm", "torch", "torchvision", "yaml"]


def test_help_answers_at_once():
    code = (
        "import sys; from regrow.cli import main; assert main(['--help']) == 0; main(['train', '--help']);"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_public_function_is_not_hidden_by_its_module():
    code = "import regrow.training.loop, regrow; print(callable(regrow.recalibrate))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"regrow {regrow.__version__}\n"


@pytest.mark.parametrize("command", ["demo", "train", "compare", "inspect", "scan", "export", "report"])
def test_every_help_has_examples(command, capsys):
    if command in ("train", "compare", "scan"):
        assert main([command, "--help"]) == 0
    else:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
    text = capsys.readouterr().out
    assert f"usage: regrow {command}" in text
    assert f"examples:\n  regrow {command}" in text
    assert "--debug" in text


def test_the_help_lists_the_commands_that_there_are(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    for command in ("demo", "train", "compare", "inspect", "profile", "scan", "export", "report"):
        assert f"\n    {command}" in text


def test_the_help_of_a_recipe_lists_its_keys(capsys):
    assert main(["train", "digits-rigl", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--method.interval" in text
    assert "--method.q" not in text
    assert main(["train", "digits-rigl", "--method.name", "iee", "--schedule.name", "multistep", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--method.q" in text
    assert "--schedule.milestones" in text
    assert "CONFIG" not in text
    for key in ("--epochs", "--model.name", "--data.batch_size", "--pattern.sparsity", "--optimizer.lr", "--train.ema"):
        assert key in text


def test_overrides_are_told_from_options():
    train = parsers()[1]["train"]
    words = ["--epochs", "3", "tiny.yaml", "--out", "DIR", "--method.h=4", "--resume", "--seed", "-1", "--label", "a"]
    own, overrides = split_overrides(words, train)
    assert own == ["tiny.yaml", "--out", "DIR", "--resume", "--label", "a"]
    assert overrides == ["--epochs", "3", "--method.h=4", "--seed", "-1"]


@pytest.mark.parametrize("option", ["--print_config", "--print-config"])
def test_print_config(tmp_path, capsys, option):
    path = tiny.write(tmp_path)
    assert main(["train", str(path), "--method.name", "rigl", option, "--steps", "7"]) == 0
    text = capsys.readouterr().out
    assert recipes.parse(yaml.safe_load(text)) == recipes.load(path, ["--method.name", "rigl", "--steps", "7"])
    assert list(tmp_path.iterdir()) == [path]


def test_train(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write(tmp_path)
    assert main(["train", "tiny.yaml", "--seed", "3"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("step 9/30  epoch 1.0  estimate  loss ")
    assert "val accuracy" in said[0]
    assert said[-1].startswith("iee: test accuracy ")
    assert said[-1].endswith("; see runs/tiny")
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert main(["train", "tiny.yaml", "--quiet", "--no-report", "--label", "mine"]) == 0
    assert capsys.readouterr().out == ""
    results = json.loads((tmp_path / "runs" / "tiny-2" / "results.json").read_text())
    assert results["runs"][0]["label"] == "mine"
    assert not (tmp_path / "runs" / "tiny-2" / "report.html").exists()


def test_warnings_are_one_line_each(monkeypatch, capsys):
    """Of regrow's without a place in the code, of others with it; they are as before once the command is done."""
    before = warnings.showwarning
    ours = str(Path(regrow.__file__).parent / "attach.py")

    def warns(*_):
        warnings.warn_explicit("ours\nin two lines", UserWarning, ours, 3)
        warnings.warn_explicit("theirs", DeprecationWarning, "/lib/other.py", 3)
        return {}

    monkeypatch.setattr("regrow.training.recipe.tree_of", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["train", "digits-iee"]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "regrow: ours in two lines"
    assert second == "regrow: theirs (DeprecationWarning in /lib/other.py)"
    assert third.startswith("regrow: a recipe needs its length")
    assert warnings.showwarning is before


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_warnings_are_said_once_by_several_processes(monkeypatch, capsys, rank, lines):
    monkeypatch.setenv("RANK", rank)
    _show_warning("ours", UserWarning, str(Path(regrow.__file__).parent / "attach.py"), 3)
    assert capsys.readouterr().err == "regrow: ours\n" * lines
    _show_warning("theirs", UserWarning, "/lib/other.py", 3)
    assert capsys.readouterr().err == "regrow: theirs (UserWarning in /lib/other.py)\n"


def test_an_error_of_the_system_without_a_file(monkeypatch, capsys):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("regrow.training.recipe.tree_of", full)
    assert main(["train", "digits-iee"]) == 2
    assert capsys.readouterr().err == "regrow: No space left on device\n"
    with pytest.raises(OSError, match="No space left"):
        main(["train", "digits-iee", "--debug"])


def test_inspect(capsys):
    assert main(["inspect", "digits-cnn", "--sparsity", "0.9", "--distribution", "erk"]) == 0
    text = capsys.readouterr().out
    assert "features.1.0.weight" in text
    assert "65,440" in text  # all sparsified weights
    assert "10.00%" in text
    said = " ".join(text.split())
    assert "head, features.0.0 stay dense: the distribution keeps all of it (1.4% of the param" in said
    assert "a multiply-add counts as 2 FLOPs" in text
    assert main(["inspect", "digits-cnn", "--data-shape", "3,16,16", "--classes", "7", "--exclude", "head"]) == 0
    text = capsys.readouterr().out
    assert "digits-cnn on images of 3×16×16" in text
    said = " ".join(text.split())
    assert re.search(
        r"FLOPs features\.0\.0 stays dense: the first layer, which [^:]* \(\d\.\d% of the parameters\) head", said
    )
    assert re.search(r" head stays dense: excluded \(\d\.\d% of the parameters\)$", said)


def test_inspect_groups_and_blocks(capsys):
    assert main(["inspect", "digits-cnn", "--nm", "1:4", "--exclude", "head"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "│ features.1.0.weight │ 32×32×3×3 │ 9,216 │ 2,304 │ 25.00% │" in said
    assert "features.0.0 stays dense: its 1 inputs are no multiple of 4" in said
    assert main(["inspect", "digits-cnn", "--blocks", "16:2", "--sparsity", "0.75"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "│ layer │ shape │ blocks │ kept │" in said.replace("┃", "│")
    assert "│ features.1.0.weight │ 32×32×3×3 │ 288 │ 72 │ 25.00% │" in said
    assert "head stays dense: its 10 outputs and 64 inputs are no multiples of 16 and 2" in said
    assert main(["inspect", "digits-cnn", "--nm", "2:4", "--sparsity", "0.4"]) == 2
    assert "drop --sparsity, or --nm" in capsys.readouterr().err
    assert main(["inspect", "digits-cnn", "--nm", "2:4", "--channels"]) == 2
    assert "--nm is not for channels: drop it, or drop --channels" in capsys.readouterr().err
    assert main(["inspect", "digits-cnn", "--blocks", "24"]) == 2
    assert "argument --blocks: '24' is not two whole numbers with a colon between" in capsys.readouterr().err


def test_inspect_channels(capsys):
    assert main(["inspect", "digits-cnn", "--channels"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "│ features.0.0 │ 32 │ 9,568 │ features.0.0, features.0.1, features.1.0 │" in text
    assert "192 channels in 4 groups" in text
    assert text.endswith(" head stays dense: it is the model's output (1.0% of the parameters)")
    words = ["inspect", "digits-cnn", "--channels", "--flops", "0.5", "--round-to", "4", "--exclude", "features.0"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "kept" in text
    assert "of the flops" in text
    assert "features.0.0, features.0.1 stay dense: the user forbids it (" in " ".join(text.split())
    assert main(["inspect", "digits-cnn", "--channels", "--heads", "width"]) == 0
    assert "all heads keep their width" in capsys.readouterr().out
    assert main(["inspect", "digits-cnn", "--heads", "width"]) == 2
    assert "--heads is for channels: add --channels" in capsys.readouterr().err


def test_inspect_channels_that_are_normalised_together(capsys):
    words = ["inspect", "vit2-24", "--channels", "--branches"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "Channels(normalised=True) may let them go" in text
    assert "may go whole" in text
    assert main([*words, "--normalised"]) == 0
    assert "normalised" not in capsys.readouterr().out
    assert main(["inspect", "digits-cnn", "--channels", "--branches"]) == 0
    assert "no block can go whole" in capsys.readouterr().out
    assert main(["inspect", "digits-cnn", "--normalised"]) == 2
    assert "--normalised is for channels: add --channels" in capsys.readouterr().err


def test_the_default_methods_fit_the_pattern(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "regrow.commands.compare.carry_out", lambda recipe, out, labels, seeds, **_: seen.append(labels) or 0
    )
    path = tiny.write(tmp_path)
    for words in ([], [*tiny.CHANNELS], ["--methods", "iee"]):
        assert main(["compare", str(path), *words]) == 0
    assert seen == [
        ["iee", "rigl", "set", "static", "dense"], ["iee", "halp", "uniform", "oneshot", "dense"], ["iee"]
    ]  # fmt: skip


def test_report(tmp_path, capsys):
    path = tiny.write(tmp_path)
    for seed in (0, 1):
        words = ["train", str(path), "--seed", str(seed), "--out", str(tmp_path / str(seed))]
        assert main([*words, "--quiet", "--no-report"]) == 0
    out = tmp_path / "both.html"
    assert main(["report", str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"report: {out}\n"
    assert out.stat().st_size > 10_000


@pytest.mark.parametrize("byte", [b"\xff", b"\xe9t\xe9", b"\xe2\x82"])
def test_names_that_are_not_utf8(tmp_path, byte, monkeypatch):
    """Recipe, data, run directory, label and report; where standard output takes UTF-8 alone."""
    name = os.fsdecode(b"n" + byte)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "data"))
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", said)
    write_folder(tmp_path / name)
    tiny.write(tmp_path).rename(f"{name}.yaml")
    words = ["--data.name", f"folder:{name}", "--data.batch_size", "4", "--label", f"label-{name}"]
    assert main(["train", f"{name}.yaml", *words]) == 0
    assert main(["train", "--resume", "--out", f"runs/{name}"]) == 0
    assert main(["report", f"runs/{name}", "--out", f"{name}.html"]) == 0
    assert {p.name for p in (tmp_path / "runs" / name).iterdir()} == {
        "checkpoint", "metrics.jsonl", "model", "recipe.yaml", "report.html", "results.json", "structure.json",
    }  # fmt: skip
    escaped = name.encode("utf-8", "backslashreplace").decode()
    said.seek(0)
    assert said.read().splitlines()[-1] == f"report: {escaped}.html"
    page = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
    assert "label-n\N{REPLACEMENT CHARACTER}" in page
