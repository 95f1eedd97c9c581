"""The git command lines that make a private clone which shares the repository's objects.

Owns one invariant: the clone knows no way back (no remote, no template hooks) and starts at exactly the ordered commit.
Data, so that the daemon (asyncio) and an agent's own process (plain subprocess) run the very same lines.
"""

from __future__ import annotations

AGENT_NAME = "coordinator agent"
AGENT_EMAIL = "agent@coordinator.invalid"


def clone_commands(*, repository: str, worktree: str, base: str, branch: str) -> tuple[tuple[str, ...], ...]:
    """Argument lists to be run one after the other; each must exit 0. ``worktree`` must not exist yet."""
    inside = ("git", "-C", worktree)
    return (
        ("git", "clone", "--quiet", "--shared", "--no-checkout", "--no-tags", "--template=", repository, worktree),
        (*inside, "remote", "remove", "origin"),
        (*inside, "config", "user.name", AGENT_NAME),
        (*inside, "config", "user.email", AGENT_EMAIL),
        (*inside, "config", "gc.auto", "0"),
        (*inside, "checkout", "--quiet", "-b", branch, base),
    )
