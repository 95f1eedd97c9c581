"""Cargo workspaces of a tree, and cargo run on them for diagnostics.

Owns one invariant: each purpose builds in a folder of its own for each place on disk: cargo tells one tree's diagnostics as
another's where two share one, and whoever builds there holds up the others. The tree is left as it was, also where cargo makes a
lock file. What is found is ``cargo_check``'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.checks.adapter import UNREADABLE, broken, text_of, unavailable, walk_files
from coordinator.checks.cargo_stream import read_stream
from coordinator.checks.tool import last_line
from coordinator.domain.finding import ScanReport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.checks.adapter import Printed, ScanOrder
    from coordinator.checks.cargo_stream import CargoStream

LOCK: Final = "Cargo.lock"
MANIFEST: Final = "Cargo.toml"

PASSES: Final = ((), ("--tests", "--examples"))
"""What is built: the crates, then again with their tests. Benchmarks are left out: many need a compiler that is not released."""

_ERROR: Final = re.compile(r"^\s*error(?:\[E\d+\])?: (.+)$", re.MULTILINE)
_NO_NETWORK: Final = re.compile(
    r"--offline|spurious network|[Cc]ould ?n[o']t resolve|[Ff]ailed to connect|download of|failed to (download|fetch|get)"
    r"|[Tt]imed out|[Tt]imeout|SSL|Connection (refused|reset)|error sending request|failed to query replaced source"
)
_NO_TOOLCHAIN: Final = re.compile(r"rustup|toolchain|no such (sub)?command|is not installed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Crate:
    """One member of a workspace: ``folder`` relative to the tree (empty: its top), ``targets`` as the stream names them."""

    edition: str
    folder: str
    manifest: str
    targets: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CargoProject:
    """A workspace, or a crate that is in none; ``root`` is absolute."""

    crates: tuple[Crate, ...]
    root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CargoProjects:
    """``faults`` are manifests that cargo cannot read, with its words; ``hidden`` the folders of these and of crates below
    them, of which one fault is told and not one for each.
    """

    faults: Mapping[str, str]
    found: tuple[CargoProject, ...]
    hidden: frozenset[str]


async def find_projects(order: ScanOrder) -> CargoProjects | ScanReport:
    """Every workspace of the tree: manifests from the top down, without those that belong to one that was found already."""
    names = (await asyncio.to_thread(walk_files, order.tree)).names
    manifests = sorted(
        (one for one in names if one.rpartition("/")[2] == MANIFEST), key=lambda one: (one.count("/"), one)
    )
    plain = replace(order, settings=replace(order.settings, arguments=()))
    faults: dict[str, str] = {}
    found: list[CargoProject] = []
    covered: set[str] = set()
    hidden: set[str] = set()
    for manifest in manifests:
        place = manifest.rpartition("/")[0]
        if manifest not in covered and any(not above or f"{place}/".startswith(f"{above}/") for above in hidden):
            hidden.add(place)
            continue
        if manifest in covered:
            continue
        folder = (order.tree / manifest).parent
        words = ["metadata", "--no-deps", "--format-version", "1", "--offline"]
        printed = await plain.run(words, cwd=folder, env=cargo_environment(order))
        if printed.ran.problem or (printed.ran.code and MANIFEST not in printed.ran.output):
            return _could_not(order, printed, f"read {manifest}")
        if printed.ran.code:
            faults[manifest] = _said(printed).replace(f"{order.tree.resolve()}/", "")
            hidden.add(place)
            continue
        try:
            project = await asyncio.to_thread(_project, order, printed)
        except UNREADABLE as error:
            return broken(
                order.settings.name, f"what cargo says of {manifest} could not be read: {error!r}", printed.ran
            )
        covered |= {one.manifest for one in project.crates} | {order.relative(str(project.root / MANIFEST)), manifest}
        found.append(project)
    return CargoProjects(faults=faults, found=tuple(found), hidden=frozenset(hidden))


def _project(order: ScanOrder, printed: Printed) -> CargoProject:
    data = json.loads(printed.out.read_text(encoding="utf-8"))
    crates = []
    for package in data["packages"]:
        manifest = order.relative(text_of(package["manifest_path"]))
        targets = [f"{','.join(map(text_of, one['kind']))} {text_of(one['name'])}" for one in package["targets"]]
        targets = [one for one in targets if not one.startswith("bench ")]
        edition, folder = text_of(package["edition"]), manifest.rpartition("/")[0]
        crates.append(Crate(edition=edition, folder=folder, manifest=manifest, targets=frozenset(targets)))
    return CargoProject(crates=tuple(crates), root=Path(text_of(data["workspace_root"])))


async def run_cargo(
    order: ScanOrder, project: CargoProject, words: Sequence[str]
) -> tuple[CargoStream, float] | ScanReport:
    """The stream of ``cargo WORDS`` on all crates of a project, and how long it took.

    First without a network: cargo would try for a long time where there is none, and mostly all is there.
    """
    lock = project.root / LOCK
    there = await asyncio.to_thread(lock.exists)
    line = [*words, "--workspace", "--keep-going", "--message-format=json", *(["--locked"] if there else [])]
    offline = [] if "--offline" in order.settings.arguments else ["--offline"]
    env = cargo_environment(order, target=_target_folder(order, project))
    try:
        printed = await order.run([*line, *offline], cwd=project.root, env=env)
        answer = await asyncio.to_thread(understood_cargo, order, printed)
        if isinstance(answer, ScanReport) and offline and not printed.ran.problem and "--offline" in printed.ran.output:
            took_s = printed.ran.took_s
            printed = await order.run(line, cwd=project.root, env=env)
            answer = await asyncio.to_thread(understood_cargo, order, printed)
            return answer if isinstance(answer, ScanReport) else (answer, took_s + printed.ran.took_s)
    finally:
        if not there:
            await asyncio.to_thread(lock.unlink, missing_ok=True)
    return answer if isinstance(answer, ScanReport) else (answer, printed.ran.took_s)


def understood_cargo(order: ScanOrder, printed: Printed) -> CargoStream | ScanReport:
    """Exit code 101 is that of errors in the code and of everything else; only a build that was begun has a last word."""
    ran, name = printed.ran, order.settings.name
    if ran.problem:
        return broken(name, "", ran)
    try:
        stream = read_stream(printed.out.read_text(encoding="utf-8", errors="replace"))
    except UNREADABLE as error:
        if ran.code and not printed.out.stat().st_size:
            return _could_not(order, printed, "build")
        said = f"{type(error).__name__}: {error}; {last_line(ran.output)}"
        return broken(name, f"its report could not be read: {said}", ran)
    if stream.built is not (ran.code == 0):
        return broken(
            name, f"it exited with {ran.code} and said that the build {'worked' if stream.built else 'failed'}", ran
        )
    if not stream.built and not any(one.error for one in stream.messages):
        return broken(name, f"the project could not be built: {_said(printed)}", ran)  # a build script, mostly
    return stream


def cargo_environment(order: ScanOrder, *, target: Path | None = None) -> dict[str, str]:
    """No toolchain is installed on the way, and a network that does not answer is not asked for long."""
    own = {"CARGO_HTTP_TIMEOUT": "20", "CARGO_NET_RETRY": "1", "CARGO_TERM_COLOR": "never", "RUSTUP_AUTO_INSTALL": "0"}
    if target is not None:
        own |= {"CARGO_BUILD_BUILD_DIR": str(target), "CARGO_TARGET_DIR": str(target)}
    return order.environment(**own)


def _target_folder(order: ScanOrder, project: CargoProject) -> Path:
    mark = hashlib.sha256(os.fsencode(os.path.realpath(project.root))).hexdigest()[:12]
    return order.cache / "target" / mark


def _could_not(order: ScanOrder, printed: Printed, what: str) -> ScanReport:
    ran, name, said = printed.ran, order.settings.name, _said(printed)
    if ran.problem:
        return broken(name, "", ran)
    if _NO_TOOLCHAIN.search(said):
        return unavailable(name, f"cargo cannot work here: {said}", ran)
    if _NO_NETWORK.search(ran.output):
        return unavailable(name, f"what the project depends on is not here and cannot be fetched: {said}", ran)
    return broken(name, f"cargo could not {what}: {said}", ran)


def _said(printed: Printed) -> str:
    """Cargo's first error: what follows explains it."""
    found = _ERROR.search(printed.ran.output)
    return found.group(1).strip()[:300] if found else last_line(printed.ran.output)
