"""The room in which tasks become landed commits: spool, dispatch, agents, worktrees, gate, landing, recovery."""
