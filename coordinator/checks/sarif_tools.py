"""Any tool that speaks SARIF as a discovery tool: commands that print it (``sarif``), files that hold it (``sarif-file``).

Owns one invariant: findings are only those of logs that were all read to their end. Commands are asked again to judge a change,
as any tool is; a file is somebody else's, so a change is judged by whether the lines that it quotes are gone.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks.adapter import UNREADABLE, FindingTool, SourceLines, accept_by_look, broken, unavailable
from coordinator.checks.sarif_report import SarifReader
from coordinator.checks.tool import exit_words
from coordinator.domain.finding import ScanReport, ScanStatus, identified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.checks.adapter import Printed, ScanOrder, TreeFiles
    from coordinator.domain.finding import Finding
    from coordinator.policy.grouping import TaskGroup

_LARGEST_BYTES: Final = 64 * 1024 * 1024
_NOT_FOUND: Final = 127


class _Sarif(FindingTool):
    """What both ways have in common. The program is the shell, which runs the commands of the settings."""

    program = "sh"
    reads = ("*",)
    remedy = "a POSIX shell"
    standard = False

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        return "" if named else "[discovery] extra_tools does not name it"


class SarifCommands(_Sarif):
    name = "sarif"
    stale_after_s: float | None = None

    async def scan(self, order: ScanOrder) -> ScanReport:
        commands = order.settings.commands
        if not commands:
            return unavailable(self.name, 'its [[discovery.tool]] has no commands, e.g. ["semgrep --sarif --quiet"]')
        found: list[Finding] = []
        reader, took_s = _reader(order, self.name), 0.0
        for command in commands:
            printed = await order.run(["-c", command])
            took_s += printed.ran.took_s
            answer = await asyncio.to_thread(understood_sarif, reader, printed, command)
            if isinstance(answer, ScanReport):
                return answer
            found += answer
        report = await asyncio.to_thread(identified, found)
        return ScanReport(findings=report, status=ScanStatus.SCANNED, tool=self.name, took_s=took_s)


class SarifFiles(_Sarif):
    """Files are looked for from the top of the user's checkout. What they say is older than the tree by nature, so every scan
    reads them again.
    """

    name = "sarif-file"
    stale_after_s: float | None = 0.0

    async def scan(self, order: ScanOrder) -> ScanReport:
        if not order.settings.files:
            return unavailable(self.name, 'its [[discovery.tool]] has no files, e.g. ["reports/scan.sarif"]')
        return await asyncio.to_thread(_read_files, order, _reader(order, self.name, quoted=True))

    def accept(self, group: TaskGroup, options: Sequence[str]) -> str:
        """No line that a finding quotes is left in its file; what quotes none cannot be judged before the next report."""
        quotes = sorted({(one.place.path, one.evidence) for one in group.findings if one.evidence})
        asked = [f"! grep -qsF -e {shlex.quote(text)} -- {shlex.quote(path)}" for path, text in quotes]
        return " && ".join(asked) or accept_by_look(group)


def _reader(order: ScanOrder, tool: str, *, quoted: bool = False) -> SarifReader:
    return SarifReader(lines=SourceLines(order.tree), quoted=quoted, relative=order.relative, tool=tool)


def understood_sarif(reader: SarifReader, printed: Printed, command: str) -> list[Finding] | ScanReport:
    """Exit codes differ from tool to tool: what was printed decides, and a log that can be read is one."""
    ran, name = printed.ran, reader.tool
    if ran.problem:
        return broken(name, "", ran)
    said = f"{command!r:.100} {exit_words(ran)}"
    try:
        text = printed.out.read_text(encoding="utf-8-sig")
        if not text.strip():
            return (unavailable if ran.code == _NOT_FOUND else broken)(name, said, ran)
        return list(reader.findings(json.loads(text)))
    except UNREADABLE as error:
        return broken(name, f"{said}; its log could not be read: {type(error).__name__}: {error}", ran)


def _read_files(order: ScanOrder, reader: SarifReader) -> ScanReport:
    found: list[Finding] = []
    for name in order.settings.files:
        top = order.surroundings.checkout or order.tree
        path = top / Path(name).expanduser()
        if not path.is_file():
            return unavailable(reader.tool, f"{name} is not there")
        try:
            log: Any = json.loads(_text_of(path))
            found += reader.findings(log)
        except UNREADABLE as error:
            return broken(reader.tool, f"{name} could not be read: {type(error).__name__}: {error}")
    return ScanReport(findings=identified(found), status=ScanStatus.SCANNED, tool=reader.tool)


def _text_of(path: Path) -> str:
    if path.stat().st_size > _LARGEST_BYTES:
        raise ValueError(f"larger than {_LARGEST_BYTES} bytes")
    return path.read_text(encoding="utf-8-sig")
