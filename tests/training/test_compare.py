"""Comparisons: methods × seeds as processes, their table, what is resumed, matched and refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

import tiny_recipe as tiny
from regrow import UserError
from regrow.cli import main
from regrow.plan import planned_cost
from regrow.training import compare as comparing
from regrow.training.recipe import load

EXTRA = "compare: {rigl: {interval: 4}, slow: {name: rigl, interval: 8}, late: {name: iee, h: 4, j: 2, q: 2}}\n"


@pytest.fixture
def recipe_file(tmp_path):
    return tiny.write(tmp_path, EXTRA)


def read(path):
    return json.loads(path.read_text())


def test_a_comparison_and_its_continuation(tmp_path, recipe_file, capsys):
    out = tmp_path / "out"
    words = ["compare", str(recipe_file), "--methods", "iee,slow,dense", "--out", str(out), "--jobs", "2", "--seeds"]
    assert main([*words, "0"]) == 0
    said = capsys.readouterr().out
    assert "[0/3] iee-seed0: running" in said
    assert "[3/3]" in said
    assert f"report: {out}/report.html" in said
    first = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*") if p.is_file()}
    assert len(first) == 3 * 5  # recipe, metrics, structure, results, lock
    assert main([*words, "0,1"]) == 0  # seed 0 is kept, seed 1 is new
    for path, modified in first.items():
        assert path.stat().st_mtime_ns == modified
    results = read(out / "results.json")
    labels = {"iee": "iee", "slow": "rigl", "dense": "dense"}
    expected = [(label, method, seed) for label, method in labels.items() for seed in (0, 1)]
    assert [(run["label"], run["method"], run["seed"]) for run in results["runs"]] == expected
    assert [run["run"] for run in results["runs"]][:2] == ["runs/iee-seed0", "runs/iee-seed1"]
    summary = {row["label"]: row for row in results["summary"]}
    accuracies = [run["accuracy"] for run in results["runs"] if run["label"] == "slow"]
    assert summary["slow"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert summary["slow"]["paired"]["reference"] == "iee"
    assert summary["slow"]["paired"]["n"] == 2
    assert summary["dense"]["training_cost"] == 1.0
    assert read(out / "runs" / "slow-seed1" / "structure.json")["label"] == "slow"
    table = capsys.readouterr().out
    assert "difference to iee (95%)" in table

    # another recipe, another length or other options do not mix with what is there
    for change, message in (
        (["--pattern.sparsity", "0.5"], "pattern.sparsity differs from the recipe that"),
        (["--match", "cost"], "steps of slow differs from the runs"),
        (["--compare.slow.interval", "9"], "method.interval of slow differs from the runs"),
    ):
        assert main([*words, "0", *change]) == 2
        assert message in capsys.readouterr().err


def test_a_failing_run_does_not_lose_the_others(tmp_path, recipe_file, capsys):
    out = tmp_path / "out"
    (out / "runs" / "slow-seed0").mkdir(parents=True)
    (out / "runs" / "slow-seed0" / "in-the-way").write_text("")
    words = ["compare", str(recipe_file), "--methods", "iee,slow", "--seeds", "0", "--out", str(out), "--quiet"]
    assert main(words) == 1
    _, err = capsys.readouterr()
    assert err.startswith("regrow: the run slow-seed0 failed: ")
    assert "in-the-way" in err
    assert "slow-seed0.log" in err
    assert [run["label"] for run in read(out / "results.json")["runs"]] == ["iee"]
    assert (out / "report.html").exists()
    (out / "runs" / "slow-seed0" / "in-the-way").unlink()
    assert main(words) == 0
    assert len(read(out / "results.json")["runs"]) == 2


def test_interrupted_and_continued(tmp_path, recipe_file):
    """Ctrl-C in the terminal: children write their checkpoints and end; the same command goes on from there."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", "regrow", "compare", str(recipe_file), "--steps", "600", "--train.log_every", "10"]
    words += ["--data.val_fraction", "0", "--methods", "static,dense", "--seeds", "0", "--out", str(out), "--quiet"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    logs = [out / "runs" / name / "metrics.jsonl" for name in ("static-seed0", "dense-seed0")]
    while not all(log.exists() and log.stat().st_size for log in logs) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped with 0 of 2 runs finished; the same command with --out" in err
    assert err.count("\n") == 1
    for log in logs:
        assert (log.parent / "checkpoint" / "state.pt").exists()
        assert not (log.parent / "results.json").exists()
    assert not subprocess.run(["pgrep", "-f", str(out)], capture_output=True, check=False).stdout
    reached = [json.loads(log.read_text().splitlines()[-1])["step"] for log in logs]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for log, step in zip(logs, reached, strict=True):
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
        assert steps == sorted(steps)
        assert steps[-1] == 600 > step > 0


@pytest.mark.parametrize("label", ["rigl", "static", "dense", "late"])
def test_matched_cost(recipe_file, label):
    from regrow.criteria import Criterion
    from regrow.training.run import Run

    recipe = load(recipe_file, ["--steps", "400", "--schedule.name", "multistep", "--schedule.milestones", "9,0.5"])
    variants = {label: comparing.with_method(recipe, label)}
    planned = comparing._planned(recipe, variants, "cost")[label]
    example = Run(recipe, "x")
    counts, criterion = recipe.pattern.counts(example.model), Criterion.of("magnitude")
    budget = planned_cost(recipe.method, criterion, counts, example.flops, 400)
    spent = planned_cost(planned.method, criterion, counts, example.flops, planned.top.steps)
    assert spent == pytest.approx(budget, abs=1.0)  # to the nearest dense step
    stretch = planned.top.steps / 400
    assert planned.schedule.milestones == pytest.approx((max(1.0, 9 * stretch), 0.5))


def test_matched_cost_is_what_the_runs_spend(tmp_path, recipe_file):
    out = tmp_path / "out"
    words = ["compare", str(recipe_file), "--steps", "60", "--methods", "iee,static", "--seeds", "0", "--match", "cost"]
    assert main([*words, "--out", str(out), "--quiet"]) == 0
    runs = {run["label"]: run for run in read(out / "results.json")["runs"]}
    spent = {label: run["training_cost"] * run["steps"] for label, run in runs.items()}
    assert spent["static"] == pytest.approx(spent["iee"], rel=0.02)
    assert runs["static"]["steps"] > runs["iee"]["steps"] == 60
    recipe = yaml.safe_load((out / "recipes" / "static.yaml").read_text())
    assert recipe["steps"] == runs["static"]["steps"]


def test_nothing_is_written_for_a_method_that_does_not_fit(tmp_path, recipe_file):
    with pytest.raises(UserError, match="too short for one update"):
        comparing.compare(load(recipe_file), tmp_path / "out", ["iee", "set"], [0], quiet=True)
    assert not (tmp_path / "out").exists()


def test_demo(tmp_path, monkeypatch, capsys):
    """The real command, but for the length of its runs; an existing directory is left alone."""
    (tmp_path / "demo").mkdir()
    short = load("digits-iee", ["--epochs", "6"])
    monkeypatch.setattr("regrow.training.recipe.load", lambda name: short)
    started = time.monotonic()
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert time.monotonic() - started < 90
    said = capsys.readouterr().out
    assert f"{tmp_path}/demo exists, so this demo goes to {tmp_path}/demo-2" in said
    for method in ("dense", "static", "rigl", "iee"):
        assert f"│ {method} " in said
    assert f"report: {tmp_path}/demo-2/report.html" in said
    assert list((tmp_path / "demo").iterdir()) == []
