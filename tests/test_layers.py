"""Imports run downwards only: the contract of pyproject.toml holds, and notices what is planted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECK = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def linted(directory: Path) -> subprocess.CompletedProcess[str]:
    """What the linter says of the sources in a directory. It is told where they are, so that no others are read."""
    code = f"import sys; sys.path.insert(0, {str(directory / 'src')!r}); {CHECK}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=directory, check=False)


@pytest.mark.parametrize(
    ("module", "upward"),
    [("", ""), ("regrow.state", "regrow.cli"), ("regrow.budgets.knapsack", "regrow.sparsifier"),
     ("regrow.methods.set", "regrow.zoo.models")],
)  # fmt: skip
def test_an_import_upwards_is_noticed(tmp_path: Path, module: str, upward: str) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if module:
        path = (tmp_path / "src").joinpath(*module.split(".")).with_suffix(".py")
        path.write_text(path.read_text(encoding="utf-8") + f"\n\ndef planted():\n    import {upward}\n")
    done = linted(tmp_path)
    assert done.returncode == bool(module), done.stdout
    assert (f"{module} -> {upward}" in done.stdout) == bool(module)
