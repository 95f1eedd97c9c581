"""What each check said about a target's tree, remembered, and what is believed of it when it says something worse now.

Owns one invariant: what failed on a target excuses a change only when it failed twice; and where the very same tree passed
before, or where it excuses everything and nothing is known from before, only when it did so again ``SURE_S`` later. A full
disk, a lost network or a tired machine must not let in what a change broke. It runs nothing.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.check import BrokenBy, CheckOutcome, CheckStatus
from coordinator.policy.verdict import Pair, is_clean

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from coordinator.checks.detect import Check
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store

SURE_S: Final = 60.0
"""What made an unchanged tree fail is then either over, or here to stay (a date, a package, a service)."""
_KEPT: Final = 64


class Baselines:
    """Outcomes by tree and check. Doubts are of this run of the daemon; outcomes outlive it.

    A project whose command has always been red, without saying where, stands still once, at the very first start (and after
    its tools were changed), until the first look that comes ``SURE_S`` later: the gate is broken meanwhile, and its reason says
    why and that it is looked at again every ``again_s``. Then it is believed, and so is the same of the next target, also of
    one that a person made.
    """

    def __init__(self, store: Store, clock: Clock, *, again_s: float) -> None:
        self._again_s = again_s
        self._clock = clock
        self._doubts: dict[tuple[str, str], tuple[CheckOutcome, float]] = {}
        self._store = store

    def recall(self, tree: str, check: Check) -> CheckOutcome | None:
        return _read(self._store.query("baseline_get", tree=tree, command=check.key))

    def remember(self, tree: str, check: Check, outcome: CheckOutcome) -> None:
        """What could not look, or of which no test ran, is no outcome: it would be believed after it is mended."""
        if outcome.ran.status is CheckStatus.BROKEN:
            return
        at = self._clock.now().isoformat()
        self._store.execute("baseline_put", tree=tree, command=check.key, outcome=encode_outcome(outcome), at=at)

    def expects(self, tree: str, check: Check, fresh: CheckOutcome) -> bool:
        """Whether all that ``fresh`` would excuse is known of the tree."""
        known = self.recall(tree, check)
        return known is not None and not is_worse(fresh, known)

    def trust(self, tree: str, check: Check) -> None:
        """The check has just passed beside ``tree``: what made it fail before is over, and what comes is a new doubt."""
        self._doubts.pop((tree, check.key), None)

    def settled(self, tree: str, check: Check, fresh: CheckOutcome) -> CheckOutcome:
        """``fresh``, remembered; or, while what it excuses is news and not sure yet, a broken one."""
        known, key = self.recall(tree, check), (tree, check.key)
        if fresh.ran.status is CheckStatus.BROKEN:
            return fresh
        if is_worse(fresh, known) if known is not None else self._is_news(check, fresh):
            now = self._clock.monotonic()
            doubt, since = self._doubts.get(key, (fresh, now))
            if is_worse(fresh, doubt):
                doubt, since = fresh, now
            self._doubts[key] = doubt, since
            if len(self._doubts) > _KEPT:
                del self._doubts[next(iter(self._doubts))]
            if now - since < SURE_S:
                return self._in_doubt(fresh, known)
        self._doubts.pop(key, None)
        self.remember(tree, check, fresh)
        return fresh

    def _is_news(self, check: Check, fresh: CheckOutcome) -> bool:
        """Of a tree that was never looked at: whether everything would be excused, and not already by the target before."""
        before = _read(self._store.query("baseline_latest", command=check.key))
        return _excuses_all(fresh) and not (before is not None and _excuses_all(before))

    def _in_doubt(self, fresh: CheckOutcome, known: CheckOutcome | None) -> CheckOutcome:
        said = f": {fresh.reason}" if fresh.reason else ""
        what = "where nothing has changed, it passed before and fails now"
        if known is None:
            what = "at which nobody has looked before, it fails, and nothing in it passes"
        reason = (
            f"on the target, {what}{said}; that is believed when it still does so {SURE_S:.0f} s later, and looked at again "
            f"every {self._again_s:g} s ([gate] retry_s)"
        )
        return replace(fresh, broken_by=BrokenBy.MOMENT, none_ran="", reason=reason, status=CheckStatus.BROKEN)


def is_worse(fresh: CheckOutcome, known: CheckOutcome) -> bool:
    """Whether ``fresh`` would excuse more of a change than ``known`` does: what as a change of it would be refused."""
    return not is_clean(Pair(baseline=known, merged=fresh))


def _excuses_all(outcome: CheckOutcome) -> bool:
    """A failure without names, or of every test that ran: nothing tells it from that of a machine in trouble."""
    every = bool(outcome.seen) and outcome.seen <= outcome.failures
    return outcome.status is CheckStatus.FAILED and (every or not outcome.failures)


def _read(rows: Sequence[sqlite3.Row]) -> CheckOutcome | None:
    outcome = decode_outcome(rows[0]["outcome"]) if rows else None
    return None if outcome is None or outcome.ran.status is CheckStatus.BROKEN else outcome


def encode_outcome(outcome: CheckOutcome) -> str:
    """A passed or failed outcome as JSON; the excerpt is left out, it is of no use to a later comparison."""
    return json.dumps(
        {
            "check": outcome.check,
            "failures": sorted(outcome.failures),
            "none_ran": outcome.none_ran,
            "reason": outcome.reason,
            "seen": sorted(outcome.seen),
            "status": outcome.status,
            "took_s": outcome.took_s,
        }
    )


def decode_outcome(text: str) -> CheckOutcome | None:
    """None for what cannot be read: then the check is simply run."""
    try:
        data = json.loads(text)
        return CheckOutcome(
            check=data["check"],
            failures=frozenset(data["failures"]),
            none_ran=data["none_ran"],
            reason=data["reason"],
            seen=frozenset(data["seen"]),
            status=CheckStatus(data["status"]),
            took_s=data["took_s"],
        )
    except (ValueError, KeyError, TypeError):
        return None
