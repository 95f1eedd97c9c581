"""``mypy`` as a discovery tool: errors of types, as the project itself has it configured.

Owns one invariant: what mypy could not follow, a file with a syntax error or an import that is not installed here, is known
not to have been looked at. Plug-ins that the project's configuration names are run by it, so it is used only when named.
"""

from __future__ import annotations

import asyncio
import configparser
import json
import re
import tomllib
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks.adapter import UNREADABLE, FindingTool, SourceLines, broken, text_of
from coordinator.checks.failing_tests import has_module
from coordinator.checks.tool import exit_words, last_line
from coordinator.domain.finding import Finding, Place, ScanReport, ScanStatus, Severity, identified

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from coordinator.checks.adapter import Printed, ScanOrder, TreeFiles

_CONFIG_FILES: Final = ("mypy.ini", ".mypy.ini", "pyproject.toml", "setup.cfg")
_LINK: Final = "https://mypy.readthedocs.io/en/stable/_refs.html#code-{}"
_MISSING: Final = re.compile(r'module named "([^".]+)')
_TARGETS: Final = frozenset({"files", "modules", "packages"})


class Mypy(FindingTool):
    name = "mypy"
    program = "mypy"
    reads = ("*.py", "*.pyi", *_CONFIG_FILES)
    remedy = "pip install mypy into the project's environment"
    stale_after_s: float | None = None
    standard = False

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        return "" if files.any("*.py", "*.pyi") else "there is no Python file"

    async def scan(self, order: ScanOrder) -> ScanReport:
        words = [
            "--output",
            "json",
            "--no-error-summary",
            "--hide-error-context",
            "--cache-dir",
            str(order.cache / "mypy"),
        ]
        if order.surroundings.first:
            words += ["--python-executable", str(order.surroundings.python)]
        if not await asyncio.to_thread(_names_targets, order.tree):
            words.append(".")
        printed = await order.run(words)
        return await asyncio.to_thread(understood_mypy, order, printed)


def _names_targets(tree: Path) -> bool:
    """Whether the configuration that mypy will use, the first of its own, says what is to be checked."""
    for name in _CONFIG_FILES:
        try:
            text = (tree / name).read_text(encoding="utf-8")
            section = _toml_section(text) if name.endswith(".toml") else _ini_section(text)
        except (OSError, ValueError, configparser.Error):
            continue  # absent, or mypy itself will say what is wrong with it
        if section is not None:
            return bool(_TARGETS & set(section))
    return False


def _toml_section(text: str) -> Mapping[str, Any] | None:
    section = tomllib.loads(text).get("tool", {})
    section = section.get("mypy") if isinstance(section, dict) else None
    return section if isinstance(section, dict) else None


def _ini_section(text: str) -> Mapping[str, str] | None:
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string(text)
    return dict(parser["mypy"]) if parser.has_section("mypy") else None


def understood_mypy(order: ScanOrder, printed: Printed) -> ScanReport:
    """Exit code 1 is that of errors, 2 that of a fault of its own and of a file that stops all others."""
    ran, name = printed.ran, Mypy.name
    if ran.problem or ran.code not in {0, 1, 2}:
        return broken(name, f"it {exit_words(ran)}", ran)
    try:
        text = printed.out.read_text(encoding="utf-8")
        items = [json.loads(line) for line in text.splitlines() if line.strip()]
        errors = [item for item in items if item["severity"] == "error"]
        lacking = {order.relative(text_of(one["file"])): one for one in errors if _lacks(order.tree, one)}
        found = identified(_findings(order, [one for one in errors if not _lacks(order.tree, one)]))
    except UNREADABLE as error:
        said = f"; it said {last_line(ran.output)}" if ran.output.strip() else ""
        return broken(name, f"its report could not be read: {type(error).__name__}: {error}{said}", ran)
    if bool(errors) is (ran.code == 0) or (ran.code == 2 and not all(one["code"] == "syntax" for one in errors)):
        return broken(name, f"it exited with {ran.code} and named {len(errors)} errors: {last_line(ran.output)}", ran)
    status, reason = ScanStatus.SCANNED, ""
    if ran.code == 2:
        status, reason = ScanStatus.PARTIAL, f"{found[0].place.path} cannot be parsed, so nothing else was looked at"
    return ScanReport(
        findings=found, reason=reason, status=status, tool=name, took_s=ran.took_s, unread=tuple(sorted(lacking))
    )


def _lacks(tree: Path, item: Mapping[str, Any]) -> bool:
    """An import of what is not installed here: the environment's fault, and what hides other errors of the file."""
    missing = _MISSING.search(text_of(item["message"])) if item["code"] == "import-not-found" else None
    return missing is not None and not has_module(tree, missing.group(1))


def _findings(order: ScanOrder, items: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    lines = SourceLines(order.tree)
    for item in items:
        code, line = text_of(item["code"], default="misc"), max(0, int(item["line"]))
        place = Place(path=order.relative(text_of(item["file"])), line=line, column=max(0, int(item["column"]) + 1))
        yield Finding(
            category="syntax" if code == "syntax" else "typing",
            evidence=lines.at(place.path, line),
            links=(_LINK.format(code),),
            message=text_of(item["message"]),
            places=(place,),
            rule=code,
            severity=Severity.HIGH if code == "syntax" else Severity.MEDIUM,
            suggestion=" ".join(text_of(item.get("hint"), default="").split()),
            tool=Mypy.name,
        )
