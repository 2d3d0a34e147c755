"""The examples run, and what they print is so."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_a_trained_model_becomes_an_onnx_file_of_half_the_flops(tmp_path, monkeypatch, capsys):
    run("trained_to_onnx.py", monkeypatch, "--model", "test_resnet", "--epochs", "1", "--out", str(tmp_path))
    _, *rows = capsys.readouterr().out.splitlines()
    dense, thin = ([float(number.replace(",", "")) for number in re.findall(r" ([\d,.]+)", row)] for row in rows)
    assert [row.split()[0] for row in rows] == ["dense.onnx", "thin.onnx"]
    assert dense[1] == 373_370 > 2 * thin[1]
    assert thin[2] <= dense[2] / 2
    for row, name in zip((dense, thin), ("dense.onnx", "thin.onnx"), strict=True):
        assert round((tmp_path / name).stat().st_size / 1e6, 1) == row[3]
    assert 50 < dense[0] <= thin[0]  # it has been trained twice as long


def test_the_notebook_runs_from_top_to_bottom(capsys):
    """Its cells one after the other, without a kernel; and it is committed without what one has printed."""
    cells = json.loads((EXAMPLES / "start.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"]] == []
    names: dict[str, object] = {}
    figures = []
    for number, cell in enumerate(code):
        source = "".join(cell["source"])
        exec(compile(source, f"start.ipynb, cell {number}", "exec"), names)
        if source.endswith("\nfigure"):
            figures.append([list(trace.y) for trace in names["figure"].data])
    accuracies, densities, grown = figures
    dense, sparse = (curve[-1] for curve in accuracies)
    assert dense > 0.9
    assert sparse > 0.9
    assert [len(curve) for curve in accuracies] == [12, 12]
    assert densities == [list(names["density"].values())]
    assert names["sparsifier"].density() == 0.1
    assert len(grown[0]) == len(names["sparsifier"].history) > 5
    said = capsys.readouterr().out
    assert f"dense: {dense:.1%} of the test images right" in said
    assert f"{sparse:.1%} of the test images right, as before" in said


def test_a_loop_of_ones_own_ends_with_the_density_that_was_asked_for(monkeypatch, capsys):
    run("own_loop.py", monkeypatch)
    said = capsys.readouterr().out
    accuracy, density = re.findall(r"accuracy ([\d.]+)% with ([\d.]+)% of the weights", said)[0]
    assert float(density) == 5.0
    assert float(accuracy) > 90
