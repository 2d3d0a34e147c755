"""Coupling: which channels of a model go together, and the trial of it."""

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
