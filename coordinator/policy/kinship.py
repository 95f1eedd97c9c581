"""Which finding of a new report is one that we knew, though it is told in other words now.

Owns one invariant: each is paired at most once, with one of its own tool, file and rule (an advisory: of its own package), and
only what the report no longer holds with what it holds anew. Passes go from the surest likeness to the weakest, as SonarQube
tracks its issues: a text was reworded, a line was edited, an advisory got another name.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from coordinator.domain.finding import steady

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from coordinator.domain.finding import Finding


def kindred(gone: Iterable[Finding], new: Iterable[Finding]) -> Mapping[str, str]:
    """By the fingerprint of each of ``new`` that is one of ``gone``: the fingerprint that it had."""
    old, fresh = sorted(gone, key=_order), sorted(new, key=_order)
    pairs: dict[str, str] = {}
    for marks in _PASSES if old and fresh else ():
        waiting: defaultdict[Hashable, list[Finding]] = defaultdict(list)
        for one in old:
            for mark in marks(one):
                waiting[mark].append(one)
        used = set(pairs.values())
        for one in fresh:
            if one.fingerprint in pairs:
                continue
            found = next((was for mark in marks(one) for was in waiting[mark] if was.fingerprint not in used), None)
            if found is not None:
                pairs[one.fingerprint] = found.fingerprint
                used.add(found.fingerprint)
    return pairs


def _order(finding: Finding) -> tuple[str, int, str]:
    return finding.place.path, finding.place.line, finding.fingerprint


def _by_advisory(finding: Finding) -> Iterator[Hashable]:
    """Any of its names, for a package in a file."""
    for name in finding.advisories if finding.package else ():
        yield finding.tool, finding.place.path, finding.package, name


def _alike(*what: Callable[[Finding], Hashable]) -> Callable[[Finding], Iterator[Hashable]]:
    def marks(finding: Finding) -> Iterator[Hashable]:
        told = tuple(one(finding) for one in what)
        if not finding.advisories and all(told):
            yield (finding.tool, finding.place.path, finding.rule, *told)

    return marks


def _line(finding: Finding) -> int:
    return finding.place.line


def _evidence(finding: Finding) -> str:
    return " ".join(finding.evidence.split())


def _message(finding: Finding) -> str:
    return steady(finding.message)


_PASSES: Final[Sequence[Callable[[Finding], Iterator[Hashable]]]] = (
    _by_advisory,
    _alike(_line, _evidence),
    _alike(_evidence, _message),
    _alike(_line, _message),
    _alike(_evidence),
)
