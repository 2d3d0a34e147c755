"""The examples run, and what they print is so."""

from __future__ import annotations

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


def test_a_loop_of_ones_own_ends_with_the_density_that_was_asked_for(monkeypatch, capsys):
    run("own_loop.py", monkeypatch)
    said = capsys.readouterr().out
    accuracy, density = re.findall(r"accuracy ([\d.]+)% with ([\d.]+)% of the weights", said)[0]
    assert float(density) == 5.0
    assert float(accuracy) > 90
