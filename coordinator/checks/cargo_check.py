"""``cargo check`` and ``cargo clippy`` as discovery tools: what the compiler and clippy say of the Rust code of a tree.

Owns one invariant: a crate that does not build hides its warnings, so nothing of it is taken for mended. A build runs build
scripts and macros of the project and of what it depends on, as the gate's ``cargo test`` does: so ``cargo check`` comes by itself
only where the gate builds as well, and clippy, which builds once more, when named. How fixes are applied is ``cargo_fix``'s.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from coordinator.checks import cargo_fix
from coordinator.checks.adapter import UNREADABLE, SourceLines, accept_by_look, broken, walk_files
from coordinator.checks.cargo_project import LOCK, MANIFEST, PASSES, find_projects, run_cargo
from coordinator.domain.finding import Finding, Fix, Place, ScanReport, ScanStatus, Severity, identified

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from coordinator.checks.adapter import FixResult, FixTask, ScanOrder, TreeFiles
    from coordinator.checks.cargo_project import CargoProject, CargoProjects
    from coordinator.checks.cargo_stream import CargoMessage, CargoStream
    from coordinator.policy.grouping import TaskGroup

_CLIPPY: Final = "clippy::"
_DEAD: Final = re.compile(r"unused|dead_code|unreachable|redundant")
_ERROR_CODE: Final = re.compile(r"E\d{4}")
_MANIFEST_RULE: Final = "manifest"
_NIGHTLY: Final = "E0554"
"""The crate asks for features that only an unreleased compiler has: that is the machine's lack, not the code's."""
_NO_CODE: Final = "error"


class CargoCheck:
    fixes = frozenset({Fix.SAFE})
    name = "cargo-check"
    program = "cargo"
    reads: tuple[str, ...] = (
        *("*.rs", MANIFEST, LOCK, "rust-toolchain", "rust-toolchain.toml", ".cargo/config*", "*/.cargo/config*"),
        *("clippy.toml", ".clippy.toml"),
    )
    remedy = "install Rust (rustup.rs), and put cargo on PATH"
    stale_after_s: float | None = 24 * 3600.0  # the program that is found stands for whatever toolchain there is
    standard = True
    words: tuple[str, ...] = ("check",)

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        if named or MANIFEST in files.names:
            return "" if files.any(MANIFEST) else f"there is no {MANIFEST}"
        return f"there is no {MANIFEST} in the top folder, and the settings do not name it"

    def counts(self, code: str) -> bool:
        """Whether what the compiler tells under ``code`` is this tool's to report."""
        return not code.startswith(_CLIPPY) and code != _NIGHTLY

    async def scan(self, order: ScanOrder) -> ScanReport:
        projects = await find_projects(order)
        if isinstance(projects, ScanReport):
            return projects
        found: list[Finding] = list(_manifest_findings(self.name, projects))
        hidden, nightly = set(projects.hidden), set()
        took_s = 0.0
        for project in projects.found:
            streams = []
            for more in PASSES:
                ran = await run_cargo(order, project, [*self.words, *more])
                if isinstance(ran, ScanReport):
                    return ran
                streams.append(ran[0])
                took_s += ran[1]
            told = await asyncio.to_thread(findings_of_build, self, order, project, streams[0], streams[1])
            if isinstance(told, ScanReport):
                return told
            found += told
            hidden |= _not_built(order, project, streams)
            nightly |= {one.manifest for stream in streams for one in stream.messages if one.code == _NIGHTLY}
        reason = f"{len(nightly)} crates need a nightly compiler, and the one here is none" if nightly else ""
        return ScanReport(
            findings=await asyncio.to_thread(identified, found),
            options=tuple(cargo_fix.options_of(order.settings.arguments)),
            reason=reason,
            status=ScanStatus.PARTIAL if nightly else ScanStatus.SCANNED,
            tool=self.name,
            took_s=took_s,
            unread=await asyncio.to_thread(_unread, order, hidden),
        )

    def accept(self, group: TaskGroup, options: Sequence[str]) -> str:
        return accept_by_look(group)

    def options_fault(self, options: Sequence[str]) -> str:
        return cargo_fix.options_fault(options)

    async def fix(self, task: FixTask) -> FixResult:
        return await cargo_fix.apply(task, self.name, self.words)


class CargoClippy(CargoCheck):
    name = "cargo-clippy"
    remedy = "rustup component add clippy"
    standard = False
    words = ("clippy",)

    def counts(self, code: str) -> bool:
        return code.startswith(_CLIPPY)


def _manifest_findings(tool: str, projects: CargoProjects) -> Iterator[Finding]:
    for manifest, said in projects.faults.items():
        yield Finding(
            about=_MANIFEST_RULE,
            category="bugs",
            message=f"cargo cannot read it: {said}",
            places=(Place(path=manifest),),
            rule=_MANIFEST_RULE,
            scope=manifest.rpartition("/")[0],
            severity=Severity.MEDIUM,
            tool=tool,
        )


