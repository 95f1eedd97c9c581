"""Run an outside tool, understand what it said, return findings or an outcome. Used by discovery and by the gate."""
