"""The local API's bytes: one JSON object a line, one request a connection, answers until one that ends it.

Owns one invariant: a line has a bounded size in both directions, and what does not parse is an error, never a guess.

    → {"token": "…", "verb": "tasks list", "arguments": {…}}
    ← {"item": {…}}              zero or more, for verbs that stream
    ← {"end": {"data": {…}, "exit_code": 0}}   or   {"error": {"type": "…", "message": "…", "exit_code": 2, …}}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain import errors
from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUEST_BYTES: Final = 1024 * 1024
REPLY_BYTES: Final = 64 * 1024 * 1024
"""A list of 10,000 tasks is about 5 MB."""


class BadWire(ValueError):
    """The other side said something that is not the protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question."""

    arguments: Mapping[str, Any]
    token: str
    verb: str


def encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Raise ``BadWire`` unless it is one JSON object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadWire(f"not a line of JSON: {error}") from None
    if not isinstance(message, dict):
        raise BadWire("not a JSON object")
    return message


def request_from(line: bytes) -> Request:
    message = decode(line)
    arguments = message.get("arguments", {})
    token, verb = message.get("token"), message.get("verb")
    if not isinstance(token, str) or not isinstance(verb, str) or not isinstance(arguments, dict):
        raise BadWire('a request is {"token": "…", "verb": "…", "arguments": {…}}')
    return Request(token=token, verb=verb, arguments=arguments)


def error_to_json(error: errors.CoordinatorError) -> dict[str, Any]:
    """The error as a JSON object with stable keys."""
    data: dict[str, Any] = {
        "type": type(error).__name__,
        "message": str(error),
        "exit_code": error.exit_code,
        "status": error.status,
    }
    if isinstance(error, errors.BadInput):
        data["problems"] = [problem_to_json(problem) for problem in error.problems]
    if isinstance(error, errors.TemporaryError):
        data["after_s"] = error.after_s
    return data


def problem_to_json(problem: Problem) -> dict[str, Any]:
    return {
        "file": problem.file,
        "line": problem.line,
        "key": problem.key,
        "message": problem.message,
        "expected": problem.expected,
    }


def error_from_json(data: Mapping[str, Any]) -> errors.CoordinatorError:
    """The error that the other side raised, as the class it was when we have it."""
    message = str(data.get("message", "the daemon gave no reason"))
    kind = getattr(errors, str(data.get("type", "")), None)
    if kind is errors.BadInput and data.get("problems"):
        try:
            return errors.BadInput([Problem(**problem) for problem in data["problems"]])
        except TypeError:
            return errors.PermanentError(message)
    if isinstance(kind, type) and issubclass(kind, errors.TemporaryError):
        return kind(message, after_s=float(data.get("after_s", 1.0)))
    if isinstance(kind, type) and issubclass(kind, errors.CoordinatorError) and kind is not errors.BadInput:
        return kind(message)
    return errors.PermanentError(message)
