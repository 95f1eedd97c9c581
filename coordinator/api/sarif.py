"""Findings as a SARIF 2.1.0 document, for editors and code hosts.

Owns one invariant: the document says of each finding what we say of it, its state and its identity among them; a dismissed one
is suppressed, not left out. It reads nothing: rows of the ledger come in.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from coordinator.domain.finding import REPORTING, FindingState, Severity

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping

_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS: Final[Mapping[int, str]] = {
    Severity.CRITICAL: "error",
    Severity.HIGH: "error",
    Severity.MEDIUM: "warning",
    Severity.LOW: "warning",
    Severity.INFO: "note",
}
_SCORES: Final[Mapping[int, float]] = {
    Severity.CRITICAL: 9.5,
    Severity.HIGH: 8.0,
    Severity.MEDIUM: 5.5,
    Severity.LOW: 2.0,
    Severity.INFO: 0.0,
}
"""The middle of what CVSS calls so, for a rule of which nobody told a score: code hosts sort by it."""


def sarif_document(rows: Iterable[sqlite3.Row], scans: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One run for each of ``scans`` (tool, status, reason), with those of ``rows`` that are not fixed."""
    found: dict[str, list[sqlite3.Row]] = {}
    for row in rows:
        if row["state"] != FindingState.FIXED:
            found.setdefault(row["tool"], []).append(row)
    runs = [_run(scan, found.get(scan["tool"], [])) for scan in scans]
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": runs}


def _run(scan: Mapping[str, Any], rows: list[sqlite3.Row]) -> dict[str, Any]:
    looked = scan["status"] in REPORTING
    invocation: dict[str, Any] = {"executionSuccessful": looked}
    if scan["reason"]:
        level = "note" if looked else "error"
        invocation["toolExecutionNotifications"] = [{"level": level, "message": {"text": scan["reason"]}}]
    of_rule: dict[str, list[sqlite3.Row]] = {}
    for row in rows:
        of_rule.setdefault(row["rule"], []).append(row)
    rules = [_rule(name, of_rule[name]) for name in sorted(of_rule)]
    return {
        "tool": {"driver": {"name": scan["tool"], "rules": rules}},
        "invocations": [invocation],
        "originalUriBaseIds": {"SRCROOT": {"description": {"text": "the top folder of the repository"}}},
        "results": [_result(row) for row in rows],
    }


def _rule(name: str, rows: list[sqlite3.Row]) -> dict[str, Any]:
    """With what code hosts read of the rule and not of its results: how grave it is, and words about it."""
    told = [json.loads(row["data"]) for row in rows]
    text = rows[0]["message"]
    link = next((one["links"][0] for one in told if one["links"]), "")
    rule: dict[str, Any] = {
        "id": name,
        "shortDescription": {"text": text},
        "help": {"text": f"{text} {link}".strip()},
        "properties": {"tags": sorted({one["category"] for one in told})},
    }
    scores = [one["cvss"] for one in told if one["cvss"] is not None]
    if any(one["category"] == "security" for one in told):
        worst = min(row["severity"] for row in rows)
        rule["properties"]["security-severity"] = f"{max(scores) if scores else _SCORES[worst]:g}"
    return rule | ({"helpUri": link} if link else {})


def _result(row: sqlite3.Row) -> dict[str, Any]:
    data = json.loads(row["data"])
    result: dict[str, Any] = {
        "ruleId": row["rule"],
        "level": _LEVELS[row["severity"]],
        "message": {"text": row["message"]},
        "locations": [_location(data["places"][0])],
        "partialFingerprints": {
            "coordinator/v1": row["fingerprint"],
            "primaryLocationLineHash": f"{row['fingerprint'][:16]}:1",  # the only one that GitHub compares
        },
        "properties": {"state": row["state"], "category": data["category"], "firstSeen": row["first_seen"]},
    }
    if data["cvss"] is not None:
        result["properties"]["security-severity"] = f"{data['cvss']:g}"
    if len(data["places"]) > 1:
        result["relatedLocations"] = [_location(place) for place in data["places"][1:]]
    if row["state"] == FindingState.DISMISSED:
        result["suppressions"] = [{"kind": "external", "justification": row["reason"]}]
    return result


def _location(place: list[Any]) -> dict[str, Any]:
    path, line, column = place
    physical: dict[str, Any] = {"artifactLocation": {"uri": quote(path), "uriBaseId": "SRCROOT"}}
    physical["region"] = {"startLine": line or 1} | ({"startColumn": column} if column else {})
    return {"physicalLocation": physical}
