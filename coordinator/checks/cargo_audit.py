"""``cargo audit`` as a discovery tool: known vulnerabilities of the crates that lock files pin, and those given up or yanked.

Owns one invariant: without an advisory database that is not too old nothing is clean. Nothing is built. Whether a version is
yanked the registry's index alone knows: where it cannot be asked, what it said last counts for as long as the version is locked.
Versions are moved by ``cargo_upgrade``.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks import cargo_upgrade
from coordinator.checks.adapter import (
    UNREADABLE,
    SourceLines,
    accept_by_look,
    broken,
    glob_matcher,
    text_of,
    unavailable,
    walk_files,
)
from coordinator.checks.cargo_versions import (
    comes_later,
    is_crate,
    is_crate_version,
    is_reachable,
    latest_crate_version,
    next_patched,
    read_lock,
)
from coordinator.checks.cvss_score import base_score
from coordinator.checks.tool import last_line
from coordinator.domain.errors import ToolFailed
from coordinator.domain.finding import (
    Finding,
    Fix,
    Place,
    ScanReport,
    ScanStatus,
    Severity,
    identified,
    severity_of_cvss,
)
from coordinator.kit import lock as kit_lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from coordinator.checks.adapter import FixResult, FixTask, Printed, ScanOrder, TreeFiles
    from coordinator.policy.grouping import TaskGroup

_KNOWN: Final = "yanked.json"
_LOCK: Final = "Cargo.lock"
_MOST_MOVES: Final = 8
_NO_FETCH: Final = frozenset({"-n", "--no-fetch"})
_NO_INDEX: Final = "couldn't check if the package is yanked"
_NO_DATABASE: Final = re.compile(r"advisory database|advisory-db")
_OLDEST_DATABASE_S: Final = 90 * 24 * 3600.0
"""After which cargo-audit, too, does not use it."""
_SEVERITIES: Final = MappingProxyType(
    {
        "notice": Severity.INFO,
        "unmaintained": Severity.LOW,
        "unsound": Severity.MEDIUM,
        "yanked": Severity.LOW,
    }
)
_YANKED: Final = "yanked"


@dataclass(frozen=True, slots=True, kw_only=True)
class CrateAdvisory:
    """What the database says of one locked version; ``kind`` is empty for a vulnerability. ``id`` is ``yanked`` where the
    registry says it.
    """

    id: str
    ids: tuple[str, ...] = ()
    kind: str = ""
    package: str
    patched: tuple[str, ...] = ()
    title: str = ""
    url: str = ""
    vector: str = ""
    version: str

    @property
    def at(self) -> tuple[str, str]:
        return self.package, self.version


@dataclass(frozen=True, slots=True, kw_only=True)
class LockAnswer:
    """What one lock file's audit said. ``blind``: nobody could say what is yanked."""

    blind: bool = False
    found: tuple[CrateAdvisory, ...]


class _NoAnswer(ToolFailed):
    """Carries the report that says why."""

    def __init__(self, report: ScanReport) -> None:
        super().__init__(report.reason)
        self.report = report