def findings_of_build(
    tool: CargoCheck, order: ScanOrder, project: CargoProject, plain: CargoStream, whole: CargoStream
) -> tuple[Finding, ...] | ScanReport:
    """``whole`` is with tests, which ``plain`` is without."""
    try:
        return identified(_findings(tool, order, project, plain, whole))
    except UNREADABLE as error:
        return broken(tool.name, f"its report could not be read: {type(error).__name__}: {error}")


def _findings(
    tool: CargoCheck, order: ScanOrder, project: CargoProject, plain: CargoStream, whole: CargoStream
) -> Iterator[Finding]:
    """Several targets of a crate tell the same of a file."""
    lines = SourceLines(order.tree)
    told = Counter(map(_identity, plain.messages))
    again = Counter(map(_identity, whole.messages))
    for one in {_identity(message): message for message in (*plain.messages, *whole.messages)}.values():
        key, normal = _identity(one), (one.manifest, one.target, False) in whole.artifacts
        tested = (one.manifest, one.target, True) in whole.artifacts
        needed = (
            tested and told[key] > 0 and again[key] <= (told[key] if normal else 0)
        )  # the tests do not find it idle
        place = _place(order, project, one)
        if tool.counts(one.code) and place is not None:
            yield _finding(tool.name, lines, order, one, place, needed=needed)


def _identity(message: CargoMessage) -> tuple[object, ...]:
    return message.manifest, message.code, message.message, message.spans


def _place(order: ScanOrder, project: CargoProject, message: CargoMessage) -> Place | None:
    """The first place in the tree, a macro's caller at need; None for a warning about what is not of the tree."""
    for span in message.spans:
        for file, line, column, _, _ in span:
            path = order.relative(str(project.root / file))
            if not path.startswith(("/", "../")) and (order.tree / path).is_file():
                return Place(path=path, line=line, column=column)
    manifest = order.relative(message.manifest)
    inside = manifest in {crate.manifest for crate in project.crates}
    return Place(path=manifest) if inside and (message.error or not message.spans) else None


def _finding(
    tool: str, lines: SourceLines, order: ScanOrder, message: CargoMessage, place: Place, *, needed: bool
) -> Finding:
    code = message.code
    fault = message.error and (not code or _ERROR_CODE.fullmatch(code) is not None)  # others are lints that are denied
    fix = Fix.NONE
    if message.helps:
        fix = Fix.SAFE if message.edits and not fault and not needed else Fix.UNSAFE
    dead = not fault and _DEAD.search(code) is not None
    return Finding(
        category="bugs" if fault else "dead code" if dead else "style" if code.startswith(_CLIPPY) else "bugs",
        evidence=lines.at(place.path, place.line) if place.line else "",
        fix=fix,
        links=_links(code),
        message=" ".join(message.message.split())[:2000],
        places=(place,),
        rule=code or _NO_CODE,
        scope=order.relative(message.manifest).rpartition("/")[0],
        severity=Severity.HIGH if fault else Severity.LOW if dead or code.startswith(_CLIPPY) else Severity.MEDIUM,
        suggestion=message.helps[0][:300] if message.helps else "",
        tool=tool,
    )


def _links(code: str) -> tuple[str, ...]:
    if code.startswith(_CLIPPY):
        return (f"https://rust-lang.github.io/rust-clippy/master/index.html#{code.removeprefix(_CLIPPY)}",)
    return (f"https://doc.rust-lang.org/error_codes/{code}.html",) if _ERROR_CODE.fullmatch(code) else ()


def _not_built(order: ScanOrder, project: CargoProject, streams: Sequence[CargoStream]) -> set[str]:
    """Folders of crates with errors, and of those that were not come to because of them."""
    if all(one.built for one in streams):
        return set()
    faulty = {order.relative(one.manifest) for stream in streams for one in stream.messages if one.error}
    done: dict[str, set[str]] = {}
    for manifest, target, _ in (one for stream in streams for one in stream.artifacts):
        done.setdefault(order.relative(manifest), set()).add(target)
    return {
        crate.folder
        for crate in project.crates
        if crate.manifest in faulty or crate.targets - done.get(crate.manifest, set())
    }


def _unread(order: ScanOrder, hidden: Collection[str]) -> tuple[str, ...]:
    """A crate's folder; where that is the top, which has other crates below it, its files."""
    unread = {f"{folder}/" for folder in hidden if folder}
    if "" in hidden:
        names = walk_files(order.tree).names
        others = [folder for folder in _crate_folders(names) if folder]
        unread |= {
            name
            for name in names
            if (name.endswith(".rs") or name == MANIFEST) and not any(name.startswith(f"{one}/") for one in others)
        }
    return tuple(sorted(unread))


def _crate_folders(names: Iterable[str]) -> set[str]:
    return {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == MANIFEST}
