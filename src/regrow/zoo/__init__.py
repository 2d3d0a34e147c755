"""Models by name, and the built-in ones."""

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
