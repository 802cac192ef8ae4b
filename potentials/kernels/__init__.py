"""Compiled forms of trained networks, for evaluation only."""
