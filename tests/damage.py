"""What can happen to a saved model on disk: each gives a function that does it to the directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regrow import schema, storage

Damage = Callable[[Path], object]


def edit(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The manifest is changed in place by somebody who makes a new checksum too."""

    def damage(directory: Path) -> None:
        path = directory / storage.MANIFEST
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(schema.seal(manifest)))

    return damage


def truncate(name: str, keep: float = 0.5) -> Damage:
    """A file loses its end."""

    def damage(directory: Path) -> None:
        path = directory / name
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    return damage
