"""The documentation as a site: all pages are there, links lead somewhere, nothing is fetched."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import regrow

ROOT = Path(__file__).parent.parent
pytest.importorskip("mkdocs", reason="needs the extra docs: pip install '.[docs]'")
pytest.importorskip("mkdocstrings", reason="needs the extra docs: pip install '.[docs]'")


def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "tools" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_is_built_without_a_warning_and_asks_no_network_for_anything(tmp_path: Path) -> None:
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    fetched = [
        (page.name, url)
        for page in pages
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text(encoding="utf-8"))
        for url in re.findall(r'(?:src|href)="(https?:[^"]*|//[^"]*)"', tag)
    ]
    assert fetched == []
    names = {page.relative_to(tmp_path / "site").as_posix() for page in pages}
    assert {f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md")} | {"index.html", "changelog.html"} <= names
    weights = (tmp_path / "site" / "reference" / "patterns.html").read_text(encoding="utf-8")
    assert "share of these weights that is removed" in weights
    assert (tmp_path / "site" / "repository" / "tests" / "strange.py").read_bytes() == (
        ROOT / "tests/strange.py"
    ).read_bytes()
    search_in_a_browser(tmp_path / "site")


def search_in_a_browser(site: Path) -> None:
    """Also where the site is opened as files."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=60000"]
    words = [browser, *flags, "--dump-dom", f"file://{site}/index.html?q=knapsack"]
    page = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert re.search(r"\d+ matching documents", page)


def test_the_reference_lists_every_public_name() -> None:
    shown = [path for _, paths in hook().REFERENCE.values() for path in paths]
    assert len(shown) == len(set(shown))
    assert {path.removeprefix("regrow.") for path in shown if path.count(".") == 1} >= set(regrow.__all__)


@pytest.mark.parametrize(
    ("source", "page", "link", "expected"),
    [
        ("docs/scan.md", "scan.md", "[x](methods.md#iee)", "[x](methods.md#iee)"),
        ("docs/scan.md", "scan.md", "[x](../README.md#install)", "[x](index.md#install)"),
        ("docs/scan.md", "scan.md", "[x](../tests/strange.py)", "[x](repository/tests/strange.py)"),
        ("docs/scan.md", "scan.md", "[x](../studies) and ![y](z.svg)", "x and ![y](z.svg)"),
        ("README.md", "index.md", "[docs/scan.md](docs/scan.md)", "[scan.md](scan.md)"),
        ("README.md", "index.md", "[x](https://arxiv.org/abs/1)", "[x](https://arxiv.org/abs/1)"),
    ],
)
def test_links_of_the_repository_are_those_of_the_site(source: str, page: str, link: str, expected: str) -> None:
    made = hook()
    assert made._LINK.sub(lambda match: made._rewritten(match, source, page), link) == expected
