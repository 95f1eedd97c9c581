"""Lines for a person: plain spans with the name of a style, wrapped to a width.

Owns one invariant: no line is wider than asked (only a single unbreakable word may be), and nothing that came from a
task, an agent or a tool can move the cursor. It knows no terminal; ``surface.terminal`` paints.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_CONTROL: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_PIECES: Final = re.compile(r"\S+|\s+")

GOOD, BAD, WARN, DIM, STRONG = "good", "bad", "warn", "dim", "strong"
"""The styles a span may have; how each looks is the painter's."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a line, made harmless."""

    text: str
    style: str = ""


Line = tuple[Span, ...]


def clean(text: str) -> str:
    """One printable line: control and direction characters become spaces."""
    return _CONTROL.sub(" ", text.replace("\t", "    "))


def span(text: object, style: str = "") -> Span:
    return Span(clean(str(text)), style)


def line(*parts: str | Span) -> Line:
    return tuple(part if isinstance(part, Span) else span(part) for part in parts)


def width_of(text: str) -> int:
    """Columns on a terminal: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """At most ``width`` columns, with an ellipsis when something was left out."""
    text = clean(text)
    if width_of(text) <= width:
        return text
    used, kept = 1, []
    for character in text:
        used += _columns(character)
        if used > width:
            break
        kept.append(character)
    return "".join(kept) + "…"


def pad(text: str, width: int) -> str:
    """Exactly ``width`` columns."""
    text = cut(text, width)
    return text + " " * (width - width_of(text))


def wrap(text: str, width: int, *, indent: int = 0, first: str = "", style: str = "") -> list[Line]:
    """A paragraph; ``first`` stands before its first line, the others are indented by ``indent``. Words wider than a
    line are broken.
    """
    width = max(width, indent + 10, width_of(first) + 10)
    lines: list[Line] = []
    head, row, used, gap = first, "", width_of(first), ""
    for piece in _PIECES.findall(clean(text)):
        if piece.isspace():
            gap = piece if row else ""
            continue
        word = piece
        while used + width_of(gap) + width_of(word) > width:
            part = "" if row else _fitting(word, width - used)
            lines.append(line(head, span(row + part, style)))
            word = word[len(part) :]
            head, row, used, gap = " " * indent, "", indent, ""
        row, used, gap = row + gap + word, used + width_of(gap) + width_of(word), ""
    return [*lines, line(head, span(row, style))]


def block(text: str, width: int) -> list[Line]:
    """A text of several lines that keeps its own indentation."""
    lines: list[Line] = []
    for row in map(clean, text.splitlines()):
        bare = row.lstrip()
        lead = min(width_of(row) - width_of(bare), width // 2)
        lines += wrap(bare, width, indent=lead, first=" " * lead)
    return lines


def flow(parts: Iterable[str], width: int, *, gap: str = "   ") -> list[Line]:
    """Parts beside each other as long as they fit; none is broken in the middle."""
    rows: list[str] = []
    for part in map(clean, parts):
        if rows and width_of(rows[-1]) + len(gap) + width_of(part) <= width:
            rows[-1] += gap + part
        else:
            rows.append(cut(part, width))
    return [line(row) for row in rows]


def _fitting(word: str, room: int) -> str:
    """As much of ``word`` as ``room`` columns take; at least one character."""
    used = 0
    for at, character in enumerate(word):
        used += _columns(character)
        if used > room and at:
            return word[:at]
    return word


def facts(pairs: Iterable[tuple[str, str]], width: int, *, label: int = 12) -> list[Line]:
    """``label   value`` rows, the value wrapped beside its label."""
    lines: list[Line] = []
    for name, value in pairs:
        head, *rest = wrap(value, width, indent=label, first=pad(name, label))
        lines.append((Span(head[0].text, DIM), *head[1:]))
        lines.extend(rest)
    return lines


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int, styles: Sequence[str] | None = None
) -> list[Line]:
    """Columns as wide as needed; the last one takes what is left and is cut. ``styles`` has one style a row."""
    fixed = [max(width_of(clean(row[at])) for row in (header, *rows)) for at in range(len(header) - 1)]
    widest = max(10, (width - 20) // 2)
    fixed = [min(size, widest) for size in fixed]
    rest = max(10, width - sum(fixed) - 2 * len(fixed))
    lines = [line(span(_row(header, fixed, rest), DIM))]
    for at, row in enumerate(rows):
        lines.append(line(span(_row(row, fixed, rest), styles[at] if styles else "")))
    return lines


def _row(cells: Sequence[str], fixed: Sequence[int], rest: int) -> str:
    texts = [pad(cell, size) for cell, size in zip(cells, fixed, strict=False)]
    return "  ".join([*texts, cut(cells[-1], rest)]).rstrip()


def duration(seconds: float) -> str:
    """``4 s``, ``2 min 5 s``, ``3 h 2 min``, ``4 d 3 h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if 0 < seconds < 10 else f"{whole} s"
    for big, small, size, unit in (("min", "s", 60, 1), ("h", "min", 3600, 60), ("d", "h", 86400, 3600)):
        if whole < size * (60 if big == "min" else 24) or big == "d":
            more = whole % size // unit
            return f"{whole // size} {big} {more} {small}" if more else f"{whole // size} {big}"
    return f"{whole} s"


def size(count: int) -> str:
    """Bytes for people: ``512 B``, ``1.4 MiB``, ``12 GiB``."""
    amount, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.1f} {unit}" if unit != "B" and amount < 10 else f"{amount:.0f} {unit}"


def plural(count: int, noun: str, many: str = "") -> str:
    return f"{count} {noun if count == 1 else many or noun + 's'}"


def local_time(text: str | None, *, date: bool = True) -> str:
    """An ISO time of the ledger in the reader's own zone, to the second."""
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text).astimezone()
    except ValueError:
        return clean(text)
    return moment.strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S")
