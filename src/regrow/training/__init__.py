"""Training by a recipe: the loop, runs, and what they leave."""

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
