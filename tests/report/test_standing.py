"""The diagram of ranks, its table, and where they are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_compare

from regrow.report import standing
from regrow.report.page import record, write
from regrow.report.parts import Cell
from regrow.report.runs import RunRecord, read
from regrow.training.ranks import ranking

RANKS = {"one": {"iee": 0.9, "rigl": 0.8, "set": 0.8}, "two": {"iee": 0.7, "rigl": 0.6, "set": 0.5}}


def write_grid(directory: Path, methods: list[str], sparsities: list[float]) -> Path:
    """A comparison whose runs are of a grid: a seed for each sparsity."""
    write_compare(directory, methods, list(range(len(sparsities))), steps=50)
    path = directory / "results.json"
    content = json.loads(path.read_text())
    for run in content["runs"]:
        sparsity = sparsities[run["seed"]]
        run |= {"variant_of": run["method"], "cell": {} if run["method"] == "dense" else {"pattern.sparsity": sparsity}}
    path.write_text(json.dumps(content))
    return directory


def test_the_diagram_holds_the_numbers() -> None:
    found = ranking(RANKS)
    assert found is not None
    figure = standing.diagram(found, standing.looks({"iee": "iee", "rigl": "rigl", "set": "set"}))
    rings, means = figure.data[::2], figure.data[1::2]
    assert [list(ring.x) for ring in rings] == [[1.0], [2.5, 2.0], [2.5, 3.0]]
    assert [mean.x for mean in means] == [(1.0,), (2.25,), (2.75,)]
    assert [mean.error_x.array[0] for mean in means] == [0.0, pytest.approx(0.125**0.5), 0.25]  # no rank is beyond 3
    assert list(figure.layout.yaxis.ticktext) == ["IEE", "RigL", "SET"]
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # the best on top
    assert [note.text for note in figure.layout.annotations] == ["1.00 ± 0.00", "2.25 ± 0.35", "2.75 ± 0.35"]
    assert rings[0].customdata[0] == "IEE<br>rank 1 in 2 of 2<br>one<br>two"
    assert rings[0].marker.size[0] > rings[1].marker.size[0]


def test_labels_are_escaped() -> None:
    found = ranking({cell: {"<b>": 0.5, "iee": 0.4} for cell in ("<i>", "x")})
    assert found is not None
    text = standing.diagram(found, standing.looks({"<b>": "rigl", "iee": "iee"})).to_json()
    assert "<b>" not in text.replace("\\u003c", "<")
    assert "<i>" not in text.replace("\\u003c", "<")


def test_a_grid(tmp_path: Path) -> None:
    page = write(
        [write_grid(tmp_path / "grid", ["iee", "rigl", "dense"], [0.8, 0.9])], tmp_path / "page.html"
    ).read_text()
    assert "Mean rank of each method" in page
    runs = read([tmp_path / "grid"]).runs
    assert [(run.variant_of, run.cell) for run in runs][:2] == [
        ("iee", {"pattern.sparsity": 0.8}), ("iee", {"pattern.sparsity": 0.9}),
    ]  # fmt: skip
    table = standing.table([record(run) for run in runs], [])
    assert table is not None
    content = table.content
    assert content.columns == ["Cell", "IEE", "RigL", "Dense"]
    assert [row[0] for row in content.rows] == ["sparsity 0.8", "sparsity 0.9", "Mean rank"]
    assert [[cell.dim for cell in row[1:3]] for row in content.rows] == [["1", "2"], ["1", "2"], ["± 0.00"] * 2]
    assert [cell.strong for cell in content.rows[0][1:3]] == [True, False]
    assert content.rows[2][1:] == [Cell("1.00", "± 0.00"), Cell("2.00", "± 0.00"), "–"]


def test_several_comparisons(tmp_path: Path) -> None:
    places = [write_compare(tmp_path / name, ["iee", "rigl"], [0], steps=50) for name in ("digits", "cifar")]
    runs = read(places).runs
    assert [(run.label, run.variant_of, run.place) for run in runs] == [
        ("iee", None, "digits"), ("rigl", None, "digits"), ("iee (cifar)", "iee", "cifar"),
        ("rigl (cifar)", "rigl", "cifar"),
    ]  # fmt: skip
    records = [record(run) for run in runs]
    drawing, table = standing.drawing(records), standing.table(records, [])
    assert drawing is not None
    assert table is not None
    assert "over the 2 comparisons that all methods have" in drawing.caption
    assert (table.content.columns[0], [row[0] for row in table.content.rows]) == (
        "Comparison", ["digits", "cifar", "Mean rank"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("methods", "seeds", "more"),
    [
        (["iee", "rigl"], [0, 1], []),
        (["iee"], [0], ["iee"]),
        (["iee", "rigl"], [0], ["static"]),
        (["iee"], [0], ["dense"]),
    ],
)
def test_nothing_is_shown_of_one_cell_or_one_method(
    tmp_path: Path, methods: list[str], seeds: list[int], more: list[Any]
) -> None:
    places = [write_compare(tmp_path / "one", methods, seeds, steps=50)]
    places += [write_compare(tmp_path / "two", more, seeds, steps=50)] if more else []
    assert "Mean rank of each method" not in write(places, tmp_path / "page.html").read_text()


def test_more_seeds_of_a_comparison_are_no_other_place(tmp_path: Path) -> None:
    places = [write_compare(tmp_path / str(seed), ["iee", "rigl"], [seed], steps=50) for seed in (0, 1)]
    runs: tuple[RunRecord, ...] = read(places).runs
    assert {(run.place, run.variant_of) for run in runs} == {("", None)}