class CargoAudit:
    fixes = frozenset({Fix.VERSION})
    name = "cargo-audit"
    program = "cargo-audit"
    reads = (_LOCK, ".cargo/audit.toml", "*/.cargo/audit.toml")
    remedy = "cargo install cargo-audit --locked"
    stale_after_s: float | None = 12 * 3600.0
    standard = True

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        return "" if files.any(_LOCK) else f"there is no {_LOCK}"

    async def scan(self, order: ScanOrder) -> ScanReport:
        names = (await asyncio.to_thread(walk_files, order.tree)).names
        asked, found = _Asked(order), []
        known = await asyncio.to_thread(kit_lock.read_object, order.cache / _KNOWN) or {}
        yanked: dict[str, list[list[str]]] = {}
        try:
            for path in sorted(filter(glob_matcher((_LOCK,)), names)):
                answer = await asked.about(order.tree / path)
                locked = _LockFile(order.tree, path)
                told = [*answer.found, *(_still_yanked(locked, known.get(path)) if answer.blind else ())]
                yanked[path] = [list(one.at) for one in told if one.kind == _YANKED]
                sound = await asked.sound_versions(told)
                found += await asyncio.to_thread(lambda: list(_findings(locked, told, sound)))  # noqa: B023 - awaited here
            report = await asyncio.to_thread(identified, found)
        except _NoAnswer as failed:
            return failed.report
        except UNREADABLE as error:
            return broken(self.name, f"a lock file or its report could not be read: {type(error).__name__}: {error}")
        kit_lock.write_atomic(order.cache / _KNOWN, json.dumps(yanked).encode())
        return ScanReport(findings=report, status=ScanStatus.SCANNED, tool=self.name, took_s=asked.took_s)

    def accept(self, group: TaskGroup, options: Sequence[str]) -> str:
        return accept_by_look(group)

    def options_fault(self, options: Sequence[str]) -> str:
        return f"asks for an option that this agent does not use: {options[0]}" if options else ""

    async def fix(self, task: FixTask) -> FixResult:
        return await cargo_upgrade.apply(task)


class _Asked:
    """Runs of the tool for one scan; the database is fetched once."""

    def __init__(self, order: ScanOrder) -> None:
        self._fetch = not _NO_FETCH & set(order.settings.arguments)
        self._order = order
        self.took_s = 0.0

    async def about(self, lock: Path) -> LockAnswer:
        """Raises ``_NoAnswer``."""
        printed = await self._run(lock)
        if self._fetch:
            if not printed.ran.problem and "couldn't fetch" in printed.ran.output:
                self._check_age(printed)
                self._fetch = False
                printed = await self._run(lock)
            self._fetch = False
        answer = await asyncio.to_thread(understood_cargo_audit, self._order.relative(str(lock)), printed)
        if isinstance(answer, ScanReport):
            raise _NoAnswer(answer)
        return answer

    async def _run(self, lock: Path) -> Printed:
        named = bool(_NO_FETCH & set(self._order.settings.arguments))
        words = ["audit", "--json", "--color", "never", "--file", str(lock)]
        words += [] if self._fetch or named else ["--no-fetch"]
        printed = await self._order.run(words, cwd=lock.parent)
        self.took_s += printed.ran.took_s
        return printed

    def _check_age(self, printed: Printed) -> None:
        """Raises ``_NoAnswer`` when what was fetched before is missing or too old."""
        age_s, said = _age_of_database(self._order), last_line(printed.ran.output)
        if age_s is None or age_s > _OLDEST_DATABASE_S:
            old = (
                "there is none from before" if age_s is None else f"the one from before is {age_s / 86400:.0f} days old"
            )
            reason = f"the advisory database could not be fetched, and {old}: {said}"
            raise _NoAnswer(unavailable(CargoAudit.name, reason, printed.ran))

    async def sound_versions(self, found: Sequence[CrateAdvisory]) -> dict[tuple[str, str], str]:
        """The lowest reachable version of each vulnerable one that mends all that can be mended and has nothing of its own."""
        vulnerable = [one for one in found if not one.kind]
        moves = {
            one.at: _step(one.version, [other for other in vulnerable if other.at == one.at]) for one in vulnerable
        }
        hopeless = {(one.at, one.id) for one in vulnerable if not _step(one.version, [one])}
        sound: dict[tuple[str, str], str] = {}
        for _ in range(_MOST_MOVES):
            left = {at: to for at, to in moves.items() if to}
            if not left:
                break
            then = await self._about_versions({(package, to) for (package, _), to in left.items()})
            for at, to in left.items():
                bad = [one for one in then if one.at == (at[0], to) and not one.kind and (at, one.id) not in hopeless]
                if not bad:
                    sound[at] = to
                steps = [_step(to, [one]) for one in bad]
                moves[at] = latest_crate_version(steps) if steps and all(steps) else ""
        return sound

    async def _about_versions(self, wanted: Iterable[tuple[str, str]]) -> Sequence[CrateAdvisory]:
        """As if they were locked."""
        folder = self._order.scratch / f"asked-{len(list(self._order.scratch.glob('asked-*')))}"
        await asyncio.to_thread(folder.mkdir)
        source = 'source = "registry+https://github.com/rust-lang/crates.io-index"'
        entries = [
            f'[[package]]\nname = "{name}"\nversion = "{version}"\n{source}\n' for name, version in sorted(wanted)
        ]
        (folder / _LOCK).write_text("version = 3\n\n" + "\n".join(entries), encoding="utf-8")
        return (await self.about(folder / _LOCK)).found


