"""What code hosts read of the document, beside what ``test_verbs_findings`` asks of it."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from coordinator.api.sarif import sarif_document
from coordinator.domain.finding import FindingState, Severity

SCAN = {"tool": "pip-audit", "status": "scanned", "reason": ""}


def row(fingerprint: str, rule: str, severity: Severity, **data: Any) -> sqlite3.Row:
    told = {
        "category": "security",
        "cvss": None,
        "links": ["https://a.example/1"],
        "places": [["uv.lock", 0, 0]],
        **data,
    }
    store = sqlite3.connect(":memory:")
    store.row_factory = sqlite3.Row
    names = ("data", "fingerprint", "first_seen", "message", "reason", "rule", "severity", "state", "tool")
    values = (
        json.dumps(told),
        fingerprint,
        "then",
        f"{rule} in words",
        "",
        rule,
        int(severity),
        FindingState.OPEN,
        "pip-audit",
    )
    found: sqlite3.Row = store.execute("SELECT " + ", ".join(f"? AS {name}" for name in names), values).fetchone()
    return found


def test_a_code_host_finds_identity_gravity_and_a_line() -> None:
    rows = [
        row("a" * 64, "CVE-1", Severity.HIGH, cvss=7.5),
        row("b" * 64, "CVE-1", Severity.CRITICAL, cvss=9.8),
        row("c" * 64, "CVE-2", Severity.HIGH),
        row("d" * 64, "F401", Severity.LOW, category="dead code", links=[]),
    ]
    (run,) = sarif_document(rows, [SCAN])["runs"]
    rules = {one["id"]: one for one in run["tool"]["driver"]["rules"]}
    assert {name: one["properties"].get("security-severity") for name, one in rules.items()} == {
        "CVE-1": "9.8",
        "CVE-2": "8",
        "F401": None,
    }
    assert rules["CVE-1"]["properties"]["tags"] == ["security"]
    assert rules["CVE-1"]["shortDescription"] == {"text": "CVE-1 in words"}
    assert rules["CVE-1"]["help"] == {"text": "CVE-1 in words https://a.example/1"}
    assert "helpUri" not in rules["F401"]
    hashes = [one["partialFingerprints"]["primaryLocationLineHash"] for one in run["results"]]
    assert hashes == [f"{letter * 16}:1" for letter in "abcd"]
    assert {one["locations"][0]["physicalLocation"]["region"]["startLine"] for one in run["results"]} == {1}
