"""Latency: what the layers of a model cost on this machine, measured, stored and interpolated."""
