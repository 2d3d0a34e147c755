"""Latency: what the layers of a model cost on this machine, measured, stored and interpolated."""

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
