"""The table of verbs: what one may ask. Command line and socket are generated from it."""
