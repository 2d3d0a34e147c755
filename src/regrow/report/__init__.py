"""The report: one self-contained page from run directories."""

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
