"""What the doctor looks at: one function a thing, each of which answers with a finding and its remedy.

Owns one invariant: looking changes nothing (a probe file is removed at once) and one thing that cannot be looked at does
not hide the others.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.api.untested import consequence, untested
from coordinator.checks.adapter import walk_files
from coordinator.checks.adapters import chosen
from coordinator.checks.asking import locate_for
from coordinator.checks.detect import detect, surroundings_of
from coordinator.domain.errors import BadInput, BadRepository
from coordinator.fleet import cards
from coordinator.gateway.hosts import listening_address
from coordinator.gateway.upstream import upstreams_of
from coordinator.kit import files, git, lock, process
from coordinator.policy.trace_export import EXTRA, LIBRARIES, trace_export

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.api.desk import Desk

_PYTHON = (3, 11)
_GIT = (2, 38)
_WATCHES = 8192
_WATCHES_FILE = Path("/proc/sys/fs/inotify/max_user_watches")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``status`` is ``ok``, ``warn`` (works, but know this) or ``fail`` (does not work); ``remedy`` is what to do."""

    check: str
    status: str
    detail: str
    remedy: str = ""


async def examine(desk: Desk) -> list[Diagnosis]:
    """Everything, in the order in which it matters."""
    found = [_python()]
    found += await _repository(desk)
    found += await asyncio.to_thread(lambda: [*_settings(desk), *_state(desk), *_roles(desk)])
    found += await asyncio.to_thread(lambda: [*_gateway(desk), *_traces(desk), *_tools(desk)])
    found += await asyncio.to_thread(lambda: [*_gate(desk), *_machine(desk)])
    return found


def _python() -> Diagnosis:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _PYTHON:
        return Diagnosis("python", "fail", f"{version} is too old", "install Python 3.11 or newer")
    return Diagnosis("python", "ok", f"{version} at {sys.executable}")


async def _repository(desk: Desk) -> list[Diagnosis]:
    try:
        facts = await git.inspect(desk.root)
    except BadRepository as error:
        return [Diagnosis("repository", "fail", str(error), "coordinator -C DIR names another folder")]
    version = ".".join(map(str, facts.git_version))
    found = [Diagnosis("git", "ok", version)]
    if facts.git_version < _GIT:
        found = [Diagnosis("git", "fail", f"{version} is too old", "install git 2.38 or newer")]
    found += [Diagnosis("repository", "ok", f"{facts.top}, branch {facts.branch or '(detached)'}")]
    found += list(_oddities(facts))
    target = desk.settings.land.target
    if facts.branch == target or target in facts.worktree_branches:
        detail = f"{target} is checked out; nothing lands while it is"
        found.append(Diagnosis("target", "fail", detail, "check out another branch, or set [land] target"))
    else:
        found.append(Diagnosis("target", "ok", f"finished work lands on {target}"))
    return found


def _oddities(facts: git.RepositoryFacts) -> Iterator[Diagnosis]:
    if facts.head is None:
        yield Diagnosis("commits", "fail", "there is no commit yet", "git add -A && git commit -m 'Begin'")
    if facts.bare:
        yield Diagnosis("repository", "fail", "it is bare: there is no checkout", "use a clone of it")
    if facts.shallow:
        yield Diagnosis("history", "warn", "the clone is shallow", "git fetch --unshallow, if agents need the history")
    if facts.partial:
        yield Diagnosis("history", "warn", "some objects are only on the server", "git fetch --refetch --filter=")
    if facts.has_submodules:
        yield Diagnosis("submodules", "warn", "agents and the gate see them empty")
    if facts.has_lfs:
        yield Diagnosis("lfs", "warn", "agents and the gate see pointers instead of large files")
    if facts.dirty:
        yield Diagnosis("checkout", "warn", "has uncommitted changes; agents start from what is committed")
    if not facts.identity:
        remedy = "git config --global user.name NAME; git config --global user.email ADDRESS"
        yield Diagnosis(
            "identity", "warn", "git does not know who you are; it only matters for your own commits", remedy
        )


def _settings(desk: Desk) -> Iterator[Diagnosis]:
    try:
        files.read_settings(desk.root)
    except BadInput as error:
        for problem in error.problems:
            yield Diagnosis("settings", "fail", str(problem), "mend the line; coordinator init shows all settings")
        return
    has = [name for name in ("coordinator.toml", "pyproject.toml") if (desk.root / name).exists()]
    yield Diagnosis("settings", "ok", "no problems" if has else "none; the defaults are used")


def _state(desk: Desk) -> Iterator[Diagnosis]:
    """The run-time folder takes files and locks."""
    state = desk.layout.state
    folder = state if state.is_dir() else desk.root
    try:
        with tempfile.TemporaryDirectory(prefix=".coordinator-doctor-", dir=folder) as name:
            probe = Path(name) / "probe"
            with lock.acquire(probe) or _no_lock() as _:
                locks = lock.is_held(probe)
        if locks:
            yield Diagnosis("locks", "ok", f"{folder} keeps locks")
        else:
            yield Diagnosis("locks", "fail", f"locks in {folder} do not hold", "use a local disk, not a network mount")
    except OSError as error:
        remedy = "make it writable, or set [paths] state"
        yield Diagnosis("state", "fail", f"cannot write into {folder}: {error.strerror or error}", remedy)
        return
    free, needed = process.free_disk(folder), desk.settings.fleet.min_free_bytes
    if free < needed:
        detail = f"{free // 2**20} MB free, attempts need {needed // 2**20} MB"
        yield Diagnosis("disk", "fail", detail, "make room, or lower [fleet] min_free_bytes")
    else:
        yield Diagnosis("disk", "ok", f"{free // 2**20} MB free")


