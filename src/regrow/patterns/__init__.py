"""What a unit is, which parameters have them, and which selections are legal."""

from regrow.patterns.base import PATTERNS, EntryPattern, Pattern
from regrow.patterns.channels import Channels
from regrow.patterns.weights import Weights

__all__ = ["PATTERNS", "Channels", "EntryPattern", "Pattern", "Weights"]
