"""regrow: make PyTorch models sparse while they train.

>>> import regrow
>>> sorted(regrow.methods.METHODS)
['dense', 'gmp', 'iee', 'oneshot', 'rigl', 'set', 'static']
"""

from regrow.errors import UserError
from regrow.methods import GMP, IEE, SET, Dense, OneShot, RigL, Static
from regrow.patterns import Weights
from regrow.recalibrate import recalibrate
from regrow.schedule import Budget
from regrow.sparsifier import Sparsifier

__version__ = "0.1.0"

__all__ = [
    "GMP",
    "IEE",
    "SET",
    "Budget",
    "Dense",
    "OneShot",
    "RigL",
    "Sparsifier",
    "Static",
    "UserError",
    "Weights",
    "recalibrate",
]
