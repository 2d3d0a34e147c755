"""Comparisons matched by time: lengths from known times of steps, dense starts, refusals, and what is kept."""

import dataclasses
import json

import pytest
import yaml

import tiny_recipe as tiny
from regrow import UserError
from regrow.cli import main
from regrow.plan import StepTimes, planned_seconds
from regrow.study import comparison as comparing
from regrow.study import equal_time, planning, starts
from regrow.study.grid import cells_of
from regrow.training.recipe import load, with_method
from regrow.training.run import method_of

pytestmark = pytest.mark.usefixtures("one_server")

TIMES = StepTimes(0.10, 0.05, 0.06, 0.11, 0.01, 0.2, 0.1, 0.15, 0.4)
EXTRA = "compare: {halp: {prunings: 3, interval: 3}, long: {name: halp, prunings: 30, interval: 40}}\n"


@pytest.fixture
def measured(monkeypatch):
    """The times that are measured; and of which recipes they are, in turn."""
    asked = []

    def measure(recipes, table):
        asked.append(recipes)
        return [TIMES for _ in recipes]

    monkeypatch.setattr(equal_time, "measure", measure)
    return asked


def recipe_of(tmp_path, *words):
    return load(tiny.write(tmp_path, EXTRA), [*tiny.CHANNELS, *words])


def planned(tmp_path, recipe, labels, seeds=(0,), vary=None):
    cells = cells_of(recipe, {label: label for label in labels}, vary or {}, apart=True)
    return planning.planned(cells, "time", tmp_path / "out", list(seeds), True)


def read(path):
    return json.loads(path.read_text())


def test_lengths_in_equal_time(tmp_path, measured):
    recipe = recipe_of(tmp_path, "--schedule.name", "multistep", "--schedule.milestones", "2,0.5")
    plan = planned(tmp_path, recipe, ["iee", "uniform", "static", "dense", "halp"])
    found = {variant.label: variant.recipe for variant in plan.variants}
    budget = planned_seconds(*method_of(recipe), TIMES, 30)
    # h, j, q = 3, 2, 3: two updates by step 22, which prune to 0.7 and about 0.85 of the target
    assert budget == pytest.approx(2 * (3 * 0.07 + 3 * 0.11 + 0.45) + 2 * (0.04 + 0.05) + 14 * 0.06, rel=0.05)
    assert found["iee"].top.steps == 30
    assert found["uniform"].top.steps == found["static"].top.steps == round(budget / 0.05)
    assert found["dense"].top.steps == round(budget / 0.10)
    for label, variant in found.items():
        spent = planned_seconds(*method_of(variant), TIMES, variant.top.steps)
        assert variant.train.planned_seconds == pytest.approx(spent)
        assert spent == pytest.approx(budget, abs=0.05), label  # half a dense step
        assert variant.train.cost_steps == 30
    stretch = found["uniform"].top.steps / 30
    assert found["uniform"].schedule.milestones == pytest.approx((2 * stretch, 0.5))
    [together] = measured
    assert [one.pattern.solver for one in together] == ["joint"]
    assert len(plan.times) == 1


def test_what_ranks_in_another_way_is_measured_beside(tmp_path, measured):
    words = ["--compare.halp.recipe.pattern.solver", "grouped"]
    plan = planned(tmp_path, recipe_of(tmp_path, *words), ["iee", "halp", "dense"])
    [together] = measured
    assert [one.pattern.solver for one in together] == ["joint", "grouped"]
    assert len(plan.times) == 2


def test_a_grid_has_a_budget_in_each_cell(tmp_path, measured):
    recipe = recipe_of(tmp_path)
    plan = planned(tmp_path, recipe, ["uniform", "dense"], vary={"steps": [30, 60], "pattern.flops": [0.4, 0.5]})
    steps = {(v.of, *v.cell.values()): v.recipe.top.steps for v in plan.variants}
    budgets = [planned_seconds(*method_of(recipe), TIMES, n) for n in (30, 60)]
    for i, n in enumerate((30, 60)):
        for flops in (0.4, 0.5):
            assert steps["uniform", n, flops] == round(budgets[i] / 0.05)
            assert steps["dense", n, flops] == round(budgets[i] / 0.10)
    assert len(measured) == len(plan.times) == 2  # one for each budget


