"""What a unit is, which parameters have them, and which selections are legal."""

from regrow.patterns.blocks import Blocks
from regrow.patterns.channels import Channels
from regrow.patterns.entries import EntryPattern
from regrow.patterns.nm import NM
from regrow.patterns.pattern import PATTERNS, Pattern
from regrow.patterns.weights import Weights

__all__ = ["NM", "PATTERNS", "Blocks", "Channels", "EntryPattern", "Pattern", "Weights"]
