"""Budgets: what widths cost, and which fit."""

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
