"""Applies the fixes that ``cargo check`` and ``cargo clippy`` call applicable by a machine to some files of a tree.

Owns one invariant: bytes are replaced only where the file holds what the compiler saw when it made its suggestion, all of a
suggestion or nothing of it; and a tree that built before builds afterwards, or it is put back as it was. What was formatted
stays so.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.checks.adapter import FixResult, ScanOrder
from coordinator.checks.cargo_project import PASSES, cargo_environment, find_projects, run_cargo
from coordinator.checks.ruff_fix import is_within, place_of
from coordinator.checks.tool import Surroundings, find_tool
from coordinator.domain.errors import ToolFailed
from coordinator.domain.finding import ScanReport
from coordinator.domain.settings import GateSettings, ToolSettings
from coordinator.kit.process import Limits, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from coordinator.checks.adapter import FixTask
    from coordinator.checks.cargo_project import CargoProject
    from coordinator.checks.cargo_stream import CargoMessage, SpanEdit

_FLAGS: Final = frozenset({"--all-features", "--no-default-features"})
_VALUED: Final = frozenset({"--features", "-F"})
_FORMAT_BYTES: Final = 64 * 1024 * 1024
_FORMAT_S: Final = 30.0
_ROUNDS: Final = 4
"""A fix may make the next one possible; cargo's own ``fix`` goes as far."""
_TIMEOUT_S: Final = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RustFix:
    """One suggestion of the compiler: ``edits`` by files relative to the tree."""

    code: str
    edits: tuple[tuple[str, SpanEdit], ...]
    message: str

    @property
    def place(self) -> tuple[str, int]:
        path, edit = self.edits[0]
        return path, edit.line


def options_of(arguments: Sequence[str]) -> Iterator[str]:
    """Of the settings' arguments those that a fix has to be looked for with as well: which code there is."""
    words = iter(arguments)
    for word in words:
        if word in _FLAGS:
            yield word
        elif word in _VALUED:
            yield from (word, next(words, ""))


def options_fault(options: Sequence[str]) -> str:
    words = iter(options)
    for word in words:
        if word in _FLAGS:
            continue
        value = next(words, "-")
        if word not in _VALUED or value.startswith("-"):
            return f"asks for an option that this agent does not use: {word}"
    return ""


async def apply(task: FixTask, tool: str, words: Sequence[str]) -> FixResult:
    """Mend ``task.files``; raises ``ToolFailed`` when cargo cannot say how."""
    order = _order(task, tool)
    files = [path for path in task.files if is_within(task.tree, path)]
    before = {path: (task.tree / path).read_bytes() for path in files}
    done: list[RustFix] = []
    built, fixes = await _offered(order, task, words, files)
    tidy = await _formatted(order, files) if fixes else {}
    for _ in range(_ROUNDS):
        applied = apply_edits(task.tree, fixes)
        if not applied:
            break
        done += applied
        builds, fixes = await _offered(order, task, words, files)
        if built and not builds:
            for path, raw in before.items():
                (task.tree / path).write_bytes(raw)
            return FixResult(nothing="nothing was fixed: with the fix that cargo offers the project does not build")
    changed = sorted(path for path in files if (task.tree / path).read_bytes() != before[path])
    for path in changed:
        if path in tidy:
            (task.tree / path).write_bytes(
                await _as_formatted(order, path, tidy[path]) or (task.tree / path).read_bytes()
            )
    if not changed:
        what = ", ".join(task.rules) or "anything"
        return FixResult(nothing=f"nothing to fix: cargo offers no fix for {what} in the task's files that fits them")
    counts = Counter(one.code for one in done)
    told = ", ".join(f"{number} × {code}" for code, number in sorted(counts.items()))
    return FixResult(
        done=tuple(f"{one.place[0]}:{one.place[1]} {one.code} {' '.join(one.message.split())}" for one in done),
        files=tuple(changed),
        headline=f"{tool.replace('-', ' ')}: {', '.join(sorted(counts))} in {place_of(changed)}",
        told=f"fixed {told}",
    )


def _order(task: FixTask, tool: str) -> ScanOrder:
    program = find_tool("cargo", tree=task.tree)
    if program is None:
        raise ToolFailed("cargo was not found on PATH")
    return ScanOrder(
        cache=task.scratch / "cargo",
        program=program,
        scratch=task.scratch,
        settings=ToolSettings(name=tool, arguments=task.options, timeout_s=_TIMEOUT_S),
        surroundings=Surroundings(gate=GateSettings()),
        tree=task.tree,
    )


