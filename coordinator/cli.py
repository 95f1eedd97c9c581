"""The command line: finds the repository, asks the daemon or answers by itself, prints, exits with a code.

Owns one invariant: whatever goes wrong on purpose ends in one sentence on standard error and a documented exit code;
standard output is the answer alone. It knows no verb; the table does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator import __version__
from coordinator.api import client, command, wire
from coordinator.api.summary import RunSummary, show_summary
from coordinator.api.verb import Reach, arguments_from
from coordinator.domain.errors import (
    BadInput,
    BadRepository,
    CoordinatorError,
    DaemonUnreachable,
    DamagedLedger,
    MachineShort,
    PermanentError,
)
from coordinator.domain.problem import Problem
from coordinator.surface import terminal
from coordinator.surface.live import LiveView
from coordinator.surface.log import EventLog, log_settings, set_up

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from coordinator.api.desk import Desk, LiveDaemon, Operations
    from coordinator.api.verb import Reply, Verb
    from coordinator.domain.settings import LogSettings, Settings
    from coordinator.kit.service import Service

_FAULT = 70
"""EX_SOFTWARE of sysexits.h. Python's own 1 would say that a task failed, which a service manager takes for a good end."""
_INTERRUPTED = 130
_MOST_AGENTS = 100
_NO_OUTPUT = "standard output is closed; there is nowhere to answer to"
_NO_TEXT = "an argument is no UTF-8 text"
_SHORT = frozenset({errno.EAGAIN, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC})
"""The machine's faults. The others (no right, a read-only disk, a file in the way) a person must mend."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``coordinator``; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr] # an old locale must not stop an answer
    words = sys.argv[1:] if argv is None else argv
    if sys.stdout is None or any(_has_surrogates(word) for word in words):
        print("coordinator: " + (_NO_OUTPUT if sys.stdout is None else _NO_TEXT), file=sys.stderr)
        return 2
    verbs = () if words[:1] == ["agent"] else _verbs()
    parser = command.build(verbs, __version__)
    parsed = parser.parse_args(words)
    if parsed.command is None:
        getattr(parsed, "group", parser).print_help(sys.stderr)
        return 2
    try:
        return _run(parsed, {verb.name: verb for verb in verbs})
    except CoordinatorError as error:
        _tell(error, as_json=bool(parsed.json))
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at exit
        return 0
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        _tell(PermanentError(_system_said(error)), as_json=bool(parsed.json))
        return 2


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _system_said(error: OSError) -> str:
    """The system's own words with the place, and what usually helps."""
    place = f"{error.filename}: " if error.filename else ""
    remedies = {
        errno.EACCES: "make it readable and writable for you",
        errno.ENOSPC: "make room on that disk",
        errno.ENOTDIR: "something that is no folder is in the way; move it",
        errno.EEXIST: "something that is no folder is in the way; move it",
        errno.EDQUOT: "make room on that disk",
        errno.EROFS: "make it writable, or set [paths] state to a folder that is",
    }
    remedy = remedies.get(error.errno or 0, "`coordinator doctor` looks at what is needed")
    return f"{place}{error.strerror or error}; {remedy}"


def _verbs() -> tuple[Verb, ...]:
    from coordinator.api.table import all_verbs  # half of the start-up time, of which agent processes need nothing

    return all_verbs()


def _run(parsed: argparse.Namespace, verbs: Mapping[str, Verb]) -> int:
    if parsed.command == "agent":
        return asyncio.run(_agent(command.AgentArguments(**_typed(command.AgentArguments, parsed))))
    if parsed.command == "run":
        with _EndOfRun():
            root = repository_top(Path(parsed.directory or "."))
            arguments = command.RunArguments(**_typed(command.RunArguments, parsed))
            return _run_daemon(root, arguments, as_json=bool(parsed.json))
    if parsed.command == "gateway":
        with _EndOfRun():
            typed = command.GatewayArguments(**_typed(command.GatewayArguments, parsed))
            return _run_gateway(Path(parsed.directory or "."), typed, as_json=bool(parsed.json))
    verb = verbs[parsed.command]
    root = _top_or_folder(Path(parsed.directory or "."), verb.anywhere)
    return asyncio.run(_ask(verb, root, command.values_of(verb.arguments, parsed), as_json=bool(parsed.json)))


def _top_or_folder(start: Path, anywhere: bool) -> Path:
    try:
        return repository_top(start)
    except BadRepository:
        if anywhere and start.is_dir():
            return start.resolve()
        raise


