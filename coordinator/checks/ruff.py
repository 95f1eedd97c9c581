"""What ruff finds in a tree: as findings for discovery, as a check for the gate.

Owns one invariant: a report is ``SCANNED`` only when ruff itself said that it looked (exit 0 or 1 and a readable list);
files it could not parse are named in ``unread``. It never changes the tree. Fixing is ``fleet.autofix``'s.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
import tomllib
from collections import Counter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks.adapter import UNREADABLE, SourceLines, broken, text_of, unavailable
from coordinator.checks.tool import find_tool, last_line, run_tool, tool_environment
from coordinator.domain.check import BrokenBy, CheckOutcome, CheckStatus
from coordinator.domain.finding import Finding, Fix, Place, ScanReport, ScanStatus, Severity, identified, steady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from coordinator.checks.tool import ToolRun

DEFAULT_SELECT: Final = ("B", "C4", "E4", "E7", "E9", "F", "PLE", "UP", "W6")
"""Rules for a project that selects none: faults, and idioms its oldest Python has a better word for. Style and sorting
are left to its owner.

Pinned here because ruff's own default set differs from release to release (59 rules once, 407 in 0.17).
"""

_CONFIG_FILES: Final = (".ruff.toml", "ruff.toml", "pyproject.toml")
_LIMIT_S: Final = 120.0
_REPORT_BYTES: Final = 256 * 1024 * 1024
_OLDEST, _NEWEST = 7, 15  # Python 3.x that ruff knows by name
_UNREADABLE: Final = frozenset({"E902", "invalid-syntax", "E999"})

_CATEGORIES: Final = (
    ("dead code", ("F401", "F811", "F841", "ERA")),
    ("complexity", ("C90", "PLR09")),
    ("security", ("S",)),
    ("documentation", ("D", "DOC")),
    ("modernise", ("UP", "FA", "FURB", "PTH")),
    ("performance", ("PERF",)),
    ("imports", ("I", "TC", "TID", "ICN")),
    ("typing", ("ANN", "PYI")),
    ("bugs", ("A", "ASYNC", "B", "BLE", "DTZ", "E7", "E9", "F", "PLE", "PLW", "RUF", "W6")),
)
_SEVERITIES: Final = MappingProxyType(
    {
        "bugs": Severity.MEDIUM,
        "security": Severity.MEDIUM,
        "documentation": Severity.INFO,
        "imports": Severity.INFO,
        "typing": Severity.INFO,
        "syntax": Severity.HIGH,
    }
)
_FIXES: Final = MappingProxyType({"safe": Fix.SAFE, "unsafe": Fix.UNSAFE})


async def scan(
    tree: Path,
    *,
    select: Sequence[str] = (),
    target_version: str | None = None,
    ruff: Path | None = None,
    timeout_s: float = _LIMIT_S,
) -> ScanReport:
    """Scan ``tree`` with the rules of ``select``, else of the project's configuration, else ``DEFAULT_SELECT``.

    ``target_version`` (``py39``) is worked out from the project's files when None. Nothing that ruff does
    is raised.
    """
    found = ruff or find_tool("ruff", tree=tree)
    if found is None:
        return ScanReport(tool="ruff", status=ScanStatus.UNAVAILABLE, reason="ruff was not found; pip install ruff")
    from coordinator.kit.process import Limits

    with tempfile.TemporaryDirectory(prefix="coordinator-ruff-") as folder:
        scratch = Path(folder)
        report = scratch / "report.jsonl"
        words = check_arguments(report, configuration_arguments(tree, select=select, target_version=target_version))
        ran = await run_tool(
            [str(found), *words],
            cwd=tree,
            env=tool_environment(tree, scratch=scratch),
            limits=Limits(timeout_s=timeout_s, output_bytes=16 * 1024 * 1024),
            log=scratch / "log",
        )
        return await asyncio.to_thread(read_report, tree, report, ran)


def check_arguments(report: Path, options: Sequence[str]) -> list[str]:
    """``ruff check`` of the whole folder it is run in, told into ``report``.

    A line for each finding: a report of many MB, decoded at one go, holds up every thread.
    """
    words = ["check", "--no-cache", "--no-fix", "--output-format", "json-lines", "--output-file", str(report)]
    return [*words, *options, "."]


def configuration_arguments(tree: Path, *, select: Sequence[str] = (), target_version: str | None = None) -> list[str]:
    """The options that make ruff see ``tree`` as its owner means it, wherever the tree happens to lie.

    Without a configuration of the tree's own, ruff would go up through the parent folders and use one it meets there;
    ``--isolated`` stops that, and also the reading of ``requires-python``, which is therefore passed on.
    """
    config = own_configuration(tree)
    arguments: list[str] = []
    if config is None:
        arguments.append("--isolated")
    version = target_version or (None if config and "target-version" in config else project_target_version(tree))
    if version:
        arguments += ["--target-version", version]
    if select or config is None or not _selects(config):
        # A selection on the command line sets aside everything the file says about rules: say it again here.
        chosen = list(select) or [*DEFAULT_SELECT, *_rules(config or {}, "extend-select")]
        ignored = [*_rules(config or {}, "ignore"), *_rules(config or {}, "extend-ignore")]
        arguments += ["--select", ",".join(chosen)]
        arguments += ["--ignore", ",".join(ignored)] if ignored else []
    if not (tree / ".git").exists():
        # Outside a repository ruff obeys ignore files of the folders above, and a run-time folder ignores itself.
        arguments.append("--no-respect-gitignore")
    return arguments


def own_configuration(tree: Path) -> Mapping[str, Any] | None:
    """The tree's own ruff configuration or None; an unreadable one counts, so that ruff itself complains."""
    for name in _CONFIG_FILES:
        data = _read_toml(tree / name)
        if data is None:
            continue
        if name != "pyproject.toml":
            return data
        section = data.get("tool", {}).get("ruff") if isinstance(data.get("tool", {}), dict) else None
        if isinstance(section, dict):
            return section
        if "\0unreadable" in data:
            return data
    return None


