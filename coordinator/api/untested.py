"""Whether the project's tests can be run here, as status and doctor tell it.

Owns one invariant: tests that are there and do not run are never passed over, whether their tool is missing or the gate
found out by trying. It reads files and what the gate left on record; it runs nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from coordinator.fleet.gate import UNTESTED_FACT

if TYPE_CHECKING:
    from coordinator.api.desk import Desk
    from coordinator.checks.detect import GatePlan


def untested(desk: Desk, plan: GatePlan) -> list[dict[str, Any]]:
    """Checks that run tests of the project and cannot: ``check``, ``reason``, ``remedy``. Empty: all can, or none exist."""
    found = {
        one.check: {"check": one.check, "reason": one.reason, "remedy": one.remedy}
        for one in plan.unavailable
        if one.tests
    }
    can_run = {check.name for check in plan.checks if check.tests}
    for one in _on_record(desk):  # only what should run, but did not: the rest is known from the files, and newer
        if one["check"] in can_run:
            found.setdefault(one["check"], one)
    return list(found.values())


def consequence(desk: Desk) -> str:
    """What the settings make of tests that do not run."""
    if desk.settings.gate.untested == "land":
        return "everything lands untested, and is marked"
    return "only autofix lands, and is marked; other tasks wait ([gate] untested)"


def _on_record(desk: Desk) -> list[dict[str, Any]]:
    rows = desk.rows("fact_get", key=UNTESTED_FACT)
    try:
        return [{key: str(one[key]) for key in ("check", "reason", "remedy")} for one in json.loads(rows[0]["value"])]
    except (IndexError, ValueError, KeyError, TypeError):
        return []
