"""regrow: make PyTorch models sparse while they train.

>>> import regrow
>>> regrow.Weights(0.9, "erk").sparsity
0.9
>>> "rigl" in regrow.methods.METHODS
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from regrow.lazy import submodules
from regrow.version import __version__ as __version__

if TYPE_CHECKING:
    from regrow.batchnorm import recalibrate
    from regrow.errors import UserError
    from regrow.exporting.exports import export
    from regrow.exporting.semi_structured import to_semi_structured
    from regrow.methods import (
        ACDC,
        DSR,
        GMP,
        HALP,
        IEE,
        MEST,
        SET,
        SNFS,
        SRSTE,
        STE,
        Chase,
        Dense,
        GaP,
        GraNet,
        OneShot,
        RigL,
        Static,
        Uniform,
    )
    from regrow.patterns import NM, Blocks, Channels, Weights
    from regrow.scanning import scan
    from regrow.schedule import Budget
    from regrow.sensitivity import Scan
    from regrow.sparsifier import Sparsifier
    from regrow.storage import load, load_tensors, save


# Public names by the module that has them, imported when they are first asked for: `regrow --help` answers at once.
_HOMES = {
    "errors": ["UserError"],
    "methods": [
        "ACDC",
        "DSR",
        "GMP",
        "HALP",
        "IEE",
        "MEST",
        "SET",
        "SNFS",
        "SRSTE",
        "STE",
        "Chase",
        "Dense",
        "GaP",
        "GraNet",
        "OneShot",
        "RigL",
        "Static",
        "Uniform",
    ],  # fmt: skip,
    "patterns": ["NM", "Blocks", "Channels", "Weights"],
    "batchnorm": ["recalibrate"],
    "exporting.exports": ["export"],
    "exporting.semi_structured": ["to_semi_structured"],
    "scanning": ["scan"],
    "schedule": ["Budget"],
    "sensitivity": ["Scan"],
    "sparsifier": ["Sparsifier"],
    "storage": ["load", "load_tensors", "save"],
}

__all__ = [
    "ACDC", "DSR", "GMP", "HALP", "IEE", "MEST", "NM", "SET", "SNFS", "SRSTE", "STE", "Blocks", "Budget", "Channels",
    "Chase", "Dense", "GaP", "GraNet", "OneShot", "RigL", "Scan", "Sparsifier", "Static", "Uniform", "UserError",
    "Weights", "export", "load", "load_tensors", "recalibrate", "save", "scan", "to_semi_structured",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"regrow.{home}"), name)
            globals()[name] = value
            return value
    return submodules(__name__)(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
