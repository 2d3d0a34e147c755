"""The documents say what the committed results say."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_tables_of_the_studies_are_made_of_the_committed_results() -> None:
    spec = importlib.util.spec_from_file_location("study_tables", ROOT / "benchmarks" / "study_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = tables.STUDIES.read_text(encoding="utf-8")
    assert tables.filled(text) == text


def test_dotted_names_work_after_import_regrow() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    names = sorted(set(re.findall(r"\bregrow(?:\.[A-Za-z_][A-Za-z_0-9]*)+", text)) - {"regrow.db"})
    assert "regrow.channels.coupling.couple" in names
    code = "import regrow\n" + "\n".join(names)  # in a process that has imported nothing else of it
    subprocess.run([sys.executable, "-c", code], check=True)
