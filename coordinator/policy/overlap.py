"""Whether two sets of path globs can name the same file.

Owns one invariant: for tasks that name paths, never "no" when a common file is possible (it may say "yes" too often: two
globs that both have wildcards are compared by their literal beginnings only).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_WILD = "*?["


def literal_prefix(glob: str) -> str:
    """The part of a glob before its first wildcard."""
    for index, character in enumerate(glob):
        if character in _WILD:
            return glob[:index]
    return glob


def globs_overlap(one: str, other: str) -> bool:
    """True unless the two globs certainly name no common path."""
    left, right = literal_prefix(one), literal_prefix(other)
    if left == one and right == other:
        return one == other or one.startswith(f"{other.rstrip('/')}/") or other.startswith(f"{one.rstrip('/')}/")
    return left.startswith(right) or right.startswith(left)


def overlap(one: Iterable[str], other: Iterable[str]) -> bool:
    """True when some file could match both; an empty set of globs stands for a task that named no paths: no overlap."""
    others = tuple(other)
    return any(globs_overlap(left, right) for left in one for right in others)