def _step(version: str, advisories: Iterable[CrateAdvisory]) -> str:
    """The lowest reachable version that mends all of those that a reachable one mends; empty when none does."""
    nexts = [next_patched(version, one.patched) for one in advisories]
    near = [one for one in nexts if one and is_reachable(one, version)]
    return latest_crate_version(near) if near else ""


def _age_of_database(order: ScanOrder) -> float | None:
    """Seconds since something was last fetched into it."""
    arguments, folder = order.settings.arguments, ""
    for word, value in zip(arguments, (*arguments[1:], ""), strict=True):
        folder = value if word in {"--db", "-d"} else word.removeprefix("--db=") if word.startswith("--db=") else folder
    env = order.environment()
    home = Path(env.get("CARGO_HOME") or Path(env.get("HOME", "")) / ".cargo")
    path = Path(folder) if folder else home / "advisory-db"
    if not (path / "crates").is_dir():
        return None
    stamps = [
        path / name for name in ("crates", ".git", ".git/FETCH_HEAD", ".git/HEAD", ".git/index", ".git/packed-refs")
    ]
    return max(0.0, time.time() - max(one.stat().st_mtime for one in stamps if one.exists()))


def understood_cargo_audit(lock: str, printed: Printed) -> LockAnswer | ScanReport:
    """Exit code 1 is that of vulnerabilities and of a database that could not be had; only the first has a report."""
    ran, name = printed.ran, CargoAudit.name
    if ran.problem:
        return broken(name, "", ran)
    try:
        text = printed.out.read_text(encoding="utf-8")
        if not text.strip():
            return _failed(lock, printed)
        data = json.loads(text)
        found = tuple(_told(data))
        vulnerable = sum(not one.kind for one in found)
        if data["database"]["advisory-count"] == 0:
            return unavailable(name, "the advisory database is empty", ran)
        if data["vulnerabilities"]["count"] != vulnerable:
            raise ValueError(f"{vulnerable} vulnerabilities of {data['vulnerabilities']['count']} are told")
    except UNREADABLE as error:
        said = f"{type(error).__name__}: {error}; {last_line(ran.output)}"
        return broken(name, f"its report on {lock} could not be read: {said}", ran)
    if ran.code not in {0, 1} or (ran.code == 0 and vulnerable) or (ran.code == 1 and not found):
        return broken(name, f"it exited with {ran.code} and told of {len(found)} advisories for {lock}", ran)
    return LockAnswer(blind=_NO_INDEX in ran.output, found=found)


def _failed(lock: str, printed: Printed) -> ScanReport:
    errors = [line.strip() for line in printed.ran.output.splitlines() if line.lstrip().startswith("error")]
    said = (errors[0] if errors else last_line(printed.ran.output)).removeprefix("error: ")
    if _NO_DATABASE.search(said):
        return unavailable(CargoAudit.name, f"the advisory database cannot be used: {said}", printed.ran)
    return broken(CargoAudit.name, f"{lock}: it exited with {printed.ran.code}: {said}", printed.ran)


def _told(data: Mapping[str, Any]) -> Iterator[CrateAdvisory]:
    for one in data["vulnerabilities"]["list"]:
        yield _advisory(one, "")
    for kind, warnings in data["warnings"].items():
        for one in warnings:
            yield _advisory(one, text_of(kind))


