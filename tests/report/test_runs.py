"""Reading run and compare directories, and refusing what is none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import attack_runs
from regrow.errors import UserError
from regrow.report import tables
from regrow.report.headline import compose
from regrow.report.panels import group
from regrow.report.parts import Cell
from regrow.report.runs import read
from regrow.training.recipe import load
from regrow.training.records import LayerForm, MetricForm, UpdateForm

Make = Callable[..., Path]
SUMMARY = {"label": "iee", "method": "iee", "mean": 0.9, "std": None, "n": 1, "density": 0.1, "training_cost": 0.3,
           "inference_ratio": None, "seconds": None, "paired": None}  # fmt: skip


def test_reads_a_run(tmp_path: Path) -> None:
    result = {"method": "iee", "label": "iee", "seed": 3, "accuracy": 0.9, "density": 0.1, "training_cost": 0.3}
    result |= {
        "seconds": 12.5,
        "steps": 20,
        "explore_steps": 5,
        "by_phase": {"explore": 0.2, "fixed": 0.1, "total": 0.3},
    }
    (tmp_path / "results.json").write_text(json.dumps({"regrow": "0.1.0", "runs": [result]}))
    lines = [
        {"step": 10, "epoch": 0, "phase": "explore", "loss": 1.5, "lr": 0.1, "density": 0.1, "seconds": 1, "cost": 0.1},
        {"step": 20, "phase": "fixed", "loss": float("nan"), "accuracy": 0.8, "split": "val"},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    structure = {
        "layers": [{"name": "conv.weight", "shape": [2, 5], "total": 10, "start_active": 4, "active": 3, "flops": 7}],
        "history": [{"update": 1, "step": 8, "iou": 0.5, "survival": None}],
    }
    (tmp_path / "structure.json").write_text(json.dumps(structure))
    (tmp_path / "recipe.yaml").write_text("method: iee\n")
    found = read([tmp_path])
    (run,) = found.runs
    assert (run.label, run.method, run.seed, run.finished) == ("iee", "iee", 3, True)
    assert (run.accuracy, run.density, run.training_cost, run.seconds) == (0.9, 0.1, 0.3, 12.5)
    assert (run.steps, run.explore_steps, run.by_phase) == (20, 5, {"explore": 0.2, "fixed": 0.1})
    assert run.metrics == (
        MetricForm(step=10, phase="explore", loss=1.5, density=0.1, cost=0.1),
        MetricForm(step=20, phase="fixed", accuracy=0.8, split="val"),
    )
    assert run.layers == (LayerForm(name="conv.weight", total=10, start_active=4, active=3),)
    assert run.updates == (UpdateForm(step=8, iou=0.5, survival=None),)
    assert found.version == "0.1.0"
    assert [(r.title, r.text) for r in found.recipes] == [(tmp_path.name, "method: iee")]


def test_reads_a_compare_in_the_order_of_its_results(make_compare: Make, tmp_path: Path) -> None:
    directory = make_compare(tmp_path / "c", ["rigl", "dense", "iee"], [1, 0], steps=100)
    found = read([directory])
    labels = [(run.label, run.seed) for run in found.runs]
    assert labels == [("rigl", 1), ("rigl", 0), ("dense", 1), ("dense", 0), ("iee", 1), ("iee", 0)]
    assert all(run.finished and run.metrics and run.layers for run in found.runs)
    assert [recipe.title for recipe in found.recipes] == ["c"]


def test_a_compare_keeps_the_results_of_runs_whose_directory_is_gone(make_compare: Make, tmp_path: Path) -> None:
    directory = make_compare(tmp_path / "c", ["iee"], [0, 1], steps=100)
    shutil.rmtree(directory / "runs" / "iee-seed1")
    kept, bare = read([directory]).runs
    assert (kept.seed, bool(kept.metrics)) == (0, True)
    assert (bare.seed, bare.finished, bare.metrics) == (1, True, ())
    shutil.rmtree(directory / "runs")
    assert [(run.seed, run.accuracy is not None) for run in read([directory]).runs] == [(0, True), (1, True)]


def test_a_compare_under_way(make_run: Make, tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "iee-seed0", "iee", 0, steps=100)
    make_run(tmp_path / "runs" / "iee-seed1", "iee", 1, steps=100, finished=False)
    started = tmp_path / "runs" / "my-variant-seed12"
    started.mkdir()
    (started / "recipe.yaml").write_text("method:\n  name: iee\n")
    (tmp_path / "runs" / "lock").mkdir()
    runs = read([tmp_path]).runs
    assert [(r.label, r.method, r.seed, r.finished, r.steps) for r in runs] == [
        ("iee", "iee", 0, True, 100),
        ("iee", "iee", 1, False, 50),
        ("my-variant", "iee", 12, False, None),
    ]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def ended(run: Path, after: Path, seconds: int) -> None:
    """Have a run end so many seconds after another file was written."""
    os.utime(run / "results.json", (told := after.stat().st_mtime + seconds, told))


def test_what_a_later_command_left_out_is_not_shown(make_compare: Make, make_run: Make, tmp_path: Path) -> None:
    directory = make_compare(tmp_path / "c", ["iee", "rigl"], [0, 1], steps=100)
    told = directory / "results.json"
    rewrite(told, lambda results: results.update(runs=[results["runs"][0]]))
    for run in (directory / "runs").iterdir():
        ended(run, told, -5)
    make_run(directory / "runs" / "set-seed0", "set", 0, steps=100, finished=False)  # another one is under way
    ended(make_run(directory / "runs" / "set-seed1", "set", 1, steps=100), told, 5)
    ended(make_run(directory / "runs" / "set-seed2", "set", 2, steps=100), told, -5)
    shown = [(run.label, run.seed, run.finished) for run in read([directory]).runs]
    assert shown == [("iee", 0, True), ("set", 0, False), ("set", 1, True)]


def test_copies_beside_a_run_are_not_counted(make_compare: Make, tmp_path: Path) -> None:
    directory = make_compare(tmp_path / "c", ["iee"], [0, 1], steps=100)
    name = {"run": "runs/iee-seed0"}
    rewrite(directory / "results.json", lambda results: results["runs"][0].update(name))
    for copy in (".iee-seed0.12-ab.tmp", ".ipynb_checkpoints", "iee-seed0 (copy)"):
        shutil.copytree(directory / "runs" / "iee-seed0", directory / "runs" / copy)
    assert [(run.directory.name, run.seed) for run in read([directory]).runs] == [("iee-seed0", 0), ("iee-seed1", 1)]


def test_unfinished_runs_of_a_grid_are_called_as_the_others(make_run: Make, tmp_path: Path) -> None:
    label = "iee, sparsity 0.9"
    make_run(tmp_path / "runs" / "iee+sparsity-0.9-seed0", "iee", 0, steps=100, label=label)
    late = make_run(tmp_path / "runs" / "iee+sparsity-0.9-seed1", "iee", 1, steps=100, finished=False)
    (late / "structure.json").unlink()
    alone = make_run(tmp_path / "runs" / "iee+sparsity-0.5-seed1", "iee", 1, steps=100, finished=False)
    (alone / "structure.json").unlink()
    assert [run.label for run in read([tmp_path]).runs] == ["iee+sparsity-0.5", label, label]


def test_failures_are_of_their_own_comparison_and_end_with_a_result(
    make_compare: Make, make_run: Make, tmp_path: Path
) -> None:
    failed = [{"run": "runs/set-seed0", "reason": "diverged"}]
    paths = [make_compare(tmp_path / name, ["iee"], [0], steps=100) for name in "abc"]
    for path in paths:
        make_run(path / "runs" / "set-seed0", "set", 0, steps=100, finished=False)
    for path in paths[:2]:
        rewrite(path / "results.json", lambda results: results.update(failures=failed))
    found = read(paths)
    assert [one.directory for one in found.failures] == [path / "runs" / "set-seed0" for path in paths[:2]]
    assert "1 run is unfinished. 2 runs failed." in compose(found.runs, [], [{**SUMMARY}], found.failures).lede
    table = tables.runs(group(found.runs), found.failures)
    assert table is not None
    states = [cell.text for row in table.content.rows if isinstance(cell := row[-1], Cell)]
    assert states == ["failed", "failed", "unfinished"]
    shutil.rmtree(paths[0] / "runs" / "set-seed0")  # and trained by hand
    ended(make_run(paths[0] / "runs" / "set-seed0", "set", 0, steps=100), paths[0] / "results.json", 5)
    assert [one.directory.parent.parent.name for one in read(paths).failures] == ["b"]


def test_a_run_that_cannot_be_read_is_left_out_where_it_is_said(make_compare: Make, tmp_path: Path) -> None:
    directory = make_compare(tmp_path / "c", ["iee"], [0, 1], steps=100)
    (directory / "runs" / "iee-seed1" / "results.json").write_text('{"runs": [')
    assert "is not valid JSON" in refuse(directory)
    failures = [{"run": "runs/iee-seed1", "reason": "is not valid JSON"}]
    rewrite(directory / "results.json", lambda results: results.update(runs=results["runs"][:1], failures=failures))
    found = read([directory])
    assert ([run.seed for run in found.runs], [one.name for one in found.failures]) == ([0], ["iee-seed1"])


def test_an_unfinished_run_is_named_by_its_recipe_and_known_by_its_metrics(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: {class_path: regrow.methods.RigL}\nseed: 4\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "density": 0.2, "cost": 0.1, "accuracy": 0.5}\n{"step": 6}\n')
    (run,) = read([tmp_path]).runs
    assert (run.label, run.method, run.seed, run.finished) == ("rigl", "rigl", 4, False)
    assert (run.density, run.training_cost, run.steps, run.last_accuracy) == (0.2, 0.1, 6, 0.5)


@pytest.mark.parametrize("tail", ['{"step": 3, "lo', '{"step": 3, "loss": 1.', "{"])
def test_half_a_last_line_is_ignored(tmp_path: Path, tail: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n' + tail)
    assert [m.step for m in read([tmp_path]).runs[0].metrics] == [1, 2]


def test_lines_of_a_resumed_run_replace_those_after_its_checkpoint(tmp_path: Path) -> None:
    steps = [(1, 1.0), (2, 2.0), (3, 3.0), (2, 2.5), (2, 2.6), (3, 3.5)]
    lines = "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in steps)
    (tmp_path / "metrics.jsonl").write_text(lines)
    rows = [(m.step, m.loss) for m in read([tmp_path]).runs[0].metrics]
    # two lines of one step are two lines (training and evaluation)
    assert rows == [(1, 1.0), (2, 2.0), (2, 2.5), (2, 2.6), (3, 3.5)]


def test_a_directory_given_twice_is_read_once(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "iee", 0, steps=50)
    assert len(read([run, tmp_path / "." / "a"]).runs) == 1


def test_a_run_of_a_comparison_that_is_given_too_is_read_once(make_compare: Make, tmp_path: Path) -> None:
    directory = make_compare(tmp_path / "c", ["iee", "rigl"], [0, 1], steps=50)
    run = directory / "runs" / "iee-seed1"
    for paths in ([directory, run], [run, directory]):
        found = sorted((run.label, run.seed) for run in read(paths).runs)
        assert found == [("iee", 0), ("iee", 1), ("rigl", 0), ("rigl", 1)]


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ([], "iee"),
        (["--train.log_every", "3"], "iee"),  # changes no training
        (["--optimizer.lr", "0.05"], "iee (1)"),
        (["--method.h", "10"], "iee (1)"),
        (["--epochs", "3"], "iee (1)"),
    ],
)
def test_other_seeds_of_another_recipe_are_not_averaged_with(
    make_run: Make, tmp_path: Path, words: list[str], label: str
) -> None:
    runs = [make_run(tmp_path / str(seed), "iee", seed, steps=50) for seed in (0, 1)]
    (runs[0] / "recipe.yaml").write_text(load("digits-iee").to_yaml())
    text = load("digits-iee", [*words, "--seed", "1"]).to_yaml()
    (runs[1] / "recipe.yaml").write_text(text.replace("  workers: null\n", ""))  # as before there was such a key
    assert [run.label for run in read(runs).runs] == ["iee", label]
    (runs[1] / "recipe.yaml").unlink()  # nobody knows
    assert [run.label for run in read(runs).runs] == ["iee", "iee"]


def test_recipes_that_name_classes_are_compared_without_importing_them(make_run: Make, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), "iee", seed, steps=50) for seed in (0, 1, 2)]
    for seed, run in enumerate(runs):
        options = f"method: {{name: 'nowhere:Own', h: {seed // 2}}}\n"
        (run / "recipe.yaml").write_text(f"{options}seed: {seed}\n")
    assert [run.label for run in read(runs).runs] == ["iee", "iee", "iee (2)"]


def test_equal_labels_and_seeds_are_told_apart_by_directory(make_run: Make, tmp_path: Path) -> None:
    paths = [make_run(tmp_path / name / "same", "iee", 0, steps=50) for name in "abc"]
    other = make_run(tmp_path / "d", "iee", 1, steps=50)
    labels = [run.label for run in read([*paths, other]).runs]
    assert labels == ["iee", "iee (same)", "iee (same 2)", "iee"]


def refuse(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        read([directory])
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("results.json", '{"runs": [{"method": "iee", ', "results.json is not valid JSON (line 1)"),
        ("results.json", "[1, 2]", "it holds a list, not an object"),
        ("results.json", '{"name": "somebody else"}', 'it needs a list "runs"'),
        ("results.json", '{"runs": 3}', 'it needs a list "runs"'),
        ("results.json", '{"runs": [{"method": "iee"}]}', "runs.0.seed is missing: restore it or delete it"),
        ("results.json", '{"runs": [{"method": "a", "seed": 0.5}]}', "runs.0.seed should be a valid integer"),
        (
            "results.json",
            '{"runs": [{"method": "a", "seed": 0, "accuracy": 88.4}]}',
            "accuracy should be less than",
        ),
        ("results.json", '{"runs": [{"method": "a", "seed": 0, "seconds": NaN}]}', "seconds should be a finite number"),
        (
            "results.json",
            '{"runs": [{"method": "a", "seed": 0, "steps": -3}]}',
            "steps should be greater than",
        ),
        ("results.json", '{"runs": [{"method": "a", "seed": 0, "by_phase": [1]}]}', "by_phase should be a valid dict"),
        ("results.json", "[" * 100_000, "not valid JSON"),
        ("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 3}\n', "line 2 is not valid JSON"),
        ("metrics.jsonl", '{"loss": 1}\n', "step is missing: delete that line"),
        ("metrics.jsonl", "17\n", "its line 1 is not an object"),
        ("metrics.jsonl", '{"step": 1e400}\n', "step should be a valid integer"),
        ("metrics.jsonl", '{"step": 1, "accuracy": "high"}\n', "accuracy should be a valid number: delete that line"),
        ("structure.json", '{"layers": {}}', "layers should be a valid list"),
        ("structure.json", '{"history": [1]}', "history.0 should be a valid dictionary"),
        (
            "structure.json",
            '{"layers": [{"name": "a", "total": 3, "active": 4}]}',
            "has more active entries than",
        ),
        (
            "structure.json",
            '{"widths": [{"group": "a", "before": 3, "after": 4}]}',
            "has more channels than there",
        ),
        ("structure.json", '{"layers": [', "structure.json is not valid JSON"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, file: str, content: str, said: str) -> None:
    (tmp_path / file).write_text(content)
    text = refuse(tmp_path)
    assert str(tmp_path / file) in text
    assert said in text


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    assert "not text in UTF-8" in refuse(tmp_path)


def test_what_is_no_run_directory(tmp_path: Path) -> None:
    assert "holds no run" in refuse(tmp_path)
    assert "does not exist" in refuse(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "is a file" in refuse(tmp_path / "file")
    with pytest.raises(UserError, match="give at least one run directory"):
        read([])


def test_random_damage_makes_a_report_or_a_sentence(make_compare: Make, tmp_path: Path) -> None:
    directory = make_compare(tmp_path / "c", ["dense", "iee"], [0], steps=60)
    assert attack_runs.attack(25, directory, tmp_path) == []
