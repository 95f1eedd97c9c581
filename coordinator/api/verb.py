"""A verb: one thing that may be asked. The command line and the local API are both generated from the table of verbs.

Owns one invariant: what a verb takes is one frozen dataclass, checked the same way wherever the question comes from. It
is no dispatcher: ``cli`` and ``api.server`` call the verb, ``api.table`` lists them all.
"""

from __future__ import annotations

import enum
import types
import typing
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from coordinator.api.desk import Desk
    from coordinator.api.view import Line


class Reach(enum.Enum):
    """Where a verb can be answered."""

    ANYWHERE = "anywhere"
    """By the daemon when one runs, else by the caller's own process."""
    DAEMON = "daemon"
    """By a running daemon only."""
    HERE = "here"
    """In the caller's own process only; the local API does not offer it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A verb's answer: JSON-ready ``data`` with stable keys; ``exit_code`` 1 is a negative answer, not an error."""

    data: Mapping[str, Any]
    exit_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """Exactly one of ``call`` and ``stream`` is set. ``show`` turns one answer (or one streamed item) into lines of at
    most ``width`` columns for a person. ``anywhere``: it makes sense in a folder that is no repository.
    """

    name: str
    anywhere: bool = False
    arguments: type[Any]
    call: Callable[[Desk, Any], Awaitable[Reply]] | None = None
    doc: str
    example: str = ""
    reach: Reach = Reach.ANYWHERE
    show: Callable[[Mapping[str, Any], int], list[Line]]
    stream: Callable[[Desk, Any], AsyncIterator[Mapping[str, Any]]] | None = None

    @property
    def streams(self) -> bool:
        return self.stream is not None


@dataclass(frozen=True, slots=True)
class NoArguments:
    """For verbs that take nothing."""


def operand(help_text: str, *, default: Any = MISSING, metavar: str = "", path: bool = False) -> Any:
    """A positional argument; a ``tuple[str, ...]`` takes many. A ``path`` is made absolute where it was typed."""
    return field(default=default, metadata={"help": help_text, "metavar": metavar, "operand": True, "path": path})


def option(
    help_text: str,
    *,
    choices: tuple[str, ...] = (),
    default: Any,
    metavar: str = "",
    name: str = "",
    path: bool = False,
    short: str = "",
) -> Any:
    """``--its-name``; a bool is a switch, a ``tuple[str, ...]`` may be given several times. ``name`` renames it. A ``path`` is
    made absolute where it was typed."""
    metadata = {
        "choices": choices,
        "help": help_text,
        "metavar": metavar,
        "name": name,
        "path": path,
        "short": short,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One field of an arguments dataclass as the command line and the API need it."""

    name: str
    choices: tuple[str, ...]
    default: Any
    help: str
    kind: type
    many: bool
    metavar: str
    operand: bool
    optional: bool
    path: bool
    required: bool
    spelling: str
    short: str


def parameters(arguments: type[Any]) -> tuple[Parameter, ...]:
    """The fields of ``arguments`` in their order."""
    hints = typing.get_type_hints(arguments)
    return tuple(_parameter(item, hints[item.name]) for item in fields(arguments))


def _parameter(item: Field[Any], hint: Any) -> Parameter:
    many = typing.get_origin(hint) is tuple
    union = isinstance(hint, types.UnionType)
    members = typing.get_args(hint)
    kind = members[0] if many or union else hint
    meta = item.metadata
    return Parameter(
        name=item.name,
        choices=meta.get("choices", ()),
        default=None if item.default is MISSING else item.default,
        help=meta["help"],
        kind=kind,
        many=many,
        metavar=meta.get("metavar", ""),
        operand=meta.get("operand", False),
        optional=union,
        path=meta.get("path", False),
        required=item.default is MISSING,
        short=meta.get("short", ""),
        spelling=meta.get("name") or item.name.replace("_", "-"),
    )


def arguments_from(verb: Verb, data: Mapping[str, Any]) -> Any:
    """Build the verb's arguments from JSON; raises ``BadInput`` naming every problem at once."""
    known = {parameter.name: parameter for parameter in parameters(verb.arguments)}
    problems = [_problem(verb, name, "unknown argument") for name in data if name not in known]
    values: dict[str, Any] = {}
    for name, parameter in known.items():
        if name not in data:
            if parameter.required:
                problems.append(_problem(verb, name, "missing"))
            continue
        try:
            values[name] = _checked(parameter, data[name])
        except TypeError as error:
            problems.append(_problem(verb, name, "wrong type", str(error)))
    if problems:
        raise BadInput(problems)
    return verb.arguments(**values)


def _problem(verb: Verb, name: str, message: str, expected: str = "") -> Problem:
    return Problem(file=f"coordinator {verb.name}", key=name, message=message, expected=expected)


def _checked(parameter: Parameter, value: Any) -> Any:
    if parameter.many:
        if not isinstance(value, list | tuple) or not all(_is(parameter.kind, item) for item in value):
            raise TypeError(f"a list of {parameter.kind.__name__}")
        return tuple(value)
    if value is None and parameter.optional:
        return None
    if not _is(parameter.kind, value):
        raise TypeError(parameter.kind.__name__)
    if parameter.choices and value not in parameter.choices:
        raise TypeError("one of " + ", ".join(parameter.choices))
    return float(value) if parameter.kind is float else value


def _is(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