def _advisory(told: Mapping[str, Any], kind: str) -> CrateAdvisory:
    package, advisory = told["package"], told.get("advisory") or {}
    name, version = text_of(package["name"]), text_of(package["version"])
    if not is_crate(name) or not is_crate_version(version):
        raise ValueError(f"{name!r:.70} {version!r:.40} is no crate")
    known = text_of(advisory["id"]) if not kind or advisory else kind
    return CrateAdvisory(
        id=known,
        ids=(known, *sorted(text_of(one) for one in advisory.get("aliases") or ())) if advisory else (),
        kind=kind,
        package=name,
        patched=tuple(text_of(one) for one in (told.get("versions") or {}).get("patched") or ()),
        title=text_of(advisory.get("title"), default=""),
        url=text_of(advisory.get("url"), default=""),
        vector=text_of(advisory.get("cvss"), default=""),
        version=version,
    )


def _still_yanked(locked: _LockFile, known: object) -> Iterator[CrateAdvisory]:
    for one in known if isinstance(known, list) else ():
        package, version = map(str, one)
        if (package, version) in locked.lines:
            yield CrateAdvisory(id=_YANKED, kind=_YANKED, package=package, version=version)


class _LockFile:
    """``lines`` are where it has which package in which version."""

    def __init__(self, tree: Path, path: str) -> None:
        text = (tree / path).read_text(encoding="utf-8")
        self.lines: dict[tuple[str, str], int] = {(one.name, one.version): one.line for one in read_lock(text)}
        self.path = path
        self.sources = SourceLines(tree)


def _findings(
    locked: _LockFile, told: Iterable[CrateAdvisory], sound: Mapping[tuple[str, str], str]
) -> Iterator[Finding]:
    for one in told:
        to = sound.get(one.at, "") if _step(one.version, [one]) and not one.kind else ""
        place = Place(path=locked.path, line=locked.lines.get(one.at, 0))
        score = base_score(one.vector) if not one.kind else None
        usual = _SEVERITIES.get(one.kind, Severity.LOW) if one.kind else Severity.HIGH
        rustsec = (f"https://rustsec.org/advisories/{one.id}.html",) if one.ids else ()
        yield Finding(
            about=f"{one.package}|{one.id}",
            advisories=one.ids,
            category="security" if one.kind in {"", "unsound"} else "dependencies",
            cvss=score,
            evidence=locked.sources.at(place.path, place.line) if place.line else "",
            fix=Fix.VERSION if to else Fix.NONE,
            fix_version=to or next_patched(one.version, one.patched),
            installed=one.version,
            links=(*rustsec, one.url) if one.url else rustsec,
            message=_message(one),
            package=one.package,
            places=(place,),
            rule=one.id,
            scope=locked.path.rpartition("/")[0],
            severity=usual if score is None else severity_of_cvss(score),
            suggestion=_suggestion(one, to),
            tool=CargoAudit.name,
        )


def _message(one: CrateAdvisory) -> str:
    if one.kind == _YANKED and not one.ids:
        return f"{one.package} {one.version} was yanked: its author withdrew this version"
    what = {"": "has a known vulnerability", "unmaintained": "is not maintained any more"}.get(
        one.kind, f"is {one.kind}"
    )
    return f"{one.package} {one.version} {what}, {one.id}" + (
        f": {' '.join(one.title.split())[:300]}" if one.title else ""
    )


def _suggestion(one: CrateAdvisory, to: str) -> str:
    if to:
        return f"cargo update -p {one.package}@{one.version} --precise {to}"
    later = next_patched(one.version, one.patched)
    if later and comes_later(later, one.version):
        return f"ask for {one.package} {later} or later: what asks for it now does not admit that"
    return f"cargo update -p {one.package}@{one.version}" if one.kind == _YANKED else ""
