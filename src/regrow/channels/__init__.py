"""Channels: which of them belong together, what they cost, and which to keep."""

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
