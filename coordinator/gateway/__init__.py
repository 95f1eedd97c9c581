"""The room every model call of an agent passes through: who is calling, where it goes, and what became of it."""
