"""Hands: the one module for each outside thing (lock, git, process, files, clock, store, bus)."""
