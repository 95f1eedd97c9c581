"""A TOML document together with the line of each of its keys, which ``tomllib`` does not tell.

Owns one invariant: positions never change what was read; where the finder loses its way, a key has the line of its
nearest known parent. It finds places in documents that ``tomllib`` has accepted and is no parser of its own.
"""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

_GAP: Final = re.compile(r"(?:[ \t\n]|#[^\n]*)*+")
_BLANK: Final = re.compile(r"[ \t]*+")
_KEY: Final = re.compile(r"""[ \t]*+(?:([A-Za-z0-9_-]++)|("(?:[^"\\\n]|\\.)*+")|'([^'\n]*+)')[ \t]*+(\.?)""")
_STRING: Final = re.compile(
    r'"""(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}'
    r"|'''(?:[^']++|'{1,2}(?!'))*+'{3,5}"
    r'|"(?:[^"\\\n]++|\\.)*+"'
    r"|'[^'\n]*+'",
    re.DOTALL,
)
_BARE: Final = re.compile(r"[^,\]}#\n]++")
_ERROR_LINE: Final = re.compile(r"\(at line (\d+), column \d+\)$")


class TomlDocument:
    """``data`` as read; ``line`` of any key in it. ``file`` is how problems name the document."""

    __slots__ = ("_lines", "_text", "data", "file")

    def __init__(self, data: Mapping[str, Any], text: str, file: str) -> None:
        self.data = data
        self.file = file
        self._text = text
        self._lines: dict[tuple[str | int, ...], int] | None = None

    def line(self, path: tuple[str | int, ...]) -> int:
        """1-based line of the key at ``path`` (array elements by index), else of its nearest parent, else 0."""
        if self._lines is None:
            self._lines = lines_of(self._text)
        while path:
            if path in self._lines:
                return self._lines[path]
            path = path[:-1]
        return 0

    def header_lines(self, name: str, count: int) -> list[int]:
        """Lines of the ``count`` elements of the array of tables ``name``."""
        quick = re.compile(rf"^[ \t]*\[\[[ \t]*{re.escape(name)}[ \t]*\]\]", re.MULTILINE)
        starts = [match.start() for match in quick.finditer(self._text)]
        if len(starts) != count:  # written in another way, or the same characters stand inside a text
            return [self.line((name, index)) for index in range(count)]
        lines, line, last = [], 1, 0
        for start in starts:
            line += self._text.count("\n", last, start)
            last = start
            lines.append(line)
        return lines


def read_document(text: str, file: str) -> TomlDocument | Problem:
    """Read ``text``; a ``Problem`` with the line when it is no TOML. A byte order mark and CRLF are fine."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    try:
        return TomlDocument(tomllib.loads(text), text, file)
    except tomllib.TOMLDecodeError as error:
        return _not_toml(str(error), text, file)
    except RecursionError:
        return Problem(file=file, message="not valid TOML: nested too deep")
    except ValueError as error:  # an integer of more digits than Python converts
        return Problem(file=file, message=f"not valid TOML: {str(error).partition(';')[0]}")


def _not_toml(reason: str, text: str, file: str) -> Problem:
    match = _ERROR_LINE.search(reason)
    line = int(match[1]) if match else text.rstrip().count("\n") + 1
    message = reason[: match.start()].strip() if match else reason
    return Problem(file=file, line=line, message=f"not valid TOML: {message}")


def lines_of(text: str) -> dict[tuple[str | int, ...], int]:
    """The line of each key and array element of a valid document without carriage returns."""
    finder = _Finder(text)
    with contextlib.suppress(_LostError, RecursionError):  # what was found until there is right
        finder.document()
    return finder.lines


class _LostError(Exception):
    """The finder met something that it does not know."""


class _Finder:
    def __init__(self, text: str) -> None:
        self.lines: dict[tuple[str | int, ...], int] = {}
        self._text = text
        self._pos = 0
        self._counted_to = 0
        self._line = 1
        self._elements: dict[tuple[str | int, ...], int] = {}

    def document(self) -> None:
        table: tuple[str | int, ...] = ()
        while self._skip(_GAP) < len(self._text):
            if self._text.startswith("[[", self._pos):
                table = self._element_header()
            elif self._text[self._pos] == "[":
                line = self._here()
                self._pos += 1
                table = self._resolve(self._key())
                self._note(table, line)
                self._expect("]")
            else:
                self._pair(table)

    def _element_header(self) -> tuple[str | int, ...]:
        line = self._here()
        self._pos += 2
        key = self._key()
        array = (*self._resolve(key[:-1]), key[-1])
        self._elements[array] = self._elements.get(array, 0) + 1
        table = (*array, self._elements[array] - 1)
        self._note(table, line)
        self._expect("]]")
        return table

    def _resolve(self, key: tuple[str, ...]) -> tuple[str | int, ...]:
        """The place a header means: a name of an array of tables stands for its latest element."""
        place: tuple[str | int, ...] = ()
        for part in key:
            place = (*place, part)
            if place in self._elements:
                place = (*place, self._elements[place] - 1)
        return place

    def _pair(self, table: tuple[str | int, ...]) -> None:
        line = self._here()
        place = (*table, *self._key())
        self._note(place, line)
        self._expect("=")
        self._skip(_BLANK)
        self._value(place)

    def _value(self, place: tuple[str | int, ...]) -> None:
        first = self._text[self._pos : self._pos + 1]
        if first == "[":
            self._array(place)
        elif first == "{":
            self._inline_table(place)
        elif first in ('"', "'"):
            self._match(_STRING)
        else:
            self._match(_BARE)

    def _array(self, place: tuple[str | int, ...]) -> None:
        self._pos += 1
        index = 0
        while True:
            self._skip(_GAP)
            if self._taken("]"):
                return
            self._note((*place, index), self._here())
            self._value((*place, index))
            index += 1
            self._skip(_GAP)
            self._taken(",")

    def _inline_table(self, place: tuple[str | int, ...]) -> None:
        self._pos += 1
        while True:
            self._skip(_GAP)
            if self._taken("}"):
                return
            self._pair(place)
            self._skip(_GAP)
            self._taken(",")

    def _key(self) -> tuple[str, ...]:
        parts: list[str] = []
        while True:
            bare, basic, literal, dot = self._match(_KEY).groups()
            if basic is not None:
                parts.append(_unescaped(basic))
            else:
                parts.append(bare if bare is not None else literal)
            if not dot:
                return tuple(parts)

    def _note(self, place: tuple[str | int, ...], line: int) -> None:
        while place and place not in self.lines:
            self.lines[place] = line
            place = place[:-1]

    def _here(self) -> int:
        self._line += self._text.count("\n", self._counted_to, self._pos)
        self._counted_to = self._pos
        return self._line

    def _skip(self, pattern: re.Pattern[str]) -> int:
        self._match(pattern)
        return self._pos

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        match = pattern.match(self._text, self._pos)
        if match is None:
            raise _LostError
        self._pos = match.end()
        return match

    def _taken(self, mark: str) -> bool:
        if not self._text.startswith(mark, self._pos):
            return False
        self._pos += len(mark)
        return True

    def _expect(self, mark: str) -> None:
        self._skip(_BLANK)
        if not self._taken(mark):
            raise _LostError


def _unescaped(quoted: str) -> str:
    try:
        return str(json.loads(quoted))
    except ValueError:  # \e, \U and \x are TOML's alone: the reader that owns them is tomllib
        try:
            return next(iter(tomllib.loads(f"{quoted} = 0")))
        except tomllib.TOMLDecodeError:
            raise _LostError from None
