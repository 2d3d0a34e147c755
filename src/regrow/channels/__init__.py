"""Channels: which of them belong together, what they cost, and which to keep."""
