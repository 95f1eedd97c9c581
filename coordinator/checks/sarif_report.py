"""What a SARIF 2.1.0 log says, as findings, whichever tool wrote it.

Owns one invariant: a log whose run says that it failed, or that nobody can read, raises; it never counts as one without
results. What the tool itself takes for suppressed, absent or no failure is left out, and so is what has no place in the tree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from coordinator.checks.adapter import text_of
from coordinator.domain.finding import Finding, Place, Severity, severity_of_cvss, steady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from coordinator.checks.adapter import SourceLines

_LEVELS: Final = MappingProxyType(
    {"error": Severity.HIGH, "none": Severity.INFO, "note": Severity.LOW, "warning": Severity.MEDIUM}
)
_LONGEST_MESSAGE: Final = 2000
_MOST_BASES: Final = 8
_PLACEHOLDER: Final = re.compile(r"\{([0-9]{1,2})\}")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


@dataclass(frozen=True, slots=True, kw_only=True)
class SarifReader:
    """``relative`` takes a path as a tool prints it to one relative to the tree (``ScanOrder.relative``).

    With ``quoted`` a result is known by the lines that it quotes, and left out when the tree no longer has them: for a log that
    may be older than the tree.
    """

    lines: SourceLines
    quoted: bool = False
    relative: Callable[[str], str]
    tool: str

    def findings(self, log: Mapping[str, Any]) -> Iterator[Finding]:
        """Raises one of ``UNREADABLE`` for what is no SARIF, and for a run that did not come to its end."""
        for run in log["runs"]:
            _check_invocations(run)
            driver = _Driver.of(run)
            for result in run.get("results") or ():
                if _counts(result):
                    finding = self._finding(result, driver)
                    if finding is not None:
                        yield finding

    def _finding(self, result: Mapping[str, Any], driver: _Driver) -> Finding | None:
        rule = driver.rule_of(result)
        name = text_of(result.get("ruleId") or rule.get("id"), default="result")
        spots = [*(result.get("locations") or ()), *(result.get("relatedLocations") or ())]
        regions = [spot.get("physicalLocation") or {} for spot in spots]
        places = [place for place in (self._place(one, driver) for one in regions) if place is not None]
        if not result.get("locations") or not places or self._place(regions[0], driver) is None:
            return None
        evidence, snippet = self.lines.at(places[0].path, places[0].line), _snippet(regions[0])
        if self.quoted and snippet and not self.lines.holds(places[0].path, snippet):
            return None
        message, (severity, cvss) = _message(result, rule), _severity(result, rule)
        return Finding(
            about=steady(message) if self.quoted and not snippet else "",
            category="security" if cvss is not None else "reported",
            cvss=cvss,
            evidence=snippet if self.quoted and snippet else evidence,
            links=tuple(filter(None, [text_of(rule.get("helpUri"), default="")])),
            message=message,
            places=tuple(dict.fromkeys(places)),
            rule=f"{driver.name}/{name}" if driver.name else name,
            severity=severity,
            suggestion=_suggestion(result),
            tool=self.tool,
        )

    def _place(self, physical: Mapping[str, Any], driver: _Driver) -> Place | None:
        """None for what is not in the tree, or is no file."""
        artifact, region = physical.get("artifactLocation") or {}, physical.get("region") or {}
        uri = text_of(artifact.get("uri"), default="") or driver.artifact_uri(artifact.get("index"))
        whole = driver.resolved(uri, artifact.get("uriBaseId"))
        if not whole or (_SCHEME.match(whole) and not whole.startswith("file:")):
            return None
        path = self.relative(re.sub(r"^file:(//localhost)?(?=/)", "", whole).removeprefix("//"))
        if path.startswith(("/", "../")) or path in {"", ".", ".."} or "\0" in path:
            return None
        return Place(path=path, line=_number(region.get("startLine")), column=_number(region.get("startColumn")))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Driver:
    """What a run says of its tool and of its folders."""

    artifacts: Sequence[Mapping[str, Any]] = ()
    bases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    name: str
    rules: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> _Driver:
        driver = run["tool"]["driver"]
        return cls(
            artifacts=run.get("artifacts") or (),
            bases=run.get("originalUriBaseIds") or {},
            name=text_of(driver.get("name"), default=""),
            rules=driver.get("rules") or (),
        )

    def rule_of(self, result: Mapping[str, Any]) -> Mapping[str, Any]:
        index, told = result.get("ruleIndex"), result.get("rule") or {}
        index = told.get("index") if index is None else index
        if isinstance(index, int) and 0 <= index < len(self.rules):
            return self.rules[index]
        name = result.get("ruleId") or told.get("id")
        return next((rule for rule in self.rules if rule.get("id") == name), {"id": name} if name else {})

    def artifact_uri(self, index: object) -> str:
        if not isinstance(index, int) or not 0 <= index < len(self.artifacts):
            return ""
        return text_of(self.artifacts[index]["location"]["uri"])

    def resolved(self, uri: str, base: object) -> str:
        """``uri`` behind the folders that its base ids stand for; those that a log leaves open stand for the tree."""
        whole = uri
        for _ in range(_MOST_BASES):
            if _SCHEME.match(whole) or whole.startswith("/") or not isinstance(base, str) or base not in self.bases:
                break
            whole, base = text_of(self.bases[base].get("uri"), default="") + whole, self.bases[base].get("uriBaseId")
        return unquote(whole)


def _check_invocations(run: Mapping[str, Any]) -> None:
    for one in run.get("invocations") or ():
        if one.get("executionSuccessful") is False:
            notes = [*(one.get("toolExecutionNotifications") or ()), *(one.get("toolConfigurationNotifications") or ())]
            said = "; ".join(text_of(note["message"].get("text"), default="") for note in notes)
            raise ValueError(f"its run failed{': ' if said else ''}{said[:300]}")


def _counts(result: Mapping[str, Any]) -> bool:
    if result.get("kind", "fail") != "fail" or result.get("baselineState") == "absent":
        return False
    suppressions = result.get("suppressions") or ()
    return not any(one.get("status", "accepted") == "accepted" for one in suppressions)


def _severity(result: Mapping[str, Any], rule: Mapping[str, Any]) -> tuple[Severity, float | None]:
    """By the CVSS score that code hosts read from ``security-severity``, else by the level."""
    for one in (result, rule):
        score = (one.get("properties") or {}).get("security-severity")
        if score is not None:
            number = float(score)
            if 0 <= number <= 10:
                return severity_of_cvss(number), number
    level = result.get("level") or (rule.get("defaultConfiguration") or {}).get("level") or "warning"
    return _LEVELS.get(level, Severity.MEDIUM), None


def _message(result: Mapping[str, Any], rule: Mapping[str, Any]) -> str:
    """The result's own words, or the rule's with the result's arguments in them."""
    message = result["message"]
    text = message.get("text") or message.get("markdown")
    if text is None:
        text = (rule.get("messageStrings") or {})[message["id"]]["text"]
    arguments = [text_of(one)[:_LONGEST_MESSAGE] for one in (message.get("arguments") or ())[:20]]
    cut = text_of(text)[:_LONGEST_MESSAGE]
    # In one pass: what stands in an argument is nobody's placeholder, and cannot grow by standing in the next one.
    filled = _PLACEHOLDER.sub(lambda hit: arguments[int(hit[1])] if int(hit[1]) < len(arguments) else hit[0], cut)
    return " ".join(filled.split())[:_LONGEST_MESSAGE]


def _suggestion(result: Mapping[str, Any]) -> str:
    told = [(one.get("description") or {}).get("text") for one in result.get("fixes") or ()]
    return text_of(next((one for one in told if one), None), default="")[:300]


def _snippet(physical: Mapping[str, Any]) -> str:
    """The first line that says something of what the log quotes."""
    quoted = ((physical.get("region") or {}).get("snippet") or {}).get("text")
    lines = [line.strip() for line in text_of(quoted, default="").splitlines() if line.strip()]
    return lines[0][:300] if lines else ""


def _number(value: object) -> int:
    if value is None:
        return 0
    if not isinstance(value, int):
        raise TypeError(f"{value!r:.40} is no number of a line or column")
    return value
