"""Grids of recipe keys: their variants and labels, what is refused of them, and that they are run and continued."""

import json
import subprocess
import sys
import time

import pytest
import yaml

import tiny_recipe as tiny
from regrow import UserError
from regrow.cli import main
from regrow.study.comparison import compare
from regrow.study.grid import Variant, cells_of, check_size
from regrow.study.planning import planned
from regrow.training.recipe import load

pytestmark = pytest.mark.usefixtures("one_server")

EXTRA = "compare: {rigl: {interval: 4}, set: {interval: 4}, slow: {name: rigl, interval: 8}}\n"


@pytest.fixture
def recipe_file(tmp_path):
    return tiny.write(tmp_path, EXTRA)


def variants(recipe_file, methods, vary, apart=False):
    cells = cells_of(load(recipe_file), {label: label for label in methods}, vary, apart)
    return [variant for cell in cells for variant in cell.variants]


def test_labels_files_and_recipes(recipe_file):
    found = variants(
        recipe_file, ["iee", "slow"], {"pattern.sparsity": ["0.90", 0.95], "optimizer.lr": ["5e-2", "0.1"]}
    )
    assert [variant.label for variant in found] == [
        "iee, sparsity 0.9, lr 0.05", "slow, sparsity 0.9, lr 0.05", "iee, sparsity 0.9, lr 0.1",
        "slow, sparsity 0.9, lr 0.1", "iee, sparsity 0.95, lr 0.05", "slow, sparsity 0.95, lr 0.05",
        "iee, sparsity 0.95, lr 0.1", "slow, sparsity 0.95, lr 0.1",
    ]  # fmt: skip
    last = found[-1]
    assert (last.of, last.file) == ("slow", "slow+sparsity-0.95+lr-0.1")
    assert last.cell == {"pattern.sparsity": 0.95, "optimizer.lr": 0.1}
    values = (last.recipe.pattern.sparsity, last.recipe.optimizer.lr, last.recipe.method.interval)
    assert values == (0.95, 0.1, 8)


def test_without_keys_variants_are_called_as_their_methods(recipe_file):
    found = variants(recipe_file, ["iee", "slow"], {})
    assert [(one.label, one.of, one.file, one.in_grid) for one in found] == [
        ("iee", "iee", "iee", False), ("slow", "slow", "slow", False),
    ]  # fmt: skip


def test_what_does_not_matter_to_dense_training_is_not_trained_twice(recipe_file):
    vary = {"pattern.sparsity": [0.8, 0.9], "optimizer.lr": [0.05, 0.1], "method.h": [3, 4]}
    found = variants(recipe_file, ["iee", "dense"], vary)
    dense = [(one.label, one.cell) for one in found if one.of == "dense"]
    assert dense == [("dense, lr 0.05", {"optimizer.lr": 0.05}), ("dense, lr 0.1", {"optimizer.lr": 0.1})]
    assert len(found) == 8 + 2
    # but where its length follows from the cell
    found = variants(recipe_file, ["iee", "dense"], vary, apart=True)
    assert len(found) == 8 + 8
    assert found[1].label == "dense, sparsity 0.8, lr 0.05, h 3"


def test_names_that_no_file_can_have_get_a_checksum(recipe_file):
    found = variants(recipe_file, ["iee"], {"pattern.exclude": ["a/b", "a b"], "method.budget.start": [0.3]})
    assert [one.label for one in found] == ["iee, exclude [a/b], start 0.3", "iee, exclude [a b], start 0.3"]
    assert [one.file for one in found] == [
        "iee+exclude-_a_b_+start-0.3-fffb3835", "iee+exclude-_a_b_+start-0.3-7c328b10",
    ]  # fmt: skip
    long = Variant("iee, model " + "m" * 300, "iee", found[0].recipe, {"model.name": "m" * 300}, True)
    assert len(long.file) == 109


