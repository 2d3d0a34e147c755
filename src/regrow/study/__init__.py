"""Studies: comparisons of methods, and the processes that run them."""

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
