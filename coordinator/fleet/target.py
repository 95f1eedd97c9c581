"""The target branch: made when missing, moved forward with the user's branch while that loses nothing.

Owns one invariant: the target only ever moves to a descendant of where it was. Landing moves it elsewhere (``lander``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.domain.errors import BadRepository

if TYPE_CHECKING:
    from coordinator.kit.git import Git


async def prepare(git: Git, target: str) -> str:
    """Create or fast-forward ``refs/heads/<target>`` to HEAD; return a remark for the user, empty when all is plain.

    Raises ``BadRepository`` when there is no commit to start from.
    """
    ref = f"refs/heads/{target}"
    head = await git.resolve("HEAD")
    if head is None:
        raise BadRepository("the repository has no commit yet; make the first one, then start again")
    tip = await git.resolve(ref)
    if tip is None:
        if not await git.update_ref(ref, head, "") and await git.resolve(ref) is None:
            raise BadRepository(f"the branch {target} could not be created; is there a branch that is a prefix of it?")
        return f"created the branch {target} at {head[:10]}"
    if tip == head or await git.is_ancestor(head, tip):
        return ""
    if await git.is_ancestor(tip, head):
        if await git.checked_out(target) is not None or not await git.update_ref(ref, head, tip):
            return ""
        return f"moved {target} forward to {head[:10]}, where your branch is"
    return (
        f"{target} and your branch have each commits that the other lacks; work goes on from {target} "
        f"(to bring them together: git merge {target})"
    )
