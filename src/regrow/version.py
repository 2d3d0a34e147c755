"""The version of this package, as saved models and results name it."""

__version__ = "0.1.0"
