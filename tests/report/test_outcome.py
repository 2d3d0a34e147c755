"""Sizes, builder, machine, date and failures: from ``results.json`` to the page, and pages of results without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_runs import facts, write_compare, write_run
from test_page import Page

import regrow
import tiny_recipe as tiny
from regrow.cli import main
from regrow.errors import UserError
from regrow.report import panels
from regrow.report.outcome import Facts
from regrow.report.page import write
from regrow.report.panels import parts_of_cost
from regrow.report.runs import read
from regrow.report.style import PHASES
from regrow.zoo.models import build


def page_of(directory: Path) -> Page:
    return Page(write([directory], directory.with_suffix(".html")))


def test_results_from_before_these_fields(tmp_path: Path) -> None:
    directory = write_compare(tmp_path / "old", ["dense", "rigl", "iee"], [0, 1], steps=100)
    assert all(run.facts == Facts() for run in read([directory]).runs)
    page = page_of(directory)
    titles = page.texts["h2"]
    assert "Summary" in titles
    assert not {"Size", "Where and when", "Load this model", "Runs that failed"} & set(titles)
    assert page.text("h1").startswith("IEE reaches 97")


@pytest.mark.parametrize(
    "damage",
    [
        {"parameters": "many", "bytes": None, "model": 3, "environment": [], "finished": 5, "dense_gradients": 1},
        {"model": {"name": "x"}, "environment": {"torch": {"a": 1}}, "finished": "yesterday", "test_images": -1e400},
        {"model": {"name": 3, "options": [], "classes": 0, "shape": []}, "dense_gradients": {"estimate": "x"}},
    ],
)
def test_a_damaged_field_counts_as_missing(tmp_path: Path, damage: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run", "iee", 0, steps=100, said=facts("iee", **damage))
    assert read([run]).runs[0].facts.builder is None
    assert "IEE reaches" in page_of(run).text("h1")


def test_sizes(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / m, m, 0, steps=100, said=facts(m)) for m in ("dense", "iee")]
    thin = facts("static", parameters=30_000, bytes=120_000, saved_bytes=121_000)
    runs.append(write_run(tmp_path / "static", "static", 0, steps=100, said=thin))
    page = Page(write(runs, tmp_path / "r.html"))
    cells = page.texts["td"]
    assert {"70,416 ", "7,042 ", "30,000 "} <= set(cells)
    assert [cells.count(size) for size in ("0.28 MB", "0.29 MB", "0.12 MB", "0.037 MB")] == [2, 1, 2, 1]
    [caption] = [text for text in page.texts["p"] if "torch.save" in text]
    assert "removed weights make its file no smaller" in caption
    assert "Dense:" not in caption
    alone = Page(write(runs[1:2], tmp_path / "alone.html"))
    assert "Dense: 70,416 parameters, 0.28 MB." in alone.text("p")


def test_where_and_when(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", "iee", 0, steps=100, said=facts("iee"))
    other = facts("rigl", finished="2026-11-27T08:00:00Z")
    other["environment"] = other["environment"] | {"device": "NVIDIA H100", "threads": 8}
    second = write_run(tmp_path / "b", "rigl", 0, steps=100, said=other)
    one, both = (Page(write(runs, tmp_path / "r.html")) for runs in ([first], [first, second]))
    values = one.texts["dd"]
    for value in ("0.2.0", "2.14.1", "3.11.7", "CPU", "Fast <Processor>", "2", "2026-11-26 06:27 UTC"):
        assert value in values
    assert "Processes" not in one.texts["dt"]
    assert "2026-11-26" in " ".join(one.texts["span"])
    for value in ("cpu and NVIDIA H100", "2 and 8", "2026-11-26 06:27 UTC to 2026-11-27 08:00 UTC"):
        assert value in both.texts["dd"]
    assert "runs differ" in both.text("p")


TIMM = {"name": "timm:test_resnet", "options": {"pretrained": True, "drop_rate": 0.1}, "classes": 3, "shape": [3, 8, 8]}
MODELS: list[tuple[dict[str, Any], str]] = [
    ({"name": "digits-cnn", "options": {"width": 4}, "classes": 10, "shape": [1, 8, 8]}, "width=4"),
    ({"name": "wrn10-1", "options": {}, "classes": 7, "shape": [3, 16, 16]}, "in_channels=3"),
    (
        {
            "name": "timm:test_resnet",
            "options": {"pretrained": True, "drop_rate": 0.1},
            "classes": 3,
            "shape": [3, 8, 8],
        },
        "drop_rate=0.1",
    ),
]


@pytest.mark.parametrize(("told", "part"), MODELS)
def test_the_lines_that_load_the_model_do(tmp_path: Path, told: dict[str, Any], part: str) -> None:
    run = write_run(tmp_path / 'it\'s "quoted"', "iee", 0, steps=100, said=facts("iee", model=told))
    options = {key: value for key, value in told["options"].items() if key != "pretrained"}
    saved = build(told["name"], told["classes"], told["shape"][0], **options)
    regrow.save(saved, run / "model")
    page = Page(write([run], tmp_path / "r.html"))
    [code] = [text for text in page.texts["code"] if "regrow.load" in text]
    assert part in code
    assert "pretrained" not in code
    found: dict[str, Any] = {}
    exec(code, found)
    loaded = found["model"]
    assert not loaded.training
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_strings_in_the_lines_stay_strings(tmp_path: Path) -> None:
    hostile = '"); import os; os.abort() #</code><img src=x>'
    told = {"name": hostile, "options": {"a b": hostile, "c": None}, "classes": 2, "shape": [1, 2, 2]}
    run = write_run(tmp_path / "run", "iee", 0, steps=100, said=facts("iee", model=told))
    regrow.save(torch.nn.Linear(1, 1), run / "model")
    page = Page(write([run], tmp_path / "r.html"))
    assert not any(tag == "img" for tag, _ in page.tags)
    [code] = [text for text in page.texts["code"] if "regrow.load" in text]
    asked: list[Any] = []
    body = "\n".join(line for line in code.splitlines() if line.startswith("model = "))
    exec(body, {"build": lambda *args, **kwargs: asked.append((args, kwargs))})
    assert asked == [((hostile,), {"num_classes": 2, "in_channels": 1, "c": None, "a b": hostile})]


def test_no_lines_without_a_saved_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "iee", 0, steps=100, said=facts("iee"))
    assert "Load this model" not in page_of(run).texts["h2"]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("iee", {"estimate": 0.013, "improve": 0.023, "explore": 0.22, "fixed": 0.033, "dense gradients": 0.03}),
        ("rigl", {"estimate": 0.09, "fixed": 0.03, "dense gradients": 0.02}),
        ("set", {"estimate": 0.1, "fixed": 0.03}),
        ("dense", {"fixed": 1.0}),
    ],
)
def test_dense_gradients_are_a_part_of_their_own(tmp_path: Path, method: str, expected: dict[str, float]) -> None:
    run = read([write_run(tmp_path / "run", method, 0, steps=100, said=facts(method))]).runs[0]
    assert parts_of_cost(run) == pytest.approx(expected)
    assert sum(parts_of_cost(run).values()) == pytest.approx(run.training_cost)
    drawing = panels._phases(panels.group([run]))
    assert drawing is not None
    assert [trace.name for trace in drawing.figure.data] == [p for p in PHASES if p in expected]
    assert ("Dense gradients: computed for what was removed" in drawing.caption) == ("dense gradients" in expected)


def test_a_part_larger_than_its_phase_is_not_believed(tmp_path: Path) -> None:
    damaged = facts("rigl", dense_gradients={"estimate": 0.5, "nowhere": 0.1})
    run = read([write_run(tmp_path / "run", "rigl", 0, steps=100, said=damaged)]).runs[0]
    assert parts_of_cost(run) == run.by_phase


# ---- failures ----


def fail(directory: Path, **reasons: str) -> Path:
    """The comparison with these runs failed: name with _ for - → what each said."""
    results = json.loads((directory / "results.json").read_text())
    names = {name.replace("_", "-"): said for name, said in reasons.items()}
    failures = [{"run": f"runs/{n}", "reason": f"the run {n} failed: {said}"} for n, said in names.items()]
    (directory / "results.json").write_text(json.dumps(results | {"failures": failures}))
    return directory


def nothing(directory: Path) -> Path:
    """A comparison whose runs left nothing at all."""
    directory.mkdir()
    (directory / "results.json").write_text('{"regrow": "0.2.0", "recipe": {}, "runs": [], "summary": []}')
    (directory / "recipe.yaml").write_text("data: digits\n")
    return directory


@pytest.mark.parametrize(
    ("reasons", "title"),
    [
        ({"iee_seed0": "out of <memory>"}, "The only run failed"),
        ({"iee_seed0": "out of <memory>", "rigl_seed0": "diverged"}, "Both runs failed"),
        ({"a_seed0": "x", "b_seed0": "y", "c_seed0": "out of <memory>"}, "All 3 runs failed"),
    ],
)
def test_a_comparison_of_which_all_runs_failed(tmp_path: Path, reasons: dict[str, str], title: str) -> None:
    page = page_of(fail(nothing(tmp_path / "c"), **reasons))
    assert page.text("h1") == title
    for name, said in reasons.items():
        assert name.replace("_", "-") in page.texts["dt"]
        assert said in page.texts["dd"]
    assert page.texts["h2"] == ["The run that failed" if len(reasons) == 1 else "Runs that failed", "Recipe"]
    assert page.plots() == {}


def test_failed_runs_with_curves_are_drawn_and_called_failed(tmp_path: Path) -> None:
    directory = nothing(tmp_path / "c")
    for method in ("iee", "rigl"):
        write_run(directory / "runs" / f"{method}-seed0", method, 0, steps=100, finished=False)
    page = page_of(fail(directory, iee_seed0="diverged", rigl_seed0="diverged"))
    assert page.text("h1") == "Both runs failed"
    assert "plot-curves" in page.plots()
    assert page.texts["span"].count("failed") == 2
    one = page_of(fail(directory, iee_seed0="diverged"))
    assert one.text("h1") == "No run is finished, and 1 run failed"
    assert (one.texts["span"].count("failed"), one.texts["span"].count("unfinished")) == (1, 1)


def test_some_failed(tmp_path: Path) -> None:
    directory = write_compare(tmp_path / "c", ["rigl", "iee"], [0, 1], steps=100)
    page = page_of(fail(directory, set_seed0="diverged", set_seed1="diverged"))
    assert page.text("h1").startswith("IEE reaches")
    assert any(text.endswith("2 runs failed.") for text in page.texts["p"])
    assert "Runs that failed" in page.texts["h2"]


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        (3, "failures should be a valid list"),
        ({"run": "x"}, "failures should be a valid list"),
        ([3], "failures.0 should be a valid dictionary"),
        ([{}], "failures.0.run is missing"),
        ([{"run": 1, "reason": "x"}], "failures.0.run should be a valid string"),
        ([{"run": "x", "reason": "y"}, {"run": "x"}], "failures.1.reason is missing"),
    ],
)
def test_damaged_failures_are_refused(tmp_path: Path, failures: Any, said: str) -> None:
    directory = nothing(tmp_path / "c")
    (directory / "results.json").write_text(json.dumps({"runs": [], "failures": failures}))
    with pytest.raises(UserError) as caught:
        read([directory])
    assert str(caught.value) == f"{directory / 'results.json'} is damaged: {said}: restore it or delete it"


@pytest.mark.usefixtures("one_server")
def test_a_real_comparison_has_all_of_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["compare", str(tiny.write(tmp_path)), "--methods", "iee,dense", "--seeds", "0", "--quiet"]
    assert main([*words, "--out", str(out)]) == 0
    page = Page(out / "report.html")
    assert {"Size", "Where and when", "Load this model"} <= set(page.texts["h2"])
    assert "Runs that failed" not in page.texts["h2"]
    assert torch.__version__ in page.texts["dd"]
    [code] = [text for text in page.texts["code"] if "regrow.load" in text]
    found: dict[str, Any] = {}
    exec(code, found)
    first = next(run for run in read([out]).runs if run.label == "iee")
    assert sum(int((p != 0).sum()) for p in found["model"].parameters()) == first.facts.parameters
