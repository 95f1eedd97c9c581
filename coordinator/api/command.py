"""The grammar of the command line, generated from the table of verbs.

Owns one invariant: a verb's arguments are described once, in its dataclass; help, parsing and the API agree. It runs
nothing: ``cli`` does.
"""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.verb import Parameter, option, parameters

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from coordinator.api.verb import Verb

_SUMMARY: Final = "Keeps a fleet of coding agents busy: tasks in, landed commits out."

_EXIT_CODES: Final = """\
exit codes:
  0    done, or the answer is yes
  1    a task failed in this run, or the answer is no (a problem, a refusal)
  2    wrong usage, wrong input or wrong settings
  3    another daemon holds this directory
  4    no daemon answers and this command needs one
  5    the gate is broken: a check could not run, nothing lands
  70   `run` ended by a fault that nobody foresaw; start it again
  75   `run` ended as the machine is short of something; start it again later
  130  interrupted (Ctrl-C)

environment:
  LOG_FORMAT   text or json
  LOG_LEVEL    debug, info, warning or error
  NO_COLOR     anything: no colour, whatever the terminal can do
"""

GROUPS: Final = MappingProxyType(
    {
        "agents": "Look at agent processes.",
        "findings": "Read and judge what the discovery tools found.",
        "incidents": "Read what was not as usual.",
        "knobs": "Look at and change numbers that act while everything runs.",
        "router": "See and judge which models attempts are given.",
        "tasks": "Read, write and steer tasks.",
        "upstreams": "Look at and steer where model calls go.",
    }
)
"""First words that have several verbs below them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunArguments:
    """``coordinator run``."""

    agents: int | None = option("agent processes at most, 1 to 100", default=None, short="-a", metavar="N")
    until_idle: bool = option("end when nothing is left to do", default=False)
    self_improve: bool = option("let discovery look for work", default=False)
    leave_agents: bool = option("a stop leaves the agents at work; the next run finds them", default=False)
    stop_within: float | None = option(
        "a stop that takes longer than this stops the agents, too", default=None, metavar="SECONDS"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayArguments:
    """``coordinator gateway``."""

    name: tuple[str, ...] = option("whom to make a key for (may be repeated)", default=(), metavar="NAME")
    host: str = option("address to listen at, 127.0.0.1 unless told otherwise", default="", metavar="ADDRESS")
    port: int | None = option("port to listen at; else one is chosen once and kept", default=None, metavar="PORT")
    echo: bool = option("answer every call with its own last words; calls nobody", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentArguments:
    """``coordinator agent``: one agent process, as the daemon's pool starts it."""

    state: str = option("run-time folder", default="", metavar="DIR")
    repository: str = option("repository the tasks are about", default="", metavar="DIR")
    name: str = option("its name", default="", metavar="NAME")
    role: tuple[str, ...] = option("only tasks of this role (may be repeated)", default=(), metavar="ROLE")
    idle_exit: float | None = option("end after this long without work", default=None, metavar="SECONDS")
    once: bool = option("end after one task", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryPoint:
    """A command that is no verb: it lives as long as its process."""

    name: str
    arguments: type[Any]
    doc: str
    example: str = ""


ENTRY_POINTS: Final = (
    EntryPoint(
        name="run",
        arguments=RunArguments,
        doc="Run the daemon: claim, work, judge and land until stopped.",
        example="coordinator run --self-improve --until-idle",
    ),
    EntryPoint(
        name="gateway",
        arguments=GatewayArguments,
        doc="Run the gateway for model calls by itself.",
        example="coordinator gateway --name laptop",
    ),
    EntryPoint(name="agent", arguments=AgentArguments, doc="Run one agent process by hand."),
)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong, and where to read more, in two lines instead of a page of usage."""

    def error(self, message: str) -> Any:
        self.exit(2, f"coordinator: {message}\ntry: {self.prog} --help\n")


def build(verbs: Sequence[Verb], version: str) -> argparse.ArgumentParser:
    """The parser; the chosen command's name is in ``command``, None when none was given."""
    entries: list[Verb | EntryPoint] = sorted((*ENTRY_POINTS, *verbs), key=lambda entry: entry.name)
    parser = _Parser(
        prog="coordinator",
        description=_SUMMARY,
        epilog=f"{_overview(entries)}\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_globals(parser, default=None)
    parser.add_argument("--version", action="version", version=f"coordinator {version}")
    parser.set_defaults(command=None)
    subparsers = parser.add_subparsers(metavar="COMMAND", help=argparse.SUPPRESS)
    groups: dict[str, Any] = {}
    for entry in entries:
        first, _, second = entry.name.partition(" ")
        home = subparsers
        if second:
            if first not in groups:
                groups[first] = _add_group(subparsers, first)
            home = groups[first]
        _add_entry(home, second or first, entry)
    return parser


def _overview(entries: Iterable[Verb | EntryPoint]) -> str:
    lines = ["commands:"]
    for entry in entries:
        lines += textwrap.wrap(entry.doc, 79, initial_indent=f"  {entry.name:<17}", subsequent_indent=" " * 19)
    return "\n".join(lines)


def _add_globals(parser: argparse.ArgumentParser, *, default: Any) -> None:
    """Options that may stand before and after the command."""
    parser.add_argument(
        "-C", dest="directory", metavar="DIR", default=default, help="work on the repository that contains DIR"
    )
    parser.add_argument("--json", action="store_true", default=default, help="answer in JSON")


def _add_group(subparsers: Any, name: str) -> Any:
    parser = subparsers.add_parser(name, help=GROUPS[name], description=GROUPS[name], allow_abbrev=False)
    parser.set_defaults(group=parser)
    return parser.add_subparsers(metavar="COMMAND", title="commands")


def _add_entry(home: Any, word: str, entry: Verb | EntryPoint) -> None:
    parser = home.add_parser(
        word,
        help=entry.doc,
        description=entry.doc,
        epilog=f"example:\n  {entry.example}" if entry.example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for parameter in parameters(entry.arguments):
        _add_parameter(parser, parameter)
    _add_globals(parser, default=argparse.SUPPRESS)
    parser.set_defaults(command=entry.name)


def _add_parameter(parser: argparse.ArgumentParser, parameter: Parameter) -> None:
    if parameter.operand:
        many = ("+" if parameter.required else "*") if parameter.many else (None if parameter.required else "?")
        parser.add_argument(
            parameter.name,
            metavar=parameter.metavar,
            help=parameter.help,
            nargs=many,
            default=parameter.default,
            type=parameter.kind,
        )
        return
    flags = [flag for flag in (parameter.short, f"--{parameter.spelling}") if flag]
    if parameter.kind is bool:
        parser.add_argument(*flags, dest=parameter.name, action="store_true", help=parameter.help)
        return
    parser.add_argument(
        *flags,
        dest=parameter.name,
        action="append" if parameter.many else "store",
        choices=parameter.choices or None,
        default=None if parameter.many else parameter.default,
        help=parameter.help,
        metavar=parameter.metavar or None,
        type=parameter.kind,
    )


def values_of(arguments: type[Any], parsed: argparse.Namespace) -> dict[str, Any]:
    """What was typed for ``arguments``, JSON-ready; paths are made absolute."""
    values: dict[str, Any] = {}
    for parameter in parameters(arguments):
        value = getattr(parsed, parameter.name)
        if parameter.many:
            value = list(value or ())
        if parameter.path and value:
            value = [str(Path(one).absolute()) for one in value] if parameter.many else str(Path(value).absolute())
        values[parameter.name] = value
    return values
