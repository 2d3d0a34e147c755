"""The documents say what the committed results say."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import regrow
from regrow.methods import Method

ROOT = Path(__file__).parent.parent
NAMES = {name: getattr(regrow, name) for name in regrow.__all__}


def test_the_tables_of_the_studies_are_made_of_the_committed_results() -> None:
    spec = importlib.util.spec_from_file_location("study_tables", ROOT / "benchmarks" / "study_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = tables.STUDIES.read_text(encoding="utf-8")
    assert tables.filled(text) == text


def test_the_tables_of_exports_are_made_of_the_committed_results() -> None:
    made = runpy.run_path(str(ROOT / "benchmarks" / "export.py"))
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    assert made["filled"](text) == text


def test_dotted_names_work_after_import_regrow() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    names = sorted(set(re.findall(r"\bregrow(?:\.[A-Za-z_][A-Za-z_0-9]*)+", text)) - {"regrow.db"})
    assert "regrow.coupling.couple.couple" in names
    code = "import regrow\n" + "\n".join(names)  # in a process that has imported nothing else of it
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dotted_names_in_the_sources_are_there() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src" / "regrow").rglob("*.py"))
    names = sorted(set(re.findall(r"\bregrow(?:\.[A-Za-z_]\w*)+", text)))
    assert len(names) > 100
    for name in names:
        assert pkgutil.resolve_name(name) is not None, name


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    followed = 0
    for page in pages:
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {link}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                assert heading in [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in titles], link
            followed += 1
    assert followed > 40


def choices(heading: str) -> list[list[str]]:
    """The code in each row of a table of docs/choosing.md."""
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    section = text[text.index(heading) :].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [re.findall(r"`([^`]+)`", row) for row in rows]


def test_what_the_page_of_choice_names_can_be_written_so() -> None:
    calls = [code for heading in ("# Which", "## Steps") for row in choices(heading) for code in row if "(" in code]
    assert len(calls) > 12
    for call in calls:
        made = eval(call, {**NAMES, "n": 2808})
        assert isinstance(made, (regrow.Weights, regrow.Channels, Method)), call


@pytest.mark.parametrize(
    ("call", "steps", "updates"),
    [("IEE(h=n // 56)", 2808, 42), ("GMP(interval=n // 28)", 2808, 21),
     ("HALP(prunings=30, interval=n // 53)", 2106, 30),
     ('IEE(h=n // 26, j=n // 105, q=n // 210, budget=Budget("cosine", 0.1), update_end=0.4)', 2106, 7)],
)  # fmt: skip
def test_numbers_of_steps_make_as_many_updates_as_in_the_studies(call: str, steps: int, updates: int) -> None:
    assert any(call in row for row in choices("## Steps"))
    for times in (1, 3, 40):
        method = eval(call, {**NAMES, "n": steps * times})
        assert method.timeline(steps * times).updates == updates


def test_figures_of_the_page_of_choice_are_those_of_the_studies() -> None:
    studies = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    table = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8").split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    figures = [figure for row in rows for figure in re.findall(r"\b\d+\.\d\b", row.split("|")[-2])]
    assert len(figures) > 12
    assert [figure for figure in figures if figure not in studies] == []
