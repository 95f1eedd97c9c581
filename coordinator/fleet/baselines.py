"""What each check said about a target's tree, remembered, and what is believed of it when it says something worse now.

Owns one invariant: what failed on a target excuses a change only when it failed twice; and where the very same tree passed
before, only when it did so again ``SURE_S`` later. A full disk, a lost network or a tired machine must not let in what a
change broke. It runs nothing.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.check import BrokenBy, CheckOutcome, CheckStatus

if TYPE_CHECKING:
    from coordinator.checks.detect import Check
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store

SURE_S: Final = 60.0
"""What made an unchanged tree fail is then either over, or here to stay (a date, a package, a service)."""
_KEPT: Final = 64


class Baselines:
    """Outcomes by tree and check. Doubts are of this run of the daemon; outcomes outlive it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._doubts: dict[tuple[str, str], tuple[CheckOutcome, float]] = {}

    def recall(self, tree: str, check: Check) -> CheckOutcome | None:
        rows = self._store.query("baseline_get", tree=tree, command=check.key)
        return decode_outcome(rows[0]["outcome"]) if rows else None

    def remember(self, tree: str, check: Check, outcome: CheckOutcome) -> None:
        """What could not look is no outcome."""
        if outcome.status is CheckStatus.BROKEN:
            return
        at = self._clock.now().isoformat()
        self._store.execute("baseline_put", tree=tree, command=check.key, outcome=encode_outcome(outcome), at=at)

    def settled(self, tree: str, check: Check, fresh: CheckOutcome) -> CheckOutcome:
        """``fresh``, remembered; or, while it is worse than what is remembered and that is not sure yet, a broken one."""
        known, key = self.recall(tree, check), (tree, check.key)
        if fresh.status is CheckStatus.BROKEN:
            return fresh
        if known is not None and is_worse(fresh, known):
            now = self._clock.monotonic()
            doubt, since = self._doubts.get(key, (fresh, now))
            if is_worse(fresh, doubt):
                doubt, since = fresh, now
            self._doubts[key] = doubt, since
            if len(self._doubts) > _KEPT:
                del self._doubts[next(iter(self._doubts))]
            if now - since < SURE_S:
                return _in_doubt(fresh)
        self._doubts.pop(key, None)
        self.remember(tree, check, fresh)
        return fresh


def is_worse(fresh: CheckOutcome, known: CheckOutcome) -> bool:
    """Whether ``fresh`` would excuse more of a change than ``known`` does."""
    if fresh.status is CheckStatus.FAILED and known.status is CheckStatus.PASSED:
        return True
    nameless = fresh.status is CheckStatus.FAILED and not fresh.failures and bool(known.failures)
    return nameless or bool(fresh.failures - known.failures) or bool(known.seen - fresh.seen)


def _in_doubt(fresh: CheckOutcome) -> CheckOutcome:
    said = f": {fresh.reason}" if fresh.reason else ""
    reason = (
        f"on the target, where nothing has changed, it passed before and fails now{said}; whether that is here to stay shows "
        f"within {SURE_S:.0f} s"
    )
    return replace(fresh, broken_by=BrokenBy.MOMENT, none_ran="", reason=reason, status=CheckStatus.BROKEN)


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