def _no_lock() -> lock.HeldLock:
    raise OSError("a lock that nobody holds could not be taken")


def _roles(desk: Desk) -> Iterator[Diagnosis]:
    found = cards.load(desk.root / desk.settings.paths.agents)
    for problem in found.problems:
        yield Diagnosis("role card", "fail", str(problem), "mend the card")
    usable = [role for role in sorted(found.cards) if not found.obstacle(role)]
    yield Diagnosis("roles", "ok" if usable else "fail", "usable: " + (", ".join(usable) or "none"))
    obstacle = found.obstacle(desk.settings.fleet.default_role)
    if obstacle:
        detail = f"tasks that name no role stay blocked: {obstacle}"
        yield Diagnosis("default role", "warn", detail, "write the card, or set [fleet] default_role")


def _gateway(desk: Desk) -> Iterator[Diagnosis]:
    """As a daemon that is started from here would have it."""
    upstreams = upstreams_of(desk.settings.gateway, os.environ)
    if not upstreams.wanted:
        why = "is off" if desk.settings.gateway.enabled == "off" else "is off: no provider's key or URL is set here"
        yield Diagnosis("gateway", "ok", f"{why}; agents reach models by themselves")
        return
    remedy = "set the key in the daemon's environment, or [gateway] anthropic_url (openai_url, google_url) to one without a key"
    used = upstreams.in_use()
    if not used:
        yield Diagnosis("gateway", "warn", upstreams.known[0].fault, remedy)
    for one in used:
        if one.fault:
            yield Diagnosis("gateway", "fail", one.fault, remedy)
        else:
            way = "with the key of this environment" if one.credentials else "without a key"
            models = ", ".join(one.settings.models)
            yield Diagnosis("gateway", "ok", f"{one.name} at {one.url} answers for {models}, {way}")
    try:
        at = listening_address(desk.settings.gateway.host)
    except BadInput as error:
        yield Diagnosis("gateway", "fail", error.problems[0].message, "set [gateway] host")
        return
    if at.open:
        detail = f"other machines can reach it at {at.literal}; what they send is not encrypted"
        yield Diagnosis("gateway", "warn", detail, 'set [gateway] host = "127.0.0.1", unless that is what you want')


def _traces(desk: Desk) -> Iterator[Diagnosis]:
    """Nothing, unless somebody wants them."""
    plan = trace_export(desk.settings.traces.export, os.environ)
    if not plan.on:
        return
    if plan.fault:
        yield Diagnosis("traces", "warn", f"are not sent: {plan.fault}", 'mend it, or set [traces] export = "off"')
    elif not all(map(_is_installed, LIBRARIES)):
        yield Diagnosis("traces", "warn", f"are not sent to {plan.where}: OpenTelemetry is not installed", EXTRA)
    else:
        yield Diagnosis("traces", "ok", f"spans of attempts and model calls go to {plan.where}")


def _is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # of what it is in
        return False


def _tools(desk: Desk) -> Iterator[Diagnosis]:
    settings, files = desk.settings.discovery, walk_files(desk.root)
    surroundings = surroundings_of(desk.root, desk.settings.gate)
    for adapter in chosen(settings):
        if adapter.uncalled(files, named=adapter.name in settings.named_tools):
            continue
        located = locate_for(adapter, settings, desk.root, surroundings)
        if located.program is None:
            yield Diagnosis(adapter.name, "warn", f"{located.reason}: it does not scan", located.remedy)
        else:
            yield Diagnosis(adapter.name, "ok", str(located.program))


def _gate(desk: Desk) -> Iterator[Diagnosis]:
    plan = detect(desk.root, desk.root, desk.settings.gate)
    names = ", ".join(check.name for check in plan.checks)
    if names:
        yield Diagnosis("gate", "ok", names)
    else:
        detail = "no check was found: whatever agents make lands unless a task says what must hold"
        yield Diagnosis("gate", "warn", detail, "set [gate] commands in coordinator.toml")
    for one in plan.unavailable:
        yield Diagnosis(f"gate: {one.check}", "warn", one.reason, one.remedy)
    missing = untested(desk, plan)
    if missing:
        why = "; ".join(f"{one['check']}: {one['reason']}" for one in missing)
        yield Diagnosis("tests", "warn", f"cannot be run ({why}); {consequence(desk)}", missing[0]["remedy"])
    elif not plan.has_tests:
        yield Diagnosis("tests", "ok", "the project has none")


def _machine(desk: Desk) -> Iterator[Diagnosis]:
    if lock.is_held(desk.layout.daemon_lock):
        holder = lock.read_object(desk.layout.daemon_lock) or {}
        yield Diagnosis("daemon", "ok", f"runs here (pid {holder.get('pid', 'unknown')})")
    else:
        yield Diagnosis("daemon", "ok", "none runs here; coordinator run starts one")
    try:
        watches = int(_WATCHES_FILE.read_text())
    except (OSError, ValueError):
        return
    if watches < _WATCHES:
        remedy = "sysctl fs.inotify.max_user_watches=65536"
        yield Diagnosis("watches", "warn", f"only {watches} files can be watched; the re-scan still works", remedy)
    if os.geteuid() == 0:
        yield Diagnosis("user", "warn", "you are root: so is everything that agents start", "use an ordinary user")
