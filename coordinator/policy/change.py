"""What an attempt may change: something, inside its paths, and not by doing away with tests.

Owns one invariant: a change is refused by the names of the files alone, before anything of it is run. What the tests
say is ``policy.verdict``'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from coordinator.domain.attempt import Ending

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NAMES_SHOWN: Final = 10
"""File names listed in a reason; more are counted."""

_WILD: Final = frozenset("*?[")

_TEST_FILES: Final = re.compile(
    r"""(?:^|/)(?:
        test_[^/]*\.py | [^/]*_test\.py | tests\.py          # Python
      | tests/(?:[^/]+/)*[^/]+\.rs                           # Rust
      | [^/]+\.(?:test|spec)\.[cm]?[jt]sx?                   # JavaScript, TypeScript
      | __tests__/(?:[^/]+/)*[^/]+\.[cm]?[jt]sx?
      | [^/]+_test\.go                                       # Go
      | [^/]+(?:Test|Tests|IT)\.(?:java|kt)                  # JVM
      | [^/]+_(?:spec|test)\.rb                              # Ruby
    )$""",
    re.VERBOSE,
)


class ChangedFile(Protocol):
    """One entry of a diff: ``status`` is A, M, D, R or T; ``old_path`` is set for R."""

    @property
    def status(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def old_path(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a change is not even judged. ``feedback`` tells the next attempt what to do instead."""

    ending: Ending
    feedback: str
    reason: str


def check_change(
    changes: Sequence[ChangedFile], *, paths: Sequence[str] = (), role_paths: Sequence[str] = ()
) -> Refusal | None:
    """None when the change may be judged. Empty ``paths`` or ``role_paths`` allow all; both must allow a file."""
    if not changes:
        return Refusal(
            ending=Ending.EMPTY,
            reason="the attempt changed nothing",
            feedback="Your last attempt left the files as they were. Make the change in the working tree.",
        )
    touched = sorted({name for change in changes for name in (change.path, change.old_path) if name})
    outside = [name for name in touched if not (_allowed(name, paths) and _allowed(name, role_paths))]
    if outside:
        limits = "; ".join(", ".join(globs) for globs in (paths, role_paths) if globs)
        return Refusal(
            ending=Ending.OUTSIDE_PATHS,
            reason=f"changed {name_some(outside)} outside its paths ({limits})",
            feedback=f"Only files that match {limits} may be changed. Leave these alone: {name_some(outside)}.",
        )
    deleted = sorted(name for name in _deleted_tests(changes) if name not in _literal(paths))
    if deleted:
        return Refusal(
            ending=Ending.DELETED_TESTS,
            reason=f"deleted tests: {name_some(deleted)}",
            feedback=f"Test files may not be deleted or renamed away. Restore {name_some(deleted)}.",
        )
    return None


def name_some(names: Sequence[str], shown: int = NAMES_SHOWN) -> str:
    """``a, b, c and 4 more``."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def is_test_file(path: str) -> bool:
    """Whether a path is, by the habits of its language, a file of tests."""
    return _TEST_FILES.search(path) is not None


def _deleted_tests(changes: Iterable[ChangedFile]) -> Iterable[str]:
    for change in changes:
        if change.status == "D" and is_test_file(change.path):
            yield change.path
        if change.status == "R" and is_test_file(change.old_path) and not is_test_file(change.path):
            yield change.old_path


def _literal(globs: Iterable[str]) -> frozenset[str]:
    return frozenset(glob for glob in globs if not _WILD & set(glob))


def _allowed(path: str, globs: Sequence[str]) -> bool:
    return not globs or any(path_matches(path, glob) for glob in globs)


def path_matches(path: str, glob: str) -> bool:
    """Whether ``glob`` names ``path``: ``*`` and ``?`` stay within a folder, ``**`` crosses folders.

    A glob that names a folder (with or without its slash) names everything below it.
    """
    return re.fullmatch(_translated(glob.rstrip("/")) + r"(?:/.*)?", path, re.DOTALL) is not None


def _translated(glob: str) -> str:
    pattern, index = [], 0
    while index < len(glob):
        rest = glob[index:]
        if rest.startswith("**/"):
            pattern.append(r"(?:[^/]+/)*")
            index += 3
        elif rest.startswith("**"):
            pattern.append(r".*")
            index += 2
        elif (bracket := re.match(r"\[(!?)(\]?[^\]/]*)\]", rest)) and bracket.group(2):
            inner = re.sub(r"([\\\[\]^&~|])", r"\\\1", bracket.group(2))
            pattern.append(f"(?!/)[{'^' if bracket.group(1) else ''}{inner}]")
            index += bracket.end()
        else:
            pattern.append({"*": r"[^/]*", "?": r"[^/]"}.get(rest[0], re.escape(rest[0])))
            index += 1
    return "".join(pattern)
