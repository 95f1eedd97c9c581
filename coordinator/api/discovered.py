"""What discovery knows, as verbs and screens tell it: findings, and the state of each tool.

Owns one invariant: a tool that gave no answer is "not scanned", whatever is known from before; and what the project does not
call for is not missing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks.adapter import walk_files
from coordinator.checks.adapters import ADAPTERS, chosen
from coordinator.domain.finding import REPORTING, SEEN, FindingState, ScanStatus, Severity

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping

    from coordinator.api.desk import Desk

_UNOWNED: Final = (FindingState.OPEN, FindingState.REOPENED)

SHORT: Final = 10
"""So many characters of a fingerprint tell findings apart for people."""


def finding_to_json(row: sqlite3.Row) -> dict[str, Any]:
    """A row of the ledger as verbs answer with it."""
    data = json.loads(row["data"])
    return {
        "id": row["fingerprint"][:SHORT],
        "fingerprint": row["fingerprint"],
        "tool": row["tool"],
        "rule": row["rule"],
        "category": data["category"],
        "severity": Severity(row["severity"]).name.lower(),
        "cvss": data["cvss"],
        "state": row["state"],
        "returns": data["returns"],
        "fixed_by": data["fixed_by"],
        "message": row["message"],
        "path": row["path"],
        "line": row["line"],
        "places": [{"path": path, "line": line, "column": column} for path, line, column in data["places"]],
        "evidence": data["evidence"],
        "fix": row["fix"],
        "fix_version": data["fix_version"],
        "suggestion": data["suggestion"],
        "package": data["package"],
        "installed": data["installed"],
        "advisories": data["advisories"],
        "links": data["links"],
        "task": row["task"],
        "reason": row["reason"],
        "first_seen": row["first_seen"],
        "last_seen": row["last_seen"],
        "closed_at": data["closed_at"],
    }


def tool_rows(desk: Desk) -> list[dict[str, Any]]:
    """One row a tool: what the last scan said, how many findings are in which state, how many need a model."""
    tools = {name: _tool_row(desk, name) for name in _called(desk)}
    for row in desk.rows("findings"):
        found = tools.setdefault(row["tool"], _tool_row(desk, row["tool"]))
        found["states"][row["state"]] = found["states"].get(row["state"], 0) + 1
        adapter = ADAPTERS.get(row["tool"])
        if row["state"] in _UNOWNED and (adapter is None or row["fix"] not in adapter.fixes):
            found["needs_model"] += 1
    called = (one for one in tools.values() if one["states"] or one["scan"] != ScanStatus.UNCALLED)
    return sorted(called, key=lambda one: str(one["tool"]))


def _called(desk: Desk) -> Iterator[str]:
    """Tools that have been asked, and those that would be."""
    settings, files = desk.settings.discovery, None
    for adapter in chosen(settings):
        if scan_fact(desk, adapter.name) is None:
            files = files or walk_files(desk.root)
            if adapter.uncalled(files, named=adapter.name in settings.named_tools):
                continue
        yield adapter.name


def scan_fact(desk: Desk, tool: str) -> Mapping[str, Any] | None:
    """The last scan with a tool; None when there was none."""
    rows = desk.rows("fact_get", key=f"scan:{tool}")
    fact: Mapping[str, Any] | None = json.loads(rows[0]["value"]) if rows else None
    return fact


def _tool_row(desk: Desk, tool: str) -> dict[str, Any]:
    last = scan_fact(desk, tool) or {}
    return {
        "tool": tool,
        "asked": any(adapter.name == tool for adapter in chosen(desk.settings.discovery)),
        "scan": str(last.get("status", "not scanned")),
        "reason": str(last.get("reason", "")),
        "remedy": str(last.get("remedy", "")),
        "at": last.get("at"),
        "looked_at": last.get("looked_at") or None,
        "states": {},
        "needs_model": 0,
    }


def tool_sentence(found: Mapping[str, Any]) -> str:
    """One tool's row in one sentence."""
    states = found["states"]
    still = sum(states.get(state, 0) for state in SEEN)
    open_ones = [f"{states[FindingState.QUEUED]} with a task"] if states.get(FindingState.QUEUED) else []
    open_ones += [f"{states[FindingState.IN_WORK]} in work"] if states.get(FindingState.IN_WORK) else []
    if states.get(FindingState.REOPENED):
        open_ones.append(f"{states[FindingState.REOPENED]} fixed before and back")
    if found["needs_model"]:
        open_ones.append(f"{found['needs_model']} without a safe fix, for a model's role")
    counted = f"{still} open" + (f" ({', '.join(open_ones)})" if open_ones else "")
    counted += f", {states.get(FindingState.FIXED, 0)} fixed"
    if states.get(FindingState.DISMISSED):
        counted += f", {states[FindingState.DISMISSED]} dismissed"
    if not found["asked"]:
        return f"{found['tool']}: not asked any more (by the settings, [discovery]); known from before: {counted}"
    if found["scan"] == ScanStatus.PARTIAL:
        return f"{found['tool']}: {counted}; it saw a part only: {found['reason']}"
    if found["scan"] in REPORTING:
        return f"{found['tool']}: {counted}"
    why = f"; {found['reason']}" if found["reason"] else ""
    label = "not scanned" if found["scan"] == "not scanned" else f"not scanned ({found['scan']}{why})"
    label += f"; {found['remedy']}" if found["remedy"] else ""
    return f"{found['tool']}: {label}" + (f"; known from before: {counted}" if states else "")
