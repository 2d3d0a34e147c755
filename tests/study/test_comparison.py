"""Comparisons: methods × seeds as processes, their table, what is resumed, matched and refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import fixed_latency
import tiny_recipe as tiny
from regrow import RigL, UserError
from regrow.cli import main
from regrow.plan import planned_cost
from regrow.study import comparison as comparing
from regrow.study import planning
from regrow.study.grid import cells_of
from regrow.study.printed import print_table
from regrow.study.stretching import of_length
from regrow.training import loop
from regrow.training.recipe import load, shipped, with_method
from regrow.training.statistics import summarise
from regrow.training.typed import typed

pytestmark = pytest.mark.usefixtures("one_server")

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
    assert len(first) == 3 * 4  # recipe, metrics, structure, results
    assert not list(out.rglob(".lock"))
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
        (["--match", "cost"], "--match differs from the runs"),
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
    [failure] = read(out / "results.json")["failures"]
    assert (failure["run"], f"regrow: {failure['reason']}\n") == ("runs/slow-seed0", err)
    assert (out / "report.html").exists()
    (out / "runs" / "slow-seed0" / "in-the-way").unlink()
    assert main(words) == 0
    assert len(read(out / "results.json")["runs"]) == 2
    assert "failures" not in read(out / "results.json")


def test_results_that_are_damaged_or_of_another_run_do_not_hide_the_others(tmp_path, recipe_file, capsys):
    out = tmp_path / "out"
    words = ["compare", str(recipe_file), "--methods", "static,slow", "--seeds", "0", "--out", str(out), "--quiet"]
    assert main(words) == 0
    page = (out / "report.html").read_text()
    static, slow = out / "runs" / "static-seed0", out / "runs" / "slow-seed0"
    left = out / "runs" / ".slow-seed1.12-ab.tmp"  # half of a copy
    shutil.copytree(static, left)

    def again(said, *more):
        capsys.readouterr()
        assert main([*words, *more]) == 1
        table, err = capsys.readouterr()
        assert said in err
        assert "│ static " in table
        return table, [run["label"] for run in read(out / "results.json")["runs"]]

    text = (slow / "results.json").read_text()
    (slow / "results.json").write_text(text[:100])
    assert again("slow-seed0/results.json is not valid JSON")[1] == ["static"]
    assert not left.exists()
    (slow / "results.json").write_text((static / "results.json").read_text())
    assert again("is of static with seed 0, not of slow with seed 0: delete")[1] == ["static"]
    assert "2 seeds" not in (out / "report.html").read_text()
    other = json.loads(text)
    other["recipe"]["optimizer"]["lr"] = 0.01
    other["recipe"]["train"]["log_every"] = 7  # which changes nothing
    del other["recipe"]["data"]["workers"]  # as before there was such a key
    (slow / "results.json").write_text(json.dumps(other))
    assert again("slow-seed0/results.json is of a run with another optimizer.lr than the")[1] == ["static"]
    (slow / "results.json").write_text(text)
    (slow / "structure.json").write_text("[]")
    table, labels = again("there is no new report: ")
    assert ("report: " in table, labels) == (False, ["static", "slow"])
    (slow / "structure.json").unlink()
    # no recipe of the variant: those of its runs say how they were made
    (out / "recipes" / "slow.yaml").unlink()
    assert main([*words, "--compare.slow.interval", "9"]) == 2
    assert "method.interval of slow differs from the runs" in capsys.readouterr().err
    assert main(words) == 0
    assert page.count("<tr>") == (out / "report.html").read_text().count("<tr>")


@pytest.mark.parametrize("matches", [("steps", "cost"), ("cost", "steps")])
def test_another_way_to_match_is_called_so(tmp_path, matches):
    path = tmp_path / "epochs.yaml"
    path.write_text(tiny.TINY.replace("steps: 30", "epochs: 3"))
    recipe, out = load(path), tmp_path / "out"
    first, second = (planning.planned(cells_of(recipe, {"iee": "iee"}, {}), m, out, [0], True) for m in matches)
    comparing._write_plan(out, recipe, first)
    comparing._check_variant(out, first.variants[0])
    with pytest.raises(UserError, match=r"^--match differs from the runs that "):
        comparing._check_variant(out, second.variants[0])


def test_a_comparison_that_began_meanwhile_is_not_mixed_with(tmp_path, recipe_file, monkeypatch):
    out, plan_alone = tmp_path / "out", comparing.planned

    def plan_beside(*words):
        found = plan_alone(*words)
        (out / "recipes").mkdir(parents=True)
        (out / "recipe.yaml").write_text(load(recipe_file, ["--optimizer.lr", "0.01"]).to_yaml())
        return found

    monkeypatch.setattr(comparing, "planned", plan_beside)
    with pytest.raises(UserError, match=r"^optimizer\.lr differs from the recipe that "):
        comparing.compare(load(recipe_file), out, ["static"], [0], quiet=True)
    assert sorted(path.name for path in out.iterdir()) == ["recipe.yaml", "recipes"]


def test_when_all_runs_fail_there_is_no_table(tmp_path, recipe_file, capsys):
    out = tmp_path / "out"
    for name in ("slow-seed0", "static-seed0"):
        (out / "runs" / name).mkdir(parents=True)
        (out / "runs" / name / "in-the-way").write_text("")
    words = ["compare", str(recipe_file), "--methods", "slow,static", "--seeds", "0", "--out", str(out), "--quiet"]
    assert main(words) == 1
    said, err = capsys.readouterr()
    assert said == ""
    first, second, last = err.splitlines()
    assert first.startswith("regrow: the run slow-seed0 failed: ")
    assert second.startswith("regrow: the run static-seed0 failed: ")
    assert last == f"regrow: no run has finished; the same command with --out {out} tries again"
    failed = read(out / "results.json")["failures"]
    assert [failure["run"] for failure in failed] == ["runs/slow-seed0", "runs/static-seed0"]
    page = (out / "report.html").read_text()  # none of an earlier success stays there
    assert "<h1>Both runs failed</h1>" in page
    assert page.count("holds something else than a run (in-the-way)") == 2


def test_interrupted_and_continued(tmp_path, recipe_file):
    """Ctrl-C in the terminal: children write their checkpoints and end; the same command goes on from there."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", "regrow", "compare", str(recipe_file), "--steps", "300", "--train.log_every", "10"]
    words += ["--data.val_fraction", "0", "--methods", "static,dense", "--seeds", "0", "--out", str(out), "--quiet"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + tiny.PATIENCE
    logs = [out / "runs" / name / "metrics.jsonl" for name in ("static-seed0", "dense-seed0")]
    while not all(log.exists() and log.stat().st_size for log in logs) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=tiny.PATIENCE)
    assert process.returncode == 130, err
    finished = [log for log in logs if (log.parent / "results.json").exists()]  # one may, where the other begins late
    assert len(finished) < 2
    assert f"stopped with {len(finished)} of 2 runs finished; the same command with --out" in err
    assert err.count("\n") == 1
    assert all((log.parent / "checkpoint" / "state.pt").exists() for log in logs)
    assert not subprocess.run(["pgrep", "-f", str(out)], capture_output=True, check=False).stdout
    reached = [json.loads(log.read_text().splitlines()[-1])["step"] for log in logs]
    done = subprocess.run(words, capture_output=True, text=True, timeout=tiny.PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    for log, step in zip(logs, reached, strict=True):
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
        assert steps == sorted(steps)
        assert steps[-1] == 300
        assert 0 < step <= 300
        assert (step == 300) == (log in finished)


@pytest.mark.parametrize("label", ["rigl", "static", "dense", "late"])
def test_matched_cost(recipe_file, label):
    from regrow.criteria import Criterion
    from regrow.training.run import Run

    recipe = load(recipe_file, ["--steps", "400", "--schedule.name", "multistep", "--schedule.milestones", "9,0.5"])
    cells = cells_of(recipe, {label: label}, {}, apart=True)
    planned = planning.planned(cells, "cost", Path("none"), [0], True).variants[0].recipe
    example = Run(recipe, "x")
    counts, criterion = recipe.pattern.counts(example.model), Criterion.of("magnitude")
    budget = planned_cost(recipe.method, criterion, counts, example.flops, 400)
    spent = planned_cost(planned.method, criterion, counts, example.flops, planned.top.steps)
    assert spent == pytest.approx(budget, abs=1.0)  # to the nearest dense step
    stretch = planned.top.steps / 400
    assert planned.schedule.milestones == pytest.approx((max(1.0, 9 * stretch), 0.5))


@pytest.mark.parametrize(
    ("label", "scope", "unknown"),
    [("rigl", "layer", []), ("rigl", "global", ["the recipe's own method", "rigl"]),
     ("static", "global", ["the recipe's own method", "static"]), ("dense", "global", ["the recipe's own method"]),
     ("chase", "layer", ["chase"]),
     ("gmp", "global", ["the recipe's own method", "gmp"])],
)  # fmt: skip
def test_pilots_tell_costs_that_nobody_can_know(recipe_file, label, scope, unknown):
    recipe = load(recipe_file, ["--steps", "400", "--pattern.scope", scope])
    cells = cells_of(recipe, {label: label}, {}, apart=True)
    plan = planning.planned(cells, "cost", Path("none"), [0], True)
    assert [list(cell.pilots) for cell in plan.unknown] == ([unknown] if unknown else [])
    first = plan.variants[0].recipe.top.steps
    if unknown == ["the recipe's own method", label]:
        (cell,) = plan.unknown
        assert cell.settle(dict.fromkeys(unknown, 100.0))[label].top.steps == first
        assert cell.settle({unknown[0]: 100.0, label: 250.0})[label].top.steps == round(first / 2.5)


def test_a_pilot_sets_the_lengths_and_is_a_run_where_it_has_the_right_one(tmp_path, recipe_file):
    out = tmp_path / "out"
    words = ["compare", str(recipe_file), "--steps", "60", "--pattern.scope", "global", "--methods", "iee,slow,dense"]
    words += ["--match", "cost", "--out", str(out), "--quiet", "--seeds"]
    assert main([*words, "0"]) == 0
    pilots = {path.parent.name.partition("-")[0]: path for path in (out / "pilots").glob("*/results.json")}
    assert set(pilots) == {"iee", "rigl"}  # a dense step costs what it is planned to
    found = {name: read(path)["runs"][0] for name, path in pilots.items()}
    metrics = (out / "runs" / "iee-seed0" / "metrics.jsonl").read_bytes()
    assert metrics == (pilots["iee"].parent / "metrics.jsonl").read_bytes()
    first = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    assert main([*words, "0,1"]) == 0  # goes on
    assert first == {path: path.stat().st_mtime_ns for path in first}
    runs = {(run["label"], run["seed"]): run["steps"] for run in read(out / "results.json")["runs"]}
    spent = {name: run["training_cost"] for name, run in found.items()}
    slow, dense = found["rigl"]["steps"] * spent["iee"] / spent["rigl"], 60 * spent["iee"]
    lengths = {"iee": 60, "slow": round(slow), "dense": round(dense)}
    assert runs == {(label, seed): steps for label, steps in lengths.items() for seed in (0, 1)}
    assert main([*words, "2", "--methods", "iee"]) == 0  # other seeds, of which there is no pilot
    last = {(run["seed"], run["steps"]) for run in read(out / "results.json")["runs"]}
    assert last == {(2, 60)}
    assert metrics != (out / "runs" / "iee-seed2" / "metrics.jsonl").read_bytes()


def test_a_pilot_is_trained_once_and_called_as_its_run(tmp_path):
    extra = "study: {match: cost, seeds: [0]}\n"
    path, out = tiny.write(tmp_path, extra), tmp_path / "out"
    words = ["compare", str(path), "--out", str(out), "--quiet", "--method.name", "snfs", "--method.interval", "4"]
    assert main([*words, "--methods", "static"]) == 0  # sets the budget alone
    [pilot] = (out / "pilots").glob("*/results.json")
    assert read(pilot)["runs"][0]["label"] == "the recipe's own method"
    more = ["--methods", "static,snfs", "--train.log_every", "7", "--compare.late.name", "iee"]  # change no training
    assert main([*words, *more]) == 0
    assert list((out / "pilots").glob("*/results.json")) == [pilot]
    run = out / "runs" / "snfs-seed0"
    assert (run / "metrics.jsonl").read_bytes() == (pilot.parent / "metrics.jsonl").read_bytes()
    assert [row["label"] for row in read(out / "results.json")["summary"]] == ["static", "snfs"]
    assert [read(run / "results.json")[key][0]["label"] for key in ("runs", "summary")] == ["snfs", "snfs"]
    assert read(run / "structure.json")["label"] == "snfs"
    assert read(pilot)["runs"] == [{**read(run / "results.json")["runs"][0], "label": "the recipe's own method"}]


def test_a_pilot_that_fails_says_so(tmp_path, recipe_file):
    recipe = load(recipe_file, ["--steps", "60", "--pattern.scope", "global", "--optimizer.lr", "1e18"])
    with pytest.raises(UserError, match=r"^the pilot iee-[0-9a-f]{12} failed: .*diverged"):
        comparing.compare(recipe, tmp_path / "out", ["iee"], [0], match="cost", quiet=True)


def test_matched_cost_is_what_the_runs_spend(tmp_path, recipe_file, capsys):
    out = tmp_path / "out"
    words = ["compare", str(recipe_file), "--steps", "60", "--methods", "iee,static", "--seeds", "0", "--match", "cost"]
    assert main([*words, "--out", str(out), "--quiet"]) == 0
    runs = {run["label"]: run for run in read(out / "results.json")["runs"]}
    costs = {label: run["training_cost"] for label, run in runs.items()}
    assert costs["static"] == pytest.approx(costs["iee"], rel=0.02)
    assert runs["static"]["steps"] > runs["iee"]["steps"] == 60
    recipe = yaml.safe_load((out / "recipes" / "static.yaml").read_text())
    assert recipe["steps"] == runs["static"]["steps"]
    for label, run in runs.items():
        assert run["cost_steps"] == 60
        assert sum(run["by_phase"].values()) == pytest.approx(run["training_cost"])
        structure = read(out / "runs" / f"{label}-seed0" / "structure.json")
        assert structure["training_cost"]["total"] == run["training_cost"]
        last = json.loads((out / "runs" / f"{label}-seed0" / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["cost"] == pytest.approx(run["training_cost"])
    # a static step costs its density's share of a dense one, and it has more of them
    static = with_method(load(recipe_file, ["--steps", "60"]), "static")
    found = loop.train(static, tmp_path / "equal", quiet=True)["runs"][0]
    assert costs["static"] == pytest.approx(found["training_cost"] * runs["static"]["steps"] / 60)
    said = capsys.readouterr().out
    assert "matched by training FLOPs (1× is dense training for 60 steps)" in said
    [row] = [line for line in said.splitlines() if "│ static " in line]
    assert f"│ {runs['static']['steps']:,} │" in re.sub(" +", " ", row)
    page = (out / "report.html").read_text()
    assert "Matched by training FLOPs: 1× is dense training for 60 steps." in page
    assert '<th scope="col">Steps</th>' in page[: page.index("All runs")]


def test_nothing_is_written_for_a_method_that_does_not_fit(tmp_path, recipe_file):
    for match in ("steps", "cost"):
        with pytest.raises(UserError, match=r"^set: .*(too short for one update|cannot be matched)"):
            comparing.compare(load(recipe_file), tmp_path / "out", ["iee", "set"], [0], quiet=True, match=match)
    impossible = load(recipe_file, ["--compare.late.q", "0", "--criterion", "taylor"])
    with pytest.raises(UserError, match=r"^late: criterion 'taylor' needs steps"):
        comparing.compare(impossible, tmp_path / "out", ["iee", "late"], [0], quiet=True)
    soft = load(recipe_file, ["--criterion", "taylor", "--method.q", "1"])
    with pytest.raises(UserError, match=r"^ste: ste computes with what weights are above the largest removed one"):
        comparing.compare(soft, tmp_path / "out", ["iee", "ste"], [0], quiet=True)
    never = load(recipe_file, ["--compare.late.update_end", "0.0"])
    with pytest.raises(UserError, match=r"^late: total_steps=4294967296 is too short for one update"):
        comparing.compare(never, tmp_path / "out", ["iee", "late"], [0], quiet=True, match="cost")
    assert not (tmp_path / "out").exists()


def test_seeds_have_the_bounds_of_a_recipe(tmp_path, recipe_file, capsys):
    words = ["compare", str(recipe_file), "--methods", "iee", "--seeds", "0,2147483648", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert capsys.readouterr().err == "regrow: seed must be between 0 and 2147483647, not 2147483648\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", shipped())
def test_the_recipes_own_method_runs_with_its_own_options(name):
    recipe = load(name)
    label = recipe.method_name
    assert with_method(recipe, label) == recipe
    if label in recipe.compare:  # what the others of its family use is what it uses itself
        assert typed(type(recipe.method), recipe.compare[label], label) == recipe.method
    option = {"iee": "h", "rigl": "interval", "set": "interval", "gmp": "interval"}.get(label)
    if option is not None:
        changed = load(name, [f"--method.{option}", "7"])
        assert getattr(with_method(changed, label).method, option) == 7


def test_a_variant_of_the_own_name_but_another_method_is_kept(tmp_path):
    recipe = load(tiny.write(tmp_path, "compare: {iee: {name: rigl, interval: 4}, rigl: {interval: 5}}\n"))
    assert with_method(recipe, "iee").method == RigL(interval=4)
    assert with_method(recipe, "rigl").method == RigL(interval=5)


def test_the_budget_is_that_of_the_method_that_runs(tmp_path):
    path = tiny.write(tmp_path, "compare: {iee: {h: 1, j: 1, q: 20}}\n")
    recipe = load(path, ["--steps", "100"])
    cells = cells_of(recipe, {"iee": "iee"}, {}, apart=True)
    planned = planning.planned(cells, "cost", Path("none"), [0], True).variants[0].recipe
    assert (planned.top.steps, planned.method) == (100, recipe.method)


def test_short_runs_stretch_their_schedule_too(recipe_file):
    words = ["--steps", "18", "--schedule.name", "multistep", "--schedule.milestones", "1,0.5"]
    recipe = load(recipe_file, words)  # an epoch has 9 steps
    planned = of_length(recipe, 9, loop.Run(recipe, "x"))
    assert planned.schedule.milestones == (0.5, 0.5)
    assert (planned.top.steps, planned.train.cost_steps) == (9, 18)


def test_killed_with_its_runs(tmp_path, recipe_file):
    """kill -9 of a comparison: its runs write their checkpoints and end, and the same command continues them."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", "regrow", "compare", str(recipe_file), "--steps", "20000", "--train.log_every", "10"]
    words += ["--data.val_fraction", "0", "--methods", "static", "--seeds", "0", "--out", str(out), "--quiet"]
    process = subprocess.Popen(words, start_new_session=True)
    run = out / "runs" / "static-seed0"
    wait_until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size)
    process.kill()
    process.wait()
    wait_until(lambda: not (run / ".lock").exists())
    assert (run / "checkpoint" / "state.pt").exists()
    assert "stopped after step" in (out / "runs" / "static-seed0.log").read_text()


def wait_until(condition):
    deadline = time.monotonic() + tiny.PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_demo(tmp_path, monkeypatch, capsys):
    """The real command, but for the length of its runs; an existing directory is left alone."""
    (tmp_path / "demo").mkdir()
    short = load("digits-iee", ["--epochs", "4"])
    monkeypatch.setattr("regrow.training.recipe.load", lambda name: short)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/demo exists, so this demo goes to {tmp_path}/demo-2" in said
    for method in ("dense", "static", "rigl", "iee", "channels"):
        assert f"│ {method} " in said
    assert f"report: {tmp_path}/demo-2/report.html" in said
    assert list((tmp_path / "demo").iterdir()) == []
    share, latency = 1 - short.pattern.sparsity, short.compare["channels"]["recipe"]["pattern"]["latency"]
    assert f"  static    {share:.0%} of them" in said
    assert f"until it takes {latency:.0%} of its time" in said

    # one that was interrupted is continued by the same command; a finished one is not touched
    before = (tmp_path / "demo-2" / "runs" / "iee-seed0" / "results.json").stat().st_mtime_ns
    (tmp_path / "demo-2" / "results.json").unlink()
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert f"continuing the demo in {tmp_path}/demo-2\n" in capsys.readouterr().out
    assert (tmp_path / "demo-2" / "runs" / "iee-seed0" / "results.json").stat().st_mtime_ns == before
    assert not comparing.is_unfinished(tmp_path / "demo-2", short)
    (tmp_path / "demo-2" / "results.json").unlink()
    assert comparing.is_unfinished(tmp_path / "demo-2", short)
    assert not comparing.is_unfinished(tmp_path / "demo-2", load("digits-iee", ["--epochs", "5"]))


CHANNEL_EXTRA = """compare:
  halp: {prunings: 3, interval: 3, recipe: {pattern: {solver: grouped}}}
  l2: {name: oneshot, criterion: l2}
"""


def test_a_table_has_no_empty_column_and_no_empty_cell(capsys):
    run = {"seed": 0, "accuracy": 0.5, "density": 0.05, "training_cost": 0.3, "inference_flops": 1.0,
           "dense_flops": 2.0, "seconds": 3.0}  # fmt: skip
    runs = [{**run, "method": "dense"}, {**run, "method": "rigl"}]
    thin = {**run, "method": "iee", "latency": 1.0, "dense_latency": 2.0, "throughput": 8.0}
    for rows, headings in (
        (runs, ["density", "training cost", "FLOPs", "time"]),
        ([*runs, thin], ["density", "latency", "images/s", "training cost", "FLOPs", "time"]),
        ([runs[0], thin], ["latency", "images/s", "training cost", "FLOPs", "time"]),
        ([{**runs[0], "train_seconds": 2.0}, {**thin, "train_seconds": 1.0}], ["latency", "images/s", "training cost",
                                                                            "wall clock", "FLOPs", "time"]),
    ):  # fmt: skip
        print_table(summarise(rows))
        lines = capsys.readouterr().out.splitlines()
        head = next(line for line in lines if "method" in line)
        assert [cell.strip() for cell in head.strip("┃").split("┃")][4:] == headings
        cells = [cell.strip() for line in lines if line.startswith("│") for cell in line.strip("│").split("│")]
        assert all(cells)
        assert ("–: not timed" in " ".join(lines)) == (len(rows) == 3)


@pytest.mark.parametrize("value", ["[csv]", "[/x]", "[red]x[/red]", ":x: [link=y]"])
def test_whatever_a_label_holds_is_printed(capsys, value):
    runs = [{"method": "iee", "label": f"iee, trackers {text}", "seed": 0, "accuracy": 0.5, "density": 0.05}
            for text in (value, "[]")]  # fmt: skip
    print_table(summarise(runs))
    said = capsys.readouterr().out
    assert f"│ iee, trackers {value} " in said
    assert f"difference to iee, trackers {value} (95%)" in said


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_narrow_terminal_shows_all_of_a_table(capsys, width):
    run = {"accuracy": 0.98765, "density": 0.05, "training_cost": 0.3, "inference_flops": 1.0, "dense_flops": 2.0,
           "seconds": 3.0}  # fmt: skip
    runs = [{**run, "method": method, "seed": seed} for method in ("dense", "rigl") for seed in (0, 1)]
    runs += [{**run, "method": "iee", "seed": 0, "latency": 1.0, "dense_latency": 2.0, "throughput": 12345.0}]
    summary = summarise(runs)
    print_table(summary, width)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width
    assert "…" not in said
    for shown in ("98.77% ± 0.00", "+0.00 [+0.00, +0.00]", "12,345", "difference to dense (95%)", "training cost"):
        assert shown in said
    tables = said.count("┏")
    assert tables == {60: 3, 80: 2, 100: 2, 140: 1}[width]
    assert said.count("rigl") == tables


def test_a_comparison_of_channels(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("regrow.profiling.profile", fixed_latency.profile)
    path, out = tiny.write(tmp_path, CHANNEL_EXTRA), tmp_path / "out"
    words = ["compare", str(path), *tiny.CHANNELS[:2], "--pattern.latency", "0.9", *tiny.CHANNELS[4:]]
    words += ["--methods", "iee,halp,uniform,l2,dense", "--seeds", "0", "--out", str(out), "--quiet"]
    assert main(words) == 0
    said = capsys.readouterr().out
    for heading in ("accuracy", "latency", "images/s", "training cost", "wall clock"):
        assert f" {heading} " in said
    assert "density" not in said
    table = (out / "latency.json").read_bytes()
    found = read(out / "results.json")
    summary = {row["label"]: row for row in found["summary"]}
    for label in ("iee", "halp", "uniform", "l2"):
        run = out / "runs" / f"{label}-seed0"
        assert (run / "latency.json").read_bytes() == table
        assert read(run / "structure.json")["widths"][0]["group"] == "features.0.0"
        row = summary[label]
        [entry] = read(run / "results.json")["runs"]
        assert row["latency_ratio"] == pytest.approx(entry["latency"] / entry["dense_latency"])
        assert row["train_ratio"] == pytest.approx(entry["train_seconds"] / summary["dense"]["train_seconds"])
    assert summary["dense"]["train_ratio"] == 1.0
    solver = {label: yaml.safe_load((out / "recipes" / f"{label}.yaml").read_text())["pattern"]["solver"]
              for label in ("iee", "halp")}  # fmt: skip
    assert solver == {"iee": "joint", "halp": "grouped"}

    # more seeds use the same table
    assert main([*words[:-5], "--seeds", "0,1", *words[-3:]]) == 0
    assert (out / "runs" / "iee-seed1" / "latency.json").read_bytes() == table


def test_channels_that_cannot_be_compared(tmp_path):
    path = tiny.write(tmp_path, CHANNEL_EXTRA)
    for words, labels, message, match in (
        (["--compare.rigl.interval", "4"], ["iee", "rigl"], "^rigl: rigl needs the gradients of what", "steps"),
        (["--method.shadow_speed", "1"], ["iee"], "^iee: iee needs the gradients of what was removed", "steps"),
        (["--pattern.flops", "0.001"], ["dense", "iee"], "^iee: flops=0.001 cannot be met", "steps"),
        (["--train.compile", "true"], ["dense", "iee"], "^iee: train.compile would compile anew", "steps"),
        (
            ["--compare.halp.recipe.model.weights", "x"],
            ["iee", "halp"],
            "^halp: model.weights: x does not exist",
            "steps",
        ),
        (["--compare.halp.interval", "20"], ["iee", "halp"], "^halp: total_steps=30 is too short for 3", "steps"),
        (["--compare.oneshot.h", "0"], ["iee", "oneshot"], "^oneshot: criterion 'taylor' needs gradients", "steps"),
        ([], ["iee", "halp"], "^--match cost cannot be planned for channels", "cost"),
    ):
        recipe = load(path, [*tiny.CHANNELS, *words])
        with pytest.raises(UserError, match=message):
            comparing.compare(recipe, tmp_path / "out", labels, [0], quiet=True, match=match)
    with pytest.raises(UserError, match=r"^halp: halp removes channels; use pattern"):
        comparing.compare(load(tiny.write(tmp_path), ["--steps", "2000"]), tmp_path / "out", ["iee", "halp"], [0])
    assert not (tmp_path / "out").exists()
