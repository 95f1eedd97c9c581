"""Thought: decisions as values, computed from arguments. No clock, no disk, no chance of its own."""
