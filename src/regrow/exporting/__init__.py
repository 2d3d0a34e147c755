"""A model as a file that runs elsewhere, written only once it has been shown to compute the same."""

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
