"""Data sets: images in memory, on disk and streamed, always in the same order."""

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