async def _offered(
    order: ScanOrder, task: FixTask, words: Sequence[str], files: Sequence[str]
) -> tuple[bool, list[RustFix]]:
    """Whether all builds, and what the compiler offers for the task's rules in ``files`` and nowhere else."""
    projects = await find_projects(order)
    if isinstance(projects, ScanReport):
        raise ToolFailed(projects.reason)
    built, fixes = True, {}
    for project in projects.found:
        for more in PASSES:
            ran = await run_cargo(order, project, [*words, *more])
            if isinstance(ran, ScanReport):
                raise ToolFailed(ran.reason)
            built = built and ran[0].built
            for message in ran[0].messages:
                one = _fix(order, project, message)
                if one.edits and one.code in task.rules and all(path in files for path, _ in one.edits):
                    fixes[one.edits] = one
    return built, list(fixes.values())


def _fix(order: ScanOrder, project: CargoProject, message: CargoMessage) -> RustFix:
    edits = tuple((order.relative(str(project.root / edit.file)), edit) for edit in message.edits)
    return RustFix(code=message.code, edits=edits, message=message.message)


async def _formatted(order: ScanOrder, files: Sequence[str]) -> dict[str, str]:
    """Those of ``files`` that are as rustfmt would have them, with the edition of their crate."""
    projects = await find_projects(order)
    crates = [one for project in getattr(projects, "found", ()) for one in project.crates]
    tidy = {}
    for path in files:
        around = [one for one in crates if not one.folder or path.startswith(f"{one.folder}/")]
        edition = max(around, key=lambda one: len(one.folder)).edition if around else ""
        if edition and await _as_formatted(order, path, edition) == (order.tree / path).read_bytes():
            tidy[path] = edition
    return tidy


async def _as_formatted(order: ScanOrder, path: str, edition: str) -> bytes | None:
    """The file alone, by way of stdin: given its name, rustfmt would format the modules that it names as well."""
    program = find_tool("rustfmt", tree=order.tree)
    if program is None:
        return None
    file, out = order.tree / path, order.scratch / "rustfmt.out"
    out.unlink(missing_ok=True)
    limits = Limits(timeout_s=_FORMAT_S, output_bytes=_FORMAT_BYTES)
    exited = await run(
        [str(program), "--edition", edition],
        contained=True,
        cwd=file.parent,
        env=cargo_environment(order),
        errors=order.scratch / "rustfmt.log",
        limits=limits,
        output=out,
        stdin=file,
    )
    return out.read_bytes() if exited.code == 0 else None


def apply_edits(tree: Path, fixes: Iterable[RustFix]) -> list[RustFix]:
    """Write what fits and does not touch bytes that another fix replaces; returns what was written."""
    raws: dict[str, bytes] = {}
    taken: dict[str, list[SpanEdit]] = {}
    done = []
    for fix in sorted(fixes, key=lambda one: (one.place[0], one.edits[0][1].start)):
        for path, _ in fix.edits:
            raws.setdefault(path, (tree / path).read_bytes())
        if all(fits(raws[path], edit) for path, edit in fix.edits) and not _clashes(fix, taken):
            done.append(fix)
            for path, edit in fix.edits:
                taken.setdefault(path, []).append(edit)
    for path, edits in taken.items():
        raw = raws[path]
        for edit in sorted(edits, key=lambda one: (one.start, one.end), reverse=True):
            raw = raw[: edit.start] + edit.text.encode() + raw[edit.end :]
        (tree / path).write_bytes(raw)
    return done


def fits(raw: bytes, edit: SpanEdit) -> bool:
    """Whether the file's bytes at the place of the edit are the lines that the compiler saw there."""
    if not 0 <= edit.start <= edit.end <= len(raw) or not edit.lines or edit.line < 1:
        return False
    lines = raw.split(b"\n")[edit.line - 1 : edit.line - 1 + len(edit.lines)]
    if [line.rstrip(b"\r") for line in lines] != [line.encode(errors="replace") for line in edit.lines]:
        return False
    begin = sum(len(line) + 1 for line in raw.split(b"\n")[: edit.line - 1])
    before = edit.lines[0][: edit.column - 1].encode(errors="replace")
    return edit.start == begin + len(before) and edit.end <= begin + sum(len(line) + 1 for line in lines)


def _clashes(fix: RustFix, taken: Mapping[str, Sequence[SpanEdit]]) -> bool:
    """Two fixes that only touch clash as well: whether they go together, nobody says. Edits of one fix are made to touch."""
    own: dict[str, list[SpanEdit]] = {}
    for path, edit in fix.edits:
        if any(edit.start <= other.end and other.start <= edit.end for other in taken.get(path, ())):
            return True
        if any(edit.start < other.end and other.start < edit.end for other in own.get(path, ())):
            return True
        own.setdefault(path, []).append(edit)
    return len({(path, edit.start) for path, edit in fix.edits}) < len(fix.edits)
