"""`regrow scan`: of a run and of a recipe, by weights and by channels, and on to a recipe that uses it."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

import regrow
import tiny_recipe as tiny
from regrow.cli import main
from regrow.training import loop
from regrow.training.recipe import load
from regrow.training.run import data_of, model_of
from regrow.zoo.models import build

SHAPES = """\
task: detection
model: {name: shapes-ssd, options: {width: 4, size: 32}}
data: {name: "shapes:30,size=32", batch_size: 6, val_fraction: 0.2}
steps: 4
method: {name: iee, h: 2}
pattern: {sparsity: 0.5, distribution: erk}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scanned")
    loop.train(load(tiny.write(place), ["--method.name", "dense", "--steps", "4"]), place / "run", quiet=True)
    return place / "run"


def test_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["scan", str(run), "--sparsities", "0.5,0.9", "--batches", "1"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines()[-1] == "numbers: scan.json, page: scan.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scan.html", "scan.json"]
    assert "−50%" in said.out
    before = Path("scan.json").read_bytes()
    assert main(["scan", str(run), "--sparsities", "0.4", "--batches", "1"]) == 2
    assert capsys.readouterr().err == (
        "regrow: scan.json is there already: name another with --out, or this one to write over it\n"
    )
    assert Path("scan.json").read_bytes() == before
    found = regrow.Scan.load("scan.json")
    model = regrow.load(build("digits-cnn", 10, 1, width=4), run / "model")
    batches = islice(data_of(load(run / "recipe.yaml")).val.epoch(0), 1)  # never the test set
    expected = regrow.scan(model, batches, sparsities=(0.5, 0.9))
    assert (found.loss, found.accuracy, found.layers) == (expected.loss, expected.accuracy, expected.layers)
    assert found.model == f"{run / 'recipe.yaml'} (digits-cnn)"
    for layer in found.layers:
        assert f"│ {layer.name} " in said.out
    page = (tmp_path / "scan.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page
    assert all(layer.name in page for layer in found.layers)

    words = ["train", str(tiny.write(tmp_path)), "--pattern.distribution", "scan.json", "--method.name", "static"]
    assert main([*words, "--steps", "2", "--out", "sparse", "--quiet", "--no-report"]) == 0
    layers = json.loads((tmp_path / "sparse" / "structure.json").read_text())["layers"]
    assert {one["name"]: one["active"] for one in layers} == found.counts(0.8)
    capsys.readouterr()
    assert main(["scan", "sparse", "--sparsities", "0.5", "--batches", "1", "--out", "again.json"]) == 0
    assert capsys.readouterr().err.startswith("regrow: 80% of the network's weights are zero already, and layers lose")


def test_channels_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tiny.write(tmp_path), tmp_path / "channels.json"
    words = ["scan", str(recipe), *tiny.CHANNELS, "--sparsities=0.5", "--batches", "1", "--recalibrate", "1"]
    assert main([*words, "--out", str(out)]) == 0
    assert "the network has random weights, so that its losses say little" in capsys.readouterr().err
    found = regrow.Scan.load(out)
    assert (found.pattern, found.criterion, found.recalibrated) == ("channels", "taylor", True)
    assert [layer.kept for layer in found.layers] == [(layer.units // 2,) for layer in found.layers]
    assert (tmp_path / "channels.html").is_file()


def test_a_detector_is_measured_by_its_own_losses(tmp_path: Path) -> None:
    (tmp_path / "shapes.yaml").write_text(SHAPES)
    out = tmp_path / "shapes.json"
    assert (
        main(["scan", str(tmp_path / "shapes.yaml"), "--sparsities", "0.9", "--batches", "1", "--out", str(out)]) == 0
    )
    found = regrow.Scan.load(out)
    assert (found.accuracy, found.examples) == (None, 6)
    recipe = load(tmp_path / "shapes.yaml")
    data = data_of(recipe)
    model = model_of(recipe, data).eval()
    for module in (model.train(), *(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))):
        module.train(module is model)
    batch = next(iter(data.val.epoch(0)))
    torch.manual_seed(0)
    with torch.no_grad():
        assert found.loss == float(recipe.task.loss(model, batch, torch.device("cpu"), recipe.train))


BAD = [
    ("RUN --sparsities 0.9,0.5", "sparsities must be one or several numbers that increase"),
    ("RUN --sparsities 50%", "--sparsities: invalid float value: '50%'; did you mean 0.5 (50%)?"),
    ("RUN --batches 0", "--batches must be at least 1, not 0"),
    ("RUN --model.name wrn22-2", "--model.name is of no use here, as a run's network is scanned as it was saved"),
    ("RUN --data.val_fraction 0", "the recipe holds no images out (data.val_fraction is 0)"),
    ("RUN --out scan.html", "--out scan.html does not end in .json, by which distribution= knows a scan"),
    ("RUN --out RUN/results.json", "results.json would write over a part of the run in "),
    ("RUN --out .", "--out . does not end in .json"),
    ("RUN --pattern.sparcity 0.9", "did you mean"),
    (".", "holds no run: give a directory that `regrow train` wrote"),
    ("", "scan needs a RECIPE: a directory that `regrow train` wrote, a YAML file, or one of cifar10-"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input(
    run: Path, words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["scan", *words.replace("RUN", str(run)).split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_scan_that_is_not_there_stops_training_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.write(tmp_path)
    words = ["train", str(recipe), "--pattern.distribution", "nowhere.json", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert "the scan nowhere.json cannot be read (No such file or directory)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [recipe]
