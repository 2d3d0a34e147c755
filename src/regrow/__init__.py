"""regrow: make PyTorch models sparse while they train.

>>> import regrow
>>> sorted(regrow.methods.METHODS)
['dense', 'gmp', 'halp', 'iee', 'oneshot', 'rigl', 'set', 'static', 'uniform']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from regrow.lazy import submodules

if TYPE_CHECKING:
    from regrow.batchnorm import recalibrate
    from regrow.errors import UserError
    from regrow.methods import GMP, HALP, IEE, SET, Dense, OneShot, RigL, Static, Uniform
    from regrow.patterns import Channels, Weights
    from regrow.schedule import Budget
    from regrow.sparsifier import Sparsifier
    from regrow.storage import load, save

__version__ = "0.1.0"

# Public names by the module that has them, imported when they are first asked for: `regrow --help` answers at once.
_HOMES = {
    "errors": ["UserError"],
    "methods": ["GMP", "HALP", "IEE", "SET", "Dense", "OneShot", "RigL", "Static", "Uniform"],
    "patterns": ["Channels", "Weights"],
    "batchnorm": ["recalibrate"],
    "schedule": ["Budget"],
    "sparsifier": ["Sparsifier"],
    "storage": ["load", "save"],
}

__all__ = [
    "GMP",
    "HALP",
    "IEE",
    "SET",
    "Budget",
    "Channels",
    "Dense",
    "OneShot",
    "RigL",
    "Sparsifier",
    "Static",
    "Uniform",
    "UserError",
    "Weights",
    "load",
    "recalibrate",
    "save",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"regrow.{home}"), name)
            globals()[name] = value
            return value
    return submodules(__name__)(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