def _typed(kind: type[Any], parsed: argparse.Namespace) -> dict[str, Any]:
    values = command.values_of(kind, parsed)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _tell(error: CoordinatorError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": wire.error_to_json(error)}))
        return
    head, *rest = str(error).splitlines() or ["it failed"]
    print("\n".join([f"coordinator: {head}", *(f"  {text}" for text in rest)]), file=sys.stderr)


def repository_top(start: Path) -> Path:
    """The checkout that contains ``start``; raises ``BadRepository``."""
    folder = start.resolve()
    if "\n" in str(folder) or _has_surrogates(str(folder)):
        raise BadRepository(f"{str(folder)!r} has a line break or bytes that are no UTF-8 in its name; rename it")
    if not folder.is_dir():
        raise BadRepository(f"{start} is not a folder")
    for candidate in (folder, *folder.parents):
        if (candidate / ".git").exists():
            return candidate
    raise BadRepository(f"{folder} is not inside a git repository; run `git init` there, or name another with -C DIR")


# -- asking --------------------------------------------------------------------------------------------------------


async def _ask(verb: Verb, root: Path, values: dict[str, Any], *, as_json: bool) -> int:
    if values.get("prompt") == "-":
        values["prompt"] = sys.stdin.buffer.read().decode(errors="replace")
    arguments = arguments_from(verb, values)
    settings = _settings(root, lenient=verb.name == "doctor")
    desk = _desk(root, settings)
    try:
        if verb.reach is not Reach.HERE:
            connection = await client.connect(desk.layout)
            if connection is not None:
                return await _remote(connection, verb, values, as_json=as_json)
        if verb.reach is Reach.DAEMON:
            raise DaemonUnreachable("no daemon is running here; `coordinator run` starts one")
        if verb.stream is not None:
            await _print_stream(verb, verb.stream(desk, arguments), as_json=as_json)
            return 0
        assert verb.call is not None  # a verb has one or the other
        return _print_reply(verb, await verb.call(desk, arguments), as_json=as_json)
    finally:
        if desk.store is not None:
            desk.store.close()


async def _remote(connection: client.Client, verb: Verb, values: Mapping[str, Any], *, as_json: bool) -> int:
    async with connection:
        if verb.streams:
            await _print_stream(verb, connection.stream(verb.name, values), as_json=as_json)
            return 0
        return _print_reply(verb, await connection.call(verb.name, values), as_json=as_json)


def _print_reply(verb: Verb, reply: Reply, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(reply.data, indent=2, sort_keys=True))
    else:
        terminal.write(sys.stdout, verb.show(reply.data, terminal.columns(sys.stdout)))
    return reply.exit_code


async def _print_stream(verb: Verb, items: AsyncIterator[Mapping[str, Any]], *, as_json: bool) -> None:
    async for item in items:
        if as_json:
            print(json.dumps(item, sort_keys=True), flush=True)
        else:
            terminal.write(sys.stdout, verb.show(item, terminal.columns(sys.stdout)))


def _settings(root: Path, *, lenient: bool) -> Settings:
    """The doctor reports bad settings instead of stopping at them."""
    from coordinator.domain.settings import Settings as Defaults
    from coordinator.kit import files

    try:
        return files.read_settings(root)
    except BadInput:
        if lenient:
            return Defaults()
        raise


def _desk(root: Path, settings: Settings) -> Desk:
    from coordinator.api.desk import Desk as MadeDesk
    from coordinator.kit.clock import SystemClock
    from coordinator.kit.store import Store
    from coordinator.sdk.layout import Layout

    layout = Layout(root, root / settings.paths.state)
    return MadeDesk(
        clock=SystemClock(),
        layout=layout,
        operate=lambda: _offline(root),
        settings=settings,
        store=Store.open_reading(layout.ledger),
        version=__version__,
    )


def _offline(root: Path) -> AbstractAsyncContextManager[Operations]:
    from coordinator import offline  # most of the house; only changing something without a daemon needs it

    return offline.offline(root)


# -- running -------------------------------------------------------------------------------------------------------


class _EndOfRun:
    """Gives a run that was not meant to end a code by which a service manager starts it again."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, KeyboardInterrupt | SystemExit):
            return
        if said := _shortage(error):
            raise MachineShort(said) from error
        if isinstance(error, CoordinatorError):
            if error.exit_code == CoordinatorError.exit_code:  # a tool failed, say; no task did and no answer is no
                error.exit_code = _FAULT
        elif not isinstance(error, OSError):
            traceback.print_exception(error)
            raise SystemExit(_FAULT) from error


def _shortage(error: BaseException) -> str:
    """What the machine is short of, in one sentence; empty when the fault is another."""
    import sqlite3  # a run has it; other commands start without

    if isinstance(error, DamagedLedger) and error.__cause__ is not None:
        error = error.__cause__  # a full disk is no reason to move the ledger away
    if isinstance(error, MemoryError):
        return _system_said(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    if isinstance(error, OSError) and error.errno in _SHORT:
        return _system_said(error)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest is detail
    remedies = {
        sqlite3.SQLITE_BUSY: "end the program that has it open",
        sqlite3.SQLITE_FULL: "make room on that disk",
        sqlite3.SQLITE_IOERR: "look whether that disk is full or fails",
    }
    return f"the ledger: {error}; {remedies[code]}" if code in remedies else ""


def _run_daemon(root: Path, arguments: command.RunArguments, *, as_json: bool) -> int:
    """The daemon with its screen, its log, its local API, and the summary at the end."""
    from coordinator import life
    from coordinator.daemon import RunOptions

    if arguments.agents is not None and not 1 <= arguments.agents <= _MOST_AGENTS:
        expected = f"a number from 1 to {_MOST_AGENTS}"
        raise BadInput([Problem(file="--agents", message=f"is {arguments.agents}", expected=expected)])
    settings = _settings(root, lenient=False)
    logging_as = log_settings(settings.log)
    live = sys.stdout.isatty() and not as_json and logging_as.format == "text"
    state = root / settings.paths.state
    set_up(logging_as, stream=sys.stderr, file=state / "daemon.log" if live else None)
    summary = RunSummary()
    options = RunOptions(
        agents=arguments.agents,
        leave_agents=arguments.leave_agents,
        self_improve=arguments.self_improve,
        stop_within_s=arguments.stop_within,
        until_idle=arguments.until_idle,
    )

    def screens(running: LiveDaemon) -> Sequence[Service]:
        return _screens(running, logging_as, live=live, as_json=as_json)

    code = asyncio.run(life.run(root, options, screens=screens, tap=summary.take))
    _print_summary(summary, root, state, as_json=as_json)
    return code


def _run_gateway(start: Path, arguments: command.GatewayArguments, *, as_json: bool) -> int:
    from coordinator import alone

    root = _top_or_folder(start, True)
    return alone.at_terminal(root, _settings(root, lenient=False), arguments, as_json=as_json)


def _screens(running: LiveDaemon, logging_as: LogSettings, *, live: bool, as_json: bool) -> Sequence[Service]:
    """On a terminal a picture, elsewhere lines, with ``--json`` objects; the API is there in any case."""
    from coordinator.api.desk import Desk as MadeDesk
    from coordinator.api.server import ApiServer
    from coordinator.kit.systemd import Systemd
    from coordinator.surface.notify import Notifier
    from coordinator.surface.systemd import SystemdReport

    desk = MadeDesk(
        clock=running.clock,
        layout=running.layout,
        live=running,
        operate=lambda: contextlib.nullcontext(running),
        settings=running.settings,
        store=running.store,
        version=__version__,
    )
    services: list[Service] = [ApiServer(desk, _verbs())]
    if running.settings.notify:
        log = running.layout.state / "notify.log"
        services.append(Notifier(running.bus, running.settings.notify, running.layout.repository, log))
    manager = Systemd.from_environment(os.environ)
    if manager is not None:
        services.append(SystemdReport(running, manager))
    if live:
        return [LiveView(running, sys.stdout, columns=lambda: terminal.columns(sys.stdout)), *services]
    return [EventLog(running.bus, sys.stdout, logging_as, every=as_json), *services]


def _print_summary(summary: RunSummary, root: Path, state: Path, *, as_json: bool) -> None:
    from coordinator.kit.store import Store

    counts: dict[str, int] = {}
    store = Store.open_reading(state / "ledger.db")
    if store is not None:
        with contextlib.closing(store):
            counts = {row["state"]: row["n"] for row in store.query("tasks_count")}
    data = summary.data(counts, str(root))
    with contextlib.suppress(OSError):  # whoever read our output has gone; the run is over all the same
        if as_json:
            print(json.dumps(data, sort_keys=True), flush=True)
        else:
            terminal.write(sys.stdout, show_summary(data, terminal.columns(sys.stdout)))


async def _agent(arguments: command.AgentArguments) -> int:
    from coordinator.fleet.runner import run_agent
    from coordinator.sdk.layout import Layout

    repository = Path(arguments.repository).absolute() if arguments.repository else repository_top(Path("."))
    state = Path(arguments.state).absolute() if arguments.state else None
    if state is None or arguments.idle_exit is None:
        settings = _settings(repository, lenient=False)
        state = state or repository / settings.paths.state
        idle_exit_s = settings.fleet.idle_exit_s if arguments.idle_exit is None else arguments.idle_exit
    else:
        idle_exit_s = arguments.idle_exit
    layout = Layout(repository, state)
    name = arguments.name or f"agent-{os.getpid()}"
    return await run_agent(layout, name=name, roles=arguments.role, idle_exit_s=idle_exit_s, once=arguments.once)
