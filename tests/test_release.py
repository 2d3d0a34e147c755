"""What a release is checked for: files that are missing in wheel or sdist, or do not belong there."""

from __future__ import annotations

import io
import runpy
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import regrow
from test_code_in_documents import blocks

ROOT = Path(__file__).parent.parent
MADE = runpy.run_path(str(ROOT / "tools" / "release_contents.py"))


def packed(dist: Path, without: str = "", also: Iterable[str] = ()) -> Path:
    """Archives of empty files by the names that those of a release have."""
    sources = [path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*") if path.is_file()]
    names = [name for name in sources if "__pycache__" not in name and name != without]
    dist.mkdir()
    with zipfile.ZipFile(dist / "regrow-1-py3-none-any.whl", "w") as wheel:
        for name in (*names, *also):
            wheel.writestr(name.removeprefix("src/"), "")
    with tarfile.open(dist / "regrow-1.tar.gz", "w:gz") as sdist:
        for name in (*names, *MADE["ALSO"]):
            sdist.addfile(tarfile.TarInfo(f"regrow-1/{name}"), io.BytesIO())
    return dist


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    faults = MADE["faults"]
    assert list(faults(packed(tmp_path / "whole"))) == []
    for name in ("src/regrow/recipes/digits-iee.yaml", "src/regrow/report/templates/page.html", "src/regrow/py.typed"):
        assert list(faults(packed(tmp_path / name.replace("/", "-"), without=name))) == [
            f"the wheel lacks {name}", f"the sdist lacks {name}",
        ]  # fmt: skip
    found = list(faults(packed(tmp_path / "more", also=["tests/test_cli.py"])))
    assert found == ["tests/test_cli.py of the wheel is no part of regrow"]
    assert "holds 0 wheels and 0 sdists" in next(faults(tmp_path))


def test_the_loop_that_is_tried_is_the_readmes() -> None:
    assert MADE["first_python"]((ROOT / "README.md").read_text(encoding="utf-8")) == blocks("README.md")[0]


def test_there_is_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    path = ROOT / project["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{regrow.__version__}"' in path.read_text(encoding="utf-8")