def a_run(directory, recipe, steps=10, **changes):
    directory.mkdir(parents=True)
    entry = {"method": "dense", "seed": 0, "steps": steps, **changes}
    (directory / "results.json").write_text(json.dumps({"recipe": recipe.resolved(), "runs": [entry]}))
    return directory


def test_a_dense_start_counts(tmp_path, measured):
    dense = with_method(recipe_of(tmp_path, "--optimizer.lr", "0.2"), "dense")
    a_run(tmp_path / "dense", dense)
    plain = recipe_of(tmp_path)
    recipe = recipe_of(tmp_path, "--model.weights", str(tmp_path / "dense"))
    assert starts.dense_steps(plain, [0, 1]) == 0
    assert starts.dense_steps(recipe, [0, 1]) == 10
    assert starts.dense_steps(recipe_of(tmp_path, "--model.weights", str(tmp_path / "dense" / "model")), [0]) == 10
    times = dict.fromkeys(map(equal_time.key_of, (plain, with_method(plain, "halp"))), TIMES)
    budget = equal_time.budget_of(plain, times, 30, [0])
    assert equal_time.budget_of(recipe, times, 30, [0]) == pytest.approx(budget + 10 * 0.10)

    class Example:
        total_steps, steps_per_epoch, cost_steps = 30, 9.0, 30

    found = equal_time.in_time(with_method(recipe, "uniform"), times, budget, [0], Example)
    assert found.top.steps == round((budget - 1.0) / 0.05)
    assert found.train.planned_seconds == pytest.approx(found.top.steps * 0.05)
    with pytest.raises(
        UserError, match=r"^the 10 dense steps that it builds on take 1 seconds, but the budget is 0\.9:"
    ):
        equal_time.in_time(recipe, times, 0.9, [0], Example)


def test_a_teacher_was_trained_too(tmp_path, measured):
    plain = recipe_of(tmp_path)
    a_run(tmp_path / "dense", with_method(plain, "dense"))
    a_run(tmp_path / "other", with_method(plain, "dense"), steps=7)
    taught = recipe_of(tmp_path, "--distill.teacher", str(tmp_path / "dense"))
    assert starts.dense_steps(taught, [0]) == 10
    for weights, steps in (("dense/model", 10), ("other", 17)):  # one run counts once
        both = recipe_of(
            tmp_path, "--distill.teacher", str(tmp_path / "dense"), "--model.weights", str(tmp_path / weights)
        )
        assert starts.dense_steps(both, [0]) == steps
    slow = dataclasses.replace(TIMES, dense=0.13, thin=0.09, even=0.08)  # with forward passes of a teacher
    times = {equal_time.key_of(plain): TIMES, equal_time.key_of(taught): slow}
    equal_time.complete(times, {"taught": taught}, None, True)
    assert measured == []  # all of it is known
    budget = equal_time.budget_of(taught, times, 30, [0])
    assert budget == pytest.approx(planned_seconds(*method_of(taught), slow, 30) + 10 * 0.10)
    a_run(tmp_path / "pupil", with_method(taught, "dense"))
    with pytest.raises(UserError, match=r"^distill\.teacher: .*pupil was trained with another distill, so"):
        starts.dense_steps(recipe_of(tmp_path, "--distill.teacher", str(tmp_path / "pupil")), [0])


