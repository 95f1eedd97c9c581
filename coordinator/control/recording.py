"""A recording of what the watch was told, one JSON object a line, and the replay of one.

Owns one invariant: what is read back is what was written, to the last digit, so that a replay decides what the daemon decided.
A line that cannot be read ends the replay with its number; nothing is guessed.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, TextIO

from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem
from coordinator.policy.watch import WATCHED, Watch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from coordinator.domain.event import Event
    from coordinator.domain.incident import Incident

_KINDS: Final[Mapping[str, type[Event]]] = {event.__name__: event for event in WATCHED}


class Recording:
    """Where a watch's inputs are written. ``OSError`` is the caller's."""

    def __init__(self, file: TextIO, began_s: float, *, first_incident: int, robust_z: Sequence[str]) -> None:
        self._file = file
        self._write({"began_s": began_s, "first_incident": first_incident, "robust_z": list(robust_z)})

    def event(self, event: Event, at_s: float) -> None:
        self._write({"at_s": at_s, "event": type(event).__name__, "data": event.to_json()})

    def look(self, at_s: float, standings: Mapping[str, float]) -> None:
        """What comes before it is on its way to the disk with it."""
        self._write({"at_s": at_s, "look": dict(standings)})
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")


def replay(lines: Iterable[str], name: str) -> list[Incident]:
    """The incidents that the recording's watch saw: as they ended, then those that were open at its end.

    Raises ``BadInput`` naming the line.
    """
    watch: Watch | None = None
    found: list[Incident] = []
    for number, line in enumerate(lines, start=1):
        try:
            said = json.loads(line)
            if watch is None:
                watch = Watch(said["began_s"], first_incident=said["first_incident"], robust_z=tuple(said["robust_z"]))
            elif "look" in said:
                found += watch.look(said["at_s"], said["look"]).ended
            else:
                watch.take(_event(said["event"], said["data"]), said["at_s"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput([Problem(file=name, line=number, message=f"is no line of a recording ({error})")]) from error
    return [*found, *(watch.book.open if watch is not None else ())]


def _event(kind: str, data: Mapping[str, Any]) -> Event:
    made = _KINDS[kind]
    known = {field.name for field in fields(made)}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key in known}
    return made(**values)
