"""Checks the house rules that no other linter knows: one name for one thing, and nothing too long to be read.

    python tools/house.py src/regrow

Prints what breaks them, a line each, and ends with 1 if anything does.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

MODULE_LINES, FUNCTION_LINES = 400, 60
HOSTS = {"RegrowCallback"}  # each host of regrow/integrations has one, and its users know no other


def faults(root: Path) -> Iterator[str]:
    """Sentences about the Python files below a folder: names that occur twice, and what is too long."""
    classes: dict[str, list[str]] = defaultdict(list)
    files: dict[str, list[str]] = defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        where = str(path.relative_to(root))
        text = path.read_text(encoding="utf-8")
        if not path.stem.startswith("__"):
            files[path.name].append(where)
        if (lines := text.count("\n")) > MODULE_LINES:
            yield f"{where} has {lines} lines, more than {MODULE_LINES}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name not in HOSTS:
                classes[node.name].append(where)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    yield f"{where}: {node.name} has {length} lines, more than {FUNCTION_LINES}"
    for kind, found in (("class", classes), ("file", files)):
        for name, places in found.items():
            if len(places) > 1:
                yield f"the {kind} name {name} is in {' and in '.join(places)}"


if __name__ == "__main__":
    said = list(faults(Path(sys.argv[1])))
    print(*said, sep="\n", end="\n" if said else "")
    sys.exit(1 if said else 0)
