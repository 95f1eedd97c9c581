"""Paints lines for a person: colour on a terminal that wants it, plain text elsewhere, never wider than 100 columns.

Owns one invariant: what is written to a pipe is plain text of at most 80 columns, whatever the environment. It lays
nothing out; ``api.view`` does.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TextIO

    from coordinator.api.view import Line

_PLAIN_COLUMNS: Final = 80
_WIDEST: Final = 100

_CODES: Final[Mapping[str, str]] = {"bad": "31", "dim": "2", "good": "32", "strong": "1", "warn": "33"}


def wants_colour(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """A terminal that is not dumb, and nobody said ``NO_COLOR``."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM", "") not in ("", "dumb")


def columns(stream: TextIO) -> int:
    """Room for a line."""
    if not stream.isatty():
        return _PLAIN_COLUMNS
    return max(40, min(shutil.get_terminal_size((_PLAIN_COLUMNS, 24)).columns, _WIDEST))


def paint(line: Line, *, colour: bool) -> str:
    """One line as text."""
    if not colour:
        return "".join(span.text for span in line).rstrip()
    pieces = []
    for span in line:
        code = _CODES.get(span.style)
        pieces.append(f"\x1b[{code}m{span.text}\x1b[0m" if code and span.text else span.text)
    return "".join(pieces)


def write(stream: TextIO, lines: Iterable[Line]) -> None:
    """Print them; raises ``BrokenPipeError`` when the reader has gone."""
    colour = wants_colour(stream)
    text = "".join(paint(line, colour=colour) + "\n" for line in lines)
    stream.write(text)
    stream.flush()
