"""Training by a recipe: data, models, the loop, runs, and comparisons of them."""

from regrow.lazy import submodules

__getattr__ = submodules(__name__)
