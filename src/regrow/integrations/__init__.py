"""Callbacks for other people's training loops: one file a host, which is imported when it is asked for."""

from __future__ import annotations

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