def test_labels_are_as_long_as_results_may_have_them(recipe_file):
    recipe = load(recipe_file)
    room = 1000 - len("iee, weights ")
    [cell] = cells_of(recipe, {"iee": "iee"}, {"model.weights": ["w" * room]})
    assert len(cell.variants[0].label) == 1000
    with pytest.raises(UserError, match=r"^the label 'iee, weights w+'\.\.\. would have 1,001 characters, of at most"):
        cells_of(recipe, {"iee": "iee"}, {"model.weights": ["w" * (room + 1)]})


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ({"pattern.sparsity": []}, "vary pattern.sparsity has no values: give some, such as pattern.sparsity=0.9,0.95"),
        ({"pattern.sparsity": [0.9, ""]}, "vary pattern.sparsity has an empty value"),
        ({"pattern.sparsity": [0.9, 0.8, 0.9]}, "vary pattern.sparsity names 0.9 twice"),
        ({"pattern.sparsity": ["0.9", "0.90"]}, "vary pattern.sparsity names 0.9 and 0.90, which are the same"),
        ({"pattern.sparsit": [0.9]}, "unknown key 'pattern.sparsit'; did you mean 'pattern.sparsity'?"),
        ({"sparsity": [0.9]}, "unknown key 'sparsity'; did you mean 'pattern.sparsity'?"),
        ({"method.intervall": [3]}, "unknown key 'method.intervall'; "),
        ({"optimizer.lr": [0.1, "fast"]}, "optimizer.lr must be a number, not 'fast'"),
        ({"seed": [1]}, "vary seed: it is given by --seeds, or study.seeds"),
        ({"method.name": ["iee"]}, "vary method.name: it is given by --methods, or study.methods"),
        ({"pattern": [1]}, "vary pattern: it is a section; name one of its keys, such as pattern.sparsity"),
        ({"compare.rigl.interval": [3]}, "vary compare.rigl.interval: only keys that all runs have can be varied, "),
        ({"pattern..sparsity": [3]}, "vary 'pattern..sparsity': it must be a key of the recipe, dotted, such as "),
        (
            {"method.h": [3]},
            "vary method.h: rigl has no such option; compare only methods that have it, such as --methods iee",
        ),
        (
            {"method.budget": ["{start: 0.2}"], "method.budget.start": [0.1]},
            "vary method.budget: method.budget.start, which is a part of it, is varied, too",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(recipe_file, tmp_path, vary, said):
    with pytest.raises(UserError) as caught:
        compare(load(recipe_file), tmp_path / "out", ["iee", "rigl", "dense"], [0], vary=vary, quiet=True)
    assert str(caught.value).startswith(said)
    assert not (tmp_path / "out").exists()


def test_what_cannot_run_names_its_cell(recipe_file, tmp_path):
    for vary, said in (
        ({"steps": [30, 5]}, "iee, steps 5: total_steps=5 is too short"),
        ({"schedule.warmup": [0.1, 31]}, "iee, warmup 31: schedule.warmup"),
        ({"model.options.width": [4, "wide"]}, "width wide: the model 'digits-cnn' cannot be built"),
    ):
        with pytest.raises(UserError) as caught:
            compare(load(recipe_file), tmp_path / "out", ["iee"], [0], vary=vary, quiet=True)
        assert str(caught.value).startswith(said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vary", "pattern.sparsity"], "--vary must be a key and its values such as pattern.sparsity=0.9,0.95, not "),
        (["--vary", "seed=1", "--vary", "seed=2"], "--vary gives seed twice: write its values as one list"),
        (["--vary", "optimizer.lr=0.1,,0.2"], "vary optimizer.lr has an empty value"),
        (["--vary", "optimizer.lr="], "vary optimizer.lr has no values"),
        (["--vary", " "], "argument --vary: is empty"),
        (["--vary", "optimizer.lr=[1"], "the value of --optimizer.lr, line 1 is not valid YAML"),
        (["--study.seeds", "1,1"], "study.seeds names 1 twice"),
        (["--study.seeds", "[]"], "study.seeds is empty"),
        (["--study.methods", "iee,iee"], "study.methods names 'iee' twice"),
        (["--study.match", "size"], "study.match must be one of steps, cost, time, not 'size'"),
        (["--study.method", "iee"], "unknown key 'study.method'; did you mean 'study.methods'?"),
        (["--study", "iee"], "study is 'iee', but must be a mapping of keys to values"),
        (["--study={vary: {optimizer.lr: 0.1}}"], "study.vary must be a mapping to lists, not {'optimizer.lr': 0.1}"),
    ],
)
def test_what_the_command_line_refuses(recipe_file, tmp_path, capsys, words, said):
    assert main(["compare", str(recipe_file), "--out", str(tmp_path / "out"), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"regrow: {said}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_large_grid_says_so_before_it_starts(recipe_file, tmp_path):
    said = []
    assert check_size({"optimizer.lr": [0.1] * 50, "pattern.sparsity": [0.9] * 2}, 2, 1, said.append) == 200
    assert said == []
    assert check_size({"optimizer.lr": [0.1] * 51, "pattern.sparsity": [0.9] * 2}, 2, 3, said.append) == 612
    assert said == ["this comparison is 612 runs (2 methods × 102 cells × 3 seeds)"]
    vary = {"optimizer.lr": list(range(1, 1001)), "pattern.sparsity": [0.8, 0.9]}
    with pytest.raises(UserError, match=r"would be 102,000 runs .*: at most 100,000"):
        compare(load(recipe_file), tmp_path / "out", ["iee"], list(range(51)), vary=vary, quiet=True)


def test_matched_costs_are_those_of_each_cell(recipe_file, tmp_path):
    recipe = load(recipe_file, ["--steps", "100"])
    vary = {"pattern.sparsity": [0.5, 0.9], "method.h": [3, 12]}
    cells = cells_of(recipe, {"iee": "iee", "dense": "dense"}, vary, apart=True)
    plan = planned(cells, "cost", tmp_path / "none", [0], True)
    steps = {variant.label: variant.recipe.top.steps for variant in plan.variants}
    assert [steps[label] for label in steps if label.startswith("iee")] == [100] * 4
    for sparsity, h in ((0.5, 3), (0.5, 12), (0.9, 3), (0.9, 12)):
        alone = load(recipe_file, ["--steps", "100", "--pattern.sparsity", str(sparsity), "--method.h", str(h)])
        [one] = planned(cells_of(alone, {"dense": "dense"}, {}, True), "cost", tmp_path / "none", [0], True).variants
        assert steps[f"dense, sparsity {sparsity}, h {h}"] == one.recipe.top.steps
    assert len(set(steps.values())) == 5


def test_a_study_runs_without_further_words_and_is_continued(tmp_path, capsys):
    section = "study: {methods: [iee, slow], seeds: [0], vary: {pattern.sparsity: [0.8, 0.9]}}\n"
    path, out = tiny.write(tmp_path, EXTRA + section), tmp_path / "out"
    words = ["compare", str(path), "--out", str(out), "--quiet"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "difference to iee (95%)" in said
    results = json.loads((out / "results.json").read_text())
    labels = ["iee, sparsity 0.8", "slow, sparsity 0.8", "iee, sparsity 0.9", "slow, sparsity 0.9"]
    assert [run["label"] for run in results["runs"]] == labels
    assert [run["variant_of"] for run in results["runs"]] == ["iee", "slow"] * 2
    assert [run["cell"] for run in results["runs"]] == [{"pattern.sparsity": s} for s in (0.8, 0.8, 0.9, 0.9)]
    assert [run["density"] for run in results["runs"]] == pytest.approx([0.2, 0.2, 0.1, 0.1], abs=0.01)
    paired = [row["paired"] and row["paired"]["reference"] for row in results["summary"]]
    assert paired == [None, labels[0], None, labels[2]]
    assert [cell["name"] for cell in results["ranks"]["cells"]] == ["sparsity 0.8", "sparsity 0.9"]
    assert yaml.safe_load((out / "recipe.yaml").read_text())["study"]["vary"] == {"pattern.sparsity": [0.8, 0.9]}
    for part in (out / "recipes").iterdir():
        assert "study" not in yaml.safe_load(part.read_text())
    page = (out / "report.html").read_text()
    assert "Mean rank of each method" in page

    # what is given on the command line is done instead; what is there is kept
    kept = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/results.json")}
    assert len(kept) == 4
    assert main([*words, "--vary", "pattern.sparsity=0.9,0.5", "--methods", "iee", "--seeds", "0,1"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [(run["label"], run["seed"]) for run in results["runs"]] == [
        ("iee, sparsity 0.9", 0), ("iee, sparsity 0.9", 1), ("iee, sparsity 0.5", 0), ("iee, sparsity 0.5", 1),
    ]  # fmt: skip
    assert "ranks" not in results
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert len(list(out.glob("runs/*/results.json"))) == 7

    # a variant whose other options have changed is not mixed with what is there
    assert main([*words, "--compare.slow.interval", "9"]) == 2
    assert "method.interval of slow, sparsity 0.8 differs from the runs" in capsys.readouterr().err


def test_a_grid_that_was_killed_is_continued(tmp_path, recipe_file):
    out = tmp_path / "out"
    words = [sys.executable, "-m", "regrow", "compare", str(recipe_file), "--methods", "static", "--seeds", "0"]
    words += ["--vary", "optimizer.lr=0.05,0.1", "--vary", "steps=200", "--out", str(out), "--quiet", "--jobs", "1"]
    words += ["--train.log_every", "10", "--data.val_fraction", "0"]
    process = subprocess.Popen(words, start_new_session=True)
    first, second = (out / "runs" / f"static+lr-{lr}+steps-200-seed0" for lr in ("0.05", "0.1"))
    deadline = time.monotonic() + tiny.PATIENCE
    while not (first / "metrics.jsonl").exists() or not (first / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    while (first / ".lock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (first / "checkpoint" / "state.pt").exists()
    assert not second.exists()
    done = subprocess.run(words, capture_output=True, text=True, timeout=tiny.PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    for run in (first, second):
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps)
        assert steps[-1] == 200
