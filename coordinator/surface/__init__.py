"""Skins: what a person sees. None knows another; all of them only read verbs and events."""
