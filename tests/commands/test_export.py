"""`regrow export`: real runs, from their directories to files that compute the same."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import regrow
import tiny_recipe as tiny
from exported import in_onnx_runtime, off, same_bits
from regrow.cli import main
from regrow.training import loop
from regrow.training.recipe import load
from regrow.zoo.models import build

WIDTHS = {"weights": 4, "channels": 8}
IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    recipe = tiny.write(place)
    loop.train(load(recipe), place / "weights", quiet=True)
    loop.train(load(recipe, list(tiny.CHANNELS)), place / "channels", quiet=True)
    return place


def saved(run: Path) -> nn.Module:
    """The network that the run has saved."""
    return regrow.load(build("digits-cnn", 10, 1, width=WIDTHS[run.name]), run / "model").eval()


@pytest.mark.parametrize("name", WIDTHS)
def test_onnx(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = tmp_path / "model.onnx"
    assert main(["export", str(runs / name), "--format", "onnx", "--out", str(path)]) == 0
    size, difference, dense = capsys.readouterr().out.splitlines()
    model, record = saved(runs / name), json.loads((runs / name / "results.json").read_text())["runs"][0]
    with torch.no_grad():
        assert off(in_onnx_runtime(path, IMAGES)[0], model(IMAGES)) <= 1e-5
    assert size == (
        f"{path}: {path.stat().st_size:,} bytes; its tensors are "
        f"{sum(t.nbytes for t in model.state_dict().values()):,} bytes with their zeros"
    )
    found = re.fullmatch(r"largest difference (\S+) of the output, over batches of 2, 1, 2, 3, 5", difference)
    assert found is not None
    assert float(found[1]) <= 1e-5
    assert dense == (
        f"the tensors of the dense network: {record['dense_bytes']:,} bytes; "
        f"this is {path.stat().st_size / record['dense_bytes']:.1%} of it"
    )


@pytest.mark.parametrize("format", ["safetensors", "compressed"])
def test_tensors(runs: Path, tmp_path: Path, format: str) -> None:
    for name in WIDTHS:
        assert main(["export", str(runs / name), "--format", format, "--out", str(tmp_path / name)]) == 0
        assert same_bits(regrow.load_tensors(tmp_path / name), saved(runs / name).state_dict())


def test_a_batch_of_one_size(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.pt2"
    words = ["export", str(runs / "weights"), "--format", "pt2", "--out", str(out), "--batch", "4", "--tolerance", "0"]
    assert main(words) == 0
    assert "over batches of 4, 4, 4, 4" in capsys.readouterr().out


def test_recalibration_is_a_step_of_its_own(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(runs / "weights"), "--format", "hub", "--out", str(tmp_path / "hub"), "--recalibrate", "3"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("statistics of batch norms: estimated anew from 3 training batches\n")
    from regrow.training.run import data_of

    expected = saved(runs / "weights")
    before = {name: t.clone() for name, t in expected.state_dict().items()}
    regrow.recalibrate(expected, data_of(load(runs / "weights" / "recipe.yaml")).train.epoch(0), 3)
    found = regrow.load_tensors(tmp_path / "hub" / "model.safetensors")
    assert same_bits(found, expected.state_dict())
    assert not same_bits(found, before)
    card = (tmp_path / "hub" / "README.md").read_text()
    accuracy = json.loads((runs / "weights" / "results.json").read_text())["runs"][0]["accuracy"]
    assert f"| accuracy on 40 test images | {accuracy:.2%} |" in card
    assert "batch norms got new statistics from 3 training batches" in card


REFUSED = [
    ("nowhere --format onnx --out m", "nowhere is no run directory: give one that `regrow train` wrote"),
    (". --format onnx --out m", "holds no run: give a directory that `regrow train` wrote"),
    ("unfinished --format onnx --out m", "is not finished: continue it with regrow train --out unfinished --resume"),
    (
        "begun --format onnx --out m",
        "begun is a comparison that is not finished: give one of its finished runs in begun/runs",
    ),
    ("several --format onnx --out m", "is not the directory of one run: give one of its runs, such as several/runs/a"),
    ("older --format pt2 --out m", "does not say what builds the network, as an earlier regrow wrote it"),
    ("damaged --format pt2 --out m", "results.json is not valid JSON (line 1), perhaps cut short"),
    ("shapeless --format pt2 --out m", "give the length of a text, or the channels, height and width"),
    (
        "foreign --format pt2 --out m",
        "names code that would be imported and called: mine:net (model.name); add",
    ),
    ("run --format onx --out m", "unknown format 'onx'; did you mean 'onnx'?"),
    ("run --format onnx --out .", "--out . is a directory: name a file, such as model.onnx"),
    ("run --format hub --out run", "--out run is there already"),
    ("run --out run/model/model.safetensors", "is a part of the model that regrow.save wrote there: name another"),
    ("run --format onnx --out run/recipe.yaml", "--out run/recipe.yaml would write over a part of the run in "),
    ("run --format hub --out several/runs/a/checkpoint/m", "would write over a part of the run in "),
    ("run --format onnx", "the following arguments are required: --out"),
    ("run --format onnx --out m --batch 0", "--batch must be at least 1, not 0"),
    ("run --format compressed --out m --batch 4", "--batch is for the formats onnx and pt2: leave it out"),
    ("run --format onnx --out m --recalibrate 0", "--recalibrate must be at least 1, not 0"),
    ("run --format onnx --out m --tolerance 2", "--tolerance must be a share of the outputs' size such as 1e-5, not 2"),
    ("run --format onnx --out m --tolerance 1e-30", "differs from the model by"),
]


@pytest.fixture(scope="module")
def place(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of every kind."""
    place = tmp_path_factory.mktemp("place")
    whole = json.loads((runs / "weights" / "results.json").read_text())

    def copied(name: str, **changes: object) -> None:
        shutil.copytree(runs / "weights", place / name)
        entry = {**whole["runs"][0], **changes}
        entry = {key: value for key, value in entry.items() if value is not None}
        (place / name / "results.json").write_text(json.dumps({**whole, "runs": [entry]}))

    copied("run")
    copied("older", model=None)
    copied("shapeless", model={**whole["runs"][0]["model"], "shape": [1, 8]})
    copied("foreign", model={**whole["runs"][0]["model"], "name": "mine:net", "options": {}})
    copied("damaged")
    (place / "damaged" / "results.json").write_text('{"runs": [')
    copied("unfinished")
    (place / "unfinished" / "results.json").unlink()
    copied("begun")
    (place / "begun" / "results.json").unlink()
    (place / "begun" / "recipes").mkdir()
    (place / "several" / "runs").mkdir(parents=True)
    shutil.copytree(runs / "weights", place / "several" / "runs" / "a")
    (place / "several" / "results.json").write_text(json.dumps({**whole, "runs": [whole["runs"][0]] * 2}))
    (place / "mine.py").write_text(
        "from regrow.zoo.models import build\ndef net(num_classes, in_channels):\n"
        "    return build('digits-cnn', num_classes, in_channels, width=4)\n"
    )
    return place


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_bad_input(place: Path, monkeypatch, capsys, words: str, said: str) -> None:
    monkeypatch.chdir(place)
    before = sorted(os.listdir(place))
    assert main(["export", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert err.startswith("regrow: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(os.listdir(place)) == before


def test_code_of_the_run_is_imported_once_it_is_trusted(place: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    assert main(["export", "foreign", "--format", "compressed", "--out", str(tmp_path / "m"), "--trust"]) == 0
    assert same_bits(regrow.load_tensors(tmp_path / "m"), regrow.load_tensors(place / "run" / "model"))
