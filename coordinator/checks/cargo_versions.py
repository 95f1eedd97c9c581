"""Versions of Rust crates as far as moving past a vulnerability needs them, and the packages of a ``Cargo.lock``.

Owns one invariant: a version that is called reachable is one that a requirement written for the present one admits: cargo's
caret, by which the first number that is not 0 stays. It asks no registry whether there is such a version.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_CRATE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_LOWEST: Final = re.compile(r"\s*(>=|\^|~|=|)\s*(\d+(?:\.\d+){0,2}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?)\s*")
_VERSION: Final = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?:-([0-9A-Za-z.-]{1,60}))?(?:\+[0-9A-Za-z.-]{1,60})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedCrate:
    """``line`` is 1-based, where its entry has its name."""

    line: int
    name: str
    version: str


def is_crate(name: str) -> bool:
    return _CRATE.fullmatch(name) is not None


def is_crate_version(version: str) -> bool:
    return _VERSION.fullmatch(version) is not None


def comes_later(version: str, other: str) -> bool:
    return _key(version) > _key(other)


def latest_crate_version(versions: Iterable[str]) -> str:
    return max(versions, key=_key)


def is_reachable(version: str, present: str) -> bool:
    """Whether it is later and a caret requirement of ``present`` admits it."""
    return comes_later(version, present) and _fixed_part(version) == _fixed_part(present)


def next_patched(present: str, patched: Iterable[str]) -> str:
    """The lowest version after ``present`` with which one of the requirements ``patched`` begins: a reachable one where there
    is one. Empty when there is none.
    """
    later = [one for one in map(_lower_bound, patched) if one and comes_later(one, present)]
    near = [one for one in later if is_reachable(one, present)]
    return min(near or later, key=_key, default="")


def read_lock(text: str) -> list[LockedCrate]:
    """Raises ``ValueError`` and its like for what is no lock file of cargo's."""
    numbers = [number for number, line in enumerate(text.splitlines(), start=1) if line.startswith("name = ")]
    packages = tomllib.loads(text).get("package", [])
    if len(numbers) != len(packages):
        numbers = [0] * len(packages)
    return [
        LockedCrate(line=line, name=str(one["name"]), version=str(one["version"]))
        for line, one in zip(numbers, packages, strict=True)
    ]


def _lower_bound(requirement: str) -> str:
    found = _LOWEST.fullmatch(requirement.split(",", 1)[0])
    if found is None:
        return ""
    number, mark, rest = found.group(2).partition("-")
    whole = ".".join([*number.split("."), "0", "0"][:3]) + mark + rest
    return whole if is_crate_version(whole) else ""


def _fixed_part(version: str) -> tuple[int, ...]:
    numbers = _key(version)[0]
    for place, number in enumerate(numbers):
        if number:
            return numbers[: place + 1]
    return numbers


def _key(version: str) -> tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]:
    """SemVer's order: a version with a mark (``-rc.1``) comes before the one without."""
    found = _VERSION.fullmatch(version)
    if found is None:
        return (), False, ()
    mark = found.group(4) or ""
    parts = tuple((not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in mark.split("."))
    return tuple(map(int, found.group(1, 2, 3))), not mark, parts