def test_starts_of_unknown_time(tmp_path):
    dense = with_method(recipe_of(tmp_path), "dense")
    a_run(tmp_path / "d0", dense)
    a_run(tmp_path / "d1", dense, steps=20)
    a_run(tmp_path / "iee", dense, method="iee")
    a_run(tmp_path / "batch", with_method(recipe_of(tmp_path, "--data.batch_size", "8"), "dense"))
    a_run(tmp_path / "again", with_method(recipe_of(tmp_path, "--model.weights", "x"), "dense"))
    (tmp_path / "tensors.pt").write_bytes(b"")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "results.json").write_text('{"runs": [')
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "results.json").write_text('{"runs": []}')
    for name, said in (
        ("d{seed}", "the runs of seeds 0 and 1 have 10 and 20 steps, but all must have the same"),
        ("tensors.pt", "is no finished run of regrow, so nobody knows how long its training took: name the dir"),
        ("nowhere", "is no finished run of regrow"),
        ("iee", "was trained by iee, and only steps of dense training are known to take as long as here: name"),
        ("batch", "was trained with another data.batch_size, so its steps take another time than here: train"),
        ("again", "was trained with another model.weights, so"),
        ("cut", "is not valid JSON"),
        ("two", "is not of one run: name the directory"),
    ):
        recipe = recipe_of(tmp_path, "--model.weights", str(tmp_path / name))
        with pytest.raises(UserError, match=said) as raised:
            starts.dense_steps(recipe, [0, 1])
        assert "--match steps" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_what_cannot_be_matched_by_time(tmp_path, measured):
    weights = load(tiny.write(tmp_path))
    masked = recipe_of(tmp_path, "--pattern.thin", "false")
    for recipe, labels, said in (
        (weights, ["iee"], r"^--match time is for thin channels: with pattern weights, steps under masks take as long"),
        (masked, ["iee"], r"^--match time is for thin channels: with pattern\.thin=false, .* use --match steps"),
        (recipe_of(tmp_path), ["iee", "long"], r"^long: halp cannot be matched: its shortest run of 1200 steps takes"),
        (
            recipe_of(tmp_path, "--compare.halp.recipe.model.weights", "x"),
            ["halp"],
            r"^halp: model\.weights: x does not",
        ),
    ):
        with pytest.raises(UserError, match=said):
            comparing.compare(recipe, tmp_path / "out", labels, [0], quiet=True, match="time")
    with pytest.raises(
        UserError, match=r"^--match cost cannot be planned for channels.*use --match time, or --match st"
    ):
        comparing.compare(recipe_of(tmp_path), tmp_path / "out", ["iee"], [0], quiet=True, match="cost")
    assert not (tmp_path / "out").exists()


def test_a_comparison_and_its_continuation(tmp_path, measured, monkeypatch, capsys):
    monkeypatch.setattr("regrow.training.speed._SECONDS", 0.1)
    out, path = tmp_path / "out", tiny.write(tmp_path, EXTRA + "study: {match: time, methods: [iee, uniform]}\n")
    words = ["compare", str(path), *tiny.CHANNELS, "--out", str(out), "--seeds"]
    assert main([*words, "0"]) == 0
    said, err = capsys.readouterr()
    assert err == "regrow: measuring how long training steps take on this machine ...\n"
    assert "matched by training time" in said
    for heading in ("planned", "trained", "steps"):
        assert f" {heading} " in said
    recipe = load(path, tiny.CHANNELS)
    budget = planned_seconds(*method_of(recipe), TIMES, 30)
    runs = {run["label"]: run for run in read(out / "results.json")["runs"]}
    assert {label: run["steps"] for label, run in runs.items()} == {"iee": 30, "uniform": round(budget / 0.05)}
    assert runs["iee"]["planned_seconds"] == pytest.approx(budget)
    assert runs["uniform"]["train_seconds"] > 0
    page = (out / "report.html").read_text()
    assert "Matched by training time" in page
    kept = (out / "step_times.json").read_bytes()

    # measured only once; another method has the same budget
    monkeypatch.setattr(equal_time, "measure", None)
    (out / "runs" / "uniform-seed0" / "results.json").unlink()
    assert main([*words, "0", "--methods", "iee,uniform,dense"]) == 0
    assert capsys.readouterr().err == ""
    assert (out / "step_times.json").read_bytes() == kept
    again = {run["label"]: run["steps"] for run in read(out / "results.json")["runs"]}
    assert again == {"iee": 30, "uniform": round(budget / 0.05), "dense": round(budget / 0.10)}
    assert yaml.safe_load((out / "recipes" / "dense.yaml").read_text())["steps"] == again["dense"]

    assert main([*words, "0", "--match", "steps"]) == 2
    assert capsys.readouterr().err.startswith("regrow: --match differs from the runs")
    (out / "step_times.json").write_text("{")
    assert main([*words, "0"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"regrow: {out}/step_times.json is not valid JSON")
    assert err.count("\n") == 1
