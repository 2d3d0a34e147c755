"""What `tools/release_check.sh` asks about files: what wheel and sdist hold, and what the README's first Python is.

    python tools/release_contents.py dist
    python tools/release_contents.py --readme

The first prints what is missing or too much, a line each, and ends with 1 if anything is.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# folders whose files must be in both, as they are no Python: recipes, the templates of the report
DATA = ("src/regrow/recipes", "src/regrow/report/templates")
ALSO = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tests/conftest.py", "docs/start.md", "Makefile")
NEVER = (".venv/", "site/", "__pycache__", ".git/", "runs/")


def faults(dist: Path) -> Iterator[str]:
    """Sentences about what is missing in a directory of a wheel and an sdist, or does not belong there."""
    wheels, sdists = list(dist.glob("*.whl")), list(dist.glob("*.tar.gz"))
    if (len(wheels), len(sdists)) != (1, 1):
        yield f"{dist} holds {len(wheels)} wheels and {len(sdists)} sdists, not one of each"
        return
    with zipfile.ZipFile(wheels[0]) as archive:
        wheel = set(archive.namelist())
    with tarfile.open(sdists[0]) as archive:
        names = archive.getnames()
        sdist = {name.partition("/")[2] for name in names}
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".typed")}
    here |= {
        path.relative_to(ROOT).as_posix() for folder in DATA for path in (ROOT / folder).iterdir() if path.is_file()
    }
    for name in sorted(here):
        if name.removeprefix("src/") not in wheel:
            yield f"the wheel lacks {name}"
        if name not in sdist:
            yield f"the sdist lacks {name}"
    yield from (f"the sdist lacks {name}" for name in ALSO if name not in sdist)
    for name in sorted(wheel | sdist):
        if any(part in f"{name}/" for part in NEVER):
            yield f"{name} does not belong there"
    yield from (f"{name} of the wheel is no part of regrow" for name in wheel if not name.startswith("regrow"))


def first_python(readme: str) -> str:
    """The first Python of a document."""
    found = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    return found[1] if found else ""


if __name__ == "__main__":
    if sys.argv[1] == "--readme":
        print(first_python((ROOT / "README.md").read_text(encoding="utf-8")))
        sys.exit()
    said = list(faults(Path(sys.argv[1])))
    print(*said, sep="\n", end="\n" if said else "")
    sys.exit(1 if said else 0)
