"""Surgery: layers made thin and wide again, in place."""

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
