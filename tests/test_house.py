"""What the house rules refuse: arrows upwards, circles, names that mean two things, what is too long."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("house", ROOT / "tools" / "house.py")
assert _spec is not None
assert _spec.loader is not None
house = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(house)


@pytest.fixture
def tree(tmp_path):
    """A copy of the sources and of the rules about them."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def arrows(tree: Path) -> str:
    """What `lint-imports` has against it."""
    words = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    found = subprocess.run(words, cwd=tree, env={"PYTHONPATH": str(tree / "src")}, capture_output=True, text=True)
    return "" if found.returncode == 0 else " ".join(found.stdout.split())


UPWARDS = {
    "selection.py": ("regrow.training.loop", "regrow.selection is not allowed to import regrow.training"),
    "patterns/nm.py": ("regrow.sparsifier", "regrow.patterns is not allowed to import regrow.sparsifier"),
    "training/loop.py": ("regrow.study.pool", "regrow.training is not allowed to import regrow.study"),
    "budgets/terms.py": ("regrow.budgets.pricing", "No cycles are allowed in regrow.budgets"),
}


def test_arrows_upwards_and_circles_are_refused(tree):
    assert arrows(tree) == ""
    for file, (imported, _) in UPWARDS.items():
        path = tree / "src" / "regrow" / file
        path.write_text(path.read_text() + f"\nimport {imported}\n")
    found = arrows(tree)
    assert [said for _, said in UPWARDS.values() if said not in found] == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("zoo/more.py", "class Sparsifier:\n    pass\n",
         "the class name Sparsifier is in sparsifier.py and in zoo/more.py"),
        ("data/state.py", "", "the file name state.py is in data/state.py and in state.py"),
        ("zoo/more.py", "x = 1\n" * 401, "zoo/more.py has 401 lines, more than 400"),
        ("zoo/more.py", "def f():\n" + "    x = 1\n" * 60, "zoo/more.py: f has 61 lines, more than 60"),
    ],
)  # fmt: skip
def test_names_that_mean_two_things_and_what_is_too_long_are_refused(tree, file, text, said):
    (tree / "src" / "regrow" / file).write_text(text)
    assert said in list(house.faults(tree / "src" / "regrow"))


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them all as modules of their own names, so that the second of two would not be collected."""
    files = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in files.items() if count > 1] == []
