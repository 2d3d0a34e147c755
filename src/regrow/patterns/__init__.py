"""What a unit is, which parameters have them, and which selections are legal."""

from regrow.patterns.base import PATTERNS, Pattern
from regrow.patterns.weights import Weights

__all__ = ["PATTERNS", "Pattern", "Weights"]