def _read_toml(path: Path) -> dict[str, Any] | None:
    if path.is_symlink() or not path.is_file():
        return None
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"\0unreadable": True}


def _selects(config: Mapping[str, Any]) -> bool:
    return "\0unreadable" in config or "extend" in config or any("select" in part for part in _lint_sections(config))


def _rules(config: Mapping[str, Any], key: str) -> list[str]:
    values = [part.get(key) for part in _lint_sections(config)]
    return [rule for value in values if isinstance(value, list) for rule in value if isinstance(rule, str)]


def _lint_sections(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Rules may be chosen in ``[lint]`` and, as in old releases, beside it."""
    lint = config.get("lint", {})
    return (config, lint if isinstance(lint, dict) else {})


def project_target_version(tree: Path) -> str | None:
    """The oldest Python the project says it supports, as ruff names it (``py39``); None when it does not say.

    ``requires-python``, else ``python_requires`` of ``setup.cfg`` or ``setup.py``, which ruff itself does not read: its
    fixes would otherwise drop Pythons that the project supports.
    """
    project = (_read_toml(tree / "pyproject.toml") or {}).get("project", {})
    texts = [str(project.get("requires-python", "")) if isinstance(project, dict) else ""]
    for name, pattern in (
        ("setup.cfg", r"^\s*python_requires\s*=\s*(.+)$"),
        ("setup.py", r"python_requires\s*=\s*['\"]([^'\"]+)['\"]"),
    ):
        path = tree / name
        if path.is_file() and not path.is_symlink():
            match = re.search(pattern, path.read_bytes()[:1_000_000].decode(errors="replace"), re.MULTILINE)
            texts.append(match.group(1) if match else "")
    return next((version for version in map(_lowest_version, texts) if version), None)


def _lowest_version(specifier: str) -> str | None:
    """``>=3.8,<4`` → ``py38``. Lower than ruff knows becomes the oldest it knows."""
    for operator, major, minor in re.findall(r"(>=|~=|==|>)\s*(\d+)(?:\.(\d+))?", specifier):
        if int(major) < 3:
            return f"py3{_OLDEST}"
        number = int(minor or 0) + (1 if operator == ">" and minor else 0)
        return f"py3{min(max(number, _OLDEST), _NEWEST)}"
    return None


def read_report(tree: Path, report: Path, ran: ToolRun) -> ScanReport:
    """What a run with ``check_arguments`` left behind, understood."""
    if ran.problem or ran.code not in {0, 1}:
        return failed_report("ruff", ran)
    try:
        if report.stat().st_size > _REPORT_BYTES:
            return broken("ruff", f"ruff's report is larger than {_REPORT_BYTES} bytes", ran)
        with report.open("rb") as lines:
            items = [json.loads(line) for line in lines if line.strip()]
        findings = _findings(tree, items)
    except UNREADABLE as error:
        return broken("ruff", f"ruff's report could not be read: {type(error).__name__}: {error}", ran)
    unread = sorted({found.place.path for found in findings if found.rule in _UNREADABLE})
    return ScanReport(
        tool="ruff", status=ScanStatus.SCANNED, findings=findings, unread=tuple(unread), took_s=ran.took_s
    )


def failed_report(tool: str, ran: ToolRun) -> ScanReport:
    """Of a ruff that did not come to its end, or exited with what is no answer."""
    if "Required version" in ran.output and not ran.problem:
        return unavailable(tool, f"ruff exited with {ran.code}: {_complaint(ran.output)}", ran)
    return broken(tool, f"ruff exited with {ran.code}: {_complaint(ran.output)}", ran)


def _complaint(output: str) -> str:
    """Ruff's own causes in one line: what failed, then the innermost reasons."""
    causes = [line.strip().removeprefix("Cause:").strip() for line in output.splitlines() if "Cause:" in line]
    return "; ".join(causes)[:400] if causes else last_line(output)


def _findings(tree: Path, items: Iterable[Mapping[str, Any]]) -> tuple[Finding, ...]:
    root, sources = tree.resolve(), SourceLines(tree)
    found = []
    for item in items:
        path, row = relative_path(text_of(item["filename"]), root), _row(item)
        place = Place(path=path, line=row, column=int(item["location"]["column"]) if row else 0)
        found.append(_finding(item, place=place, evidence=sources.at(path, row)))
    return identified(found)


def _finding(item: Mapping[str, Any], *, place: Place, evidence: str) -> Finding:
    fix, rule = item.get("fix") or {}, text_of(item["code"] or "invalid-syntax")
    category, url = categorise(rule), text_of(item.get("url"), default="")
    return Finding(
        tool="ruff",
        rule=rule,
        category=category,
        message=text_of(item["message"]),
        places=(place,),
        evidence=evidence,
        fix=_FIXES.get(fix.get("applicability", ""), Fix.NONE),
        severity=_SEVERITIES.get(category, Severity.LOW),
        suggestion=text_of(fix.get("message"), default=""),
        links=(url,) if url else (),
    )


def _row(item: Mapping[str, Any]) -> int:
    # Rows of a notebook count within a cell; they say nothing about the file's lines.
    return 0 if item.get("cell") is not None else int(item["location"]["row"])


def relative_path(filename: str, root: Path) -> str:
    path = Path(filename)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def categorise(rule: str) -> str:
    """The kind of trouble a rule is about; the longest matching prefix decides."""
    if rule in _UNREADABLE:
        return "syntax"
    letters = re.match(r"[A-Z]+", rule)
    for category, prefixes in _CATEGORIES:
        for prefix in prefixes:
            if rule == prefix or (rule.startswith(prefix) and not prefix.isalpha()):
                return category
            if letters and letters.group() == prefix:
                return category
    return "style"


class RuffCheck:
    """The gate's view: only findings that are not on the target count.

    A name is file, rule and message with an ordinal, without the source line: touching a line must not make an old
    finding on it a new one.
    """

    required = False
    name = "ruff"
    tests = False

    def __init__(self, *, ruff: Path, timeout_s: float, identity: Callable[[Path], str]) -> None:
        self._ruff = ruff
        self._timeout_s = timeout_s
        self.key = f"ruff {identity(ruff)} {','.join(DEFAULT_SELECT)}"

    async def run(self, tree: Path, scratch: Path) -> CheckOutcome:
        report = await scan(tree, ruff=self._ruff, timeout_s=self._timeout_s)
        if report.status is not ScanStatus.SCANNED:
            return CheckOutcome(
                check=self.name,
                status=CheckStatus.BROKEN,
                broken_by=report.broken_by or BrokenBy.TREE,
                reason=report.reason,
                took_s=report.took_s,
            )
        names = finding_names(report.findings)
        return CheckOutcome(
            check=self.name,
            status=CheckStatus.FAILED if names else CheckStatus.PASSED,
            failures=frozenset(names),
            took_s=report.took_s,
        )


def finding_names(findings: Iterable[Finding]) -> list[str]:
    """One stable, readable name per finding, unique within a tree."""
    ordinals: Counter[str] = Counter()
    names = []
    for finding in findings:
        name = f"{finding.place.path}: {finding.rule} {steady(finding.message).splitlines()[0]}"
        ordinals[name] += 1
        names.append(name if ordinals[name] == 1 else f"{name} ({ordinals[name]})")
    return names
