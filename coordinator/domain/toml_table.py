"""Reading one table of a TOML document that a person wrote: typed access that collects every problem.

Owns one invariant: a reader never raises and never stops at the first fault; what is wrong becomes a ``Problem`` with
file, line, key and expectation, and the default is returned in its place. What the keys mean is the caller's.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from coordinator.domain.toml_position import TomlDocument

ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED_ENV: Final = ("COORDINATOR_", "GIT_")

_DURATION: Final = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([kKMGT]i?)?B?")
_SIZE_POWERS: Final = "KMGT"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class TomlTable:
    """``at`` is the table's path in the document, ``name`` its dotted name in messages (empty: keys stand alone)."""

    __slots__ = ("_at", "_document", "_name", "data", "problems")

    def __init__(
        self,
        document: TomlDocument,
        data: Mapping[str, Any],
        problems: list[Problem],
        *,
        at: tuple[str | int, ...] = (),
        name: str = "",
    ) -> None:
        self.data = data
        self.problems = problems
        self._at = at
        self._document = document
        self._name = name

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def line(self, key: str = "") -> int:
        return self._document.line((*self._at, key) if key else self._at)

    def wrong(self, key: str, message: str, expected: str = "", *, inside: tuple[str | int, ...] = ()) -> None:
        """Report ``key``; ``inside`` leads on to the element of its value that is meant."""
        place = (*self._at, key, *inside)
        dotted = ".".join(part for part in (self._name, key) if part)
        shown = dotted + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inside)
        self.problems.append(
            Problem(
                file=self._document.file,
                line=self._document.line(place),
                key=_printable(shown),
                message=message,
                expected=expected,
            )
        )

    def check_keys(self, known: Collection[str], *, ignored: Collection[str] = ()) -> None:
        """Report every key that is neither ``known`` nor ``ignored``, with the known one that it resembles."""
        for key in self.data:
            if key in known or key in ignored:
                continue
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            if close:
                self.wrong(key, f'unknown key, did you mean "{close[0]}"?')
            else:
                self.wrong(key, "unknown key", f"one of {_listed(known)}")

    def table(self, key: str) -> TomlTable | None:
        """The table at ``key``; None when it is missing or (reported) no table."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.wrong(key, f"is {kind_of(value)}", "a table")
            return None
        name = ".".join(part for part in (self._name, key) if part)
        return TomlTable(self._document, value, self.problems, at=(*self._at, key), name=name)

    def tables(self, key: str) -> list[TomlTable]:
        """The array of tables at ``key``; what is no table in it is reported by its index and left out."""
        value = self.data.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.wrong(key, f"is {kind_of(value)}", f"[[{key}]]")
            return []
        found = []
        for index, one in enumerate(value):
            if not isinstance(one, dict):
                self.wrong(key, f"is {kind_of(one)}", "a table", inside=(index,))
                continue
            name = ".".join(part for part in (self._name, f"{key}[{index}]") if part)
            found.append(TomlTable(self._document, one, self.problems, at=(*self._at, key, index), name=name))
        return found

    def text(
        self,
        key: str,
        default: str = "",
        *,
        expected: str = "text",
        lines: bool = False,
        longest: int = 200,
        pattern: re.Pattern[str] | None = None,
    ) -> str:
        """``lines``: line breaks and tabs may stand in it. ``pattern`` must match all of it (empty text included)."""
        value = self.data.get(key)
        if value is None:
            return default
        fault = _text_fault(value, lines=lines, longest=longest, pattern=pattern)
        if fault:
            self.wrong(key, fault, expected)
            return default
        return str(value)

    def texts(
        self,
        key: str,
        default: tuple[str, ...] = (),
        *,
        expected: str = "text",
        lines: bool = False,
        longest: int = 200,
        pattern: re.Pattern[str] | None = None,
    ) -> tuple[str, ...]:
        """An array of texts, none of them blank; each faulty element is reported by its index."""
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, list):
            self.wrong(key, f"is {kind_of(value)}", f'an array: {key} = ["…"] of {expected}')
            return default
        good: list[str] = []
        for index, item in enumerate(value):
            fault = _text_fault(item, lines=lines, longest=longest, pattern=pattern)
            fault = fault or ("" if item.strip() else "is blank")
            if fault:
                self.wrong(key, fault, expected, inside=(index,))
            else:
                good.append(item)
        return tuple(good)

    def flag(self, key: str, default: bool) -> bool:
        value = self.data.get(key, default)
        if isinstance(value, bool):
            return value
        self.wrong(key, f"is {kind_of(value)}", "true or false")
        return default

    def choice(self, key: str, default: str, allowed: Collection[str]) -> str:
        value = self.data.get(key, default)
        if isinstance(value, str) and value in allowed:
            return value
        said = f"{_quoted(value)} is not possible" if isinstance(value, str) else f"is {kind_of(value)}"
        self.wrong(key, said, f"one of {_listed(allowed)}")
        return default

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self.data.get(key)
        if value is None:
            return default
        expected = f"an integer from {low} to {high}"
        if isinstance(value, bool) or not isinstance(value, int):
            self.wrong(key, f"is {kind_of(value)}", expected)
        elif not low <= value <= high:
            self.wrong(key, f"{value if abs(value) < 10**18 else 'it'} is out of range", expected)
        else:
            return value
        return default

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self.data.get(key)
        if value is None:
            return default
        expected = f"a number from {low:g} to {high:g}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.wrong(key, f"is {kind_of(value)}", expected)
        elif not low <= value <= high:  # true of nan as well
            self.wrong(key, "is out of range", expected)
        else:
            return float(value)
        return default

    def seconds(self, key: str, default: float, low: float, high: float) -> float:
        """A number of seconds, or text such as ``"90s"``, ``"10m"``, ``"1h30m"``."""
        value = self.data.get(key)
        if not isinstance(value, str):
            return self.number(key, default, low, high)
        match = _DURATION.fullmatch(value.strip())
        expected = f'seconds, or text like "90s", "10m" or "1h30m", from {low:g} s to {high:g} s'
        if match is None or not any(match.groups()):
            self.wrong(key, f"{_quoted(value)} is no duration", expected)
            return default
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        total = hours * 3600 + minutes * 60 + seconds
        if not low <= total <= high:
            self.wrong(key, f"{_quoted(value)} is out of range", expected)
            return default
        return total

    def size(self, key: str, default: int, low: int, high: int) -> int:
        """A number of bytes, or text such as ``"512MB"`` or ``"8GiB"`` (powers of 1024 both)."""
        value = self.data.get(key)
        if not isinstance(value, str):
            return self.integer(key, default, low, high)
        match = _SIZE.fullmatch(value.strip())
        expected = f'bytes, or text like "512MB" or "8GB", from {low} to {high}'
        if match is None:
            self.wrong(key, f"{_quoted(value)} is no size", expected)
            return default
        power = _SIZE_POWERS.index(match[2][0].upper()) + 1 if match[2] else 0
        total = float(match[1]) * 1024**power
        if not low <= total <= high:
            self.wrong(key, f"{_quoted(value)} is out of range", expected)
            return default
        return int(total)

    def variables(self, key: str) -> tuple[tuple[str, str], ...]:
        """A table of environment variables to set, sorted by name."""
        env = self.table(key)
        if env is None:
            return ()
        for name in env.data:
            if not ENV_NAME.fullmatch(name):
                env.wrong(name, "is no name of a variable", "letters, digits and _")
            elif name.startswith(RESERVED_ENV):
                env.wrong(name, "is set by the coordinator itself", "a name without COORDINATOR_ or GIT_ in front")
        return tuple(sorted((name, env.text(name, lines=True, longest=100_000)) for name in env.data))


def _text_fault(value: object, *, lines: bool, longest: int, pattern: re.Pattern[str] | None) -> str:
    if not isinstance(value, str):
        return f"is {kind_of(value)}"
    if "\x00" in value or (not lines and _CONTROL.search(value)):
        return "has a line break or control character" if not lines else "has a NUL character"
    if len(value) > longest:
        return f"has {len(value)} characters, more than {longest}"
    if pattern is not None and pattern.fullmatch(value) is None:
        return f"{_quoted(value)} is not possible"
    return ""


def kind_of(value: object) -> str:
    """What a value is, in a person's words."""
    match value:
        case bool():
            return "true or false"
        case str():
            return "text"
        case int():
            return "an integer"
        case float():
            return "a number"
        case list():
            return "an array"
        case dict():
            return "a table"
    return "a date or time"


def _quoted(value: str) -> str:
    """``value`` in double quotes on one short line, whatever is in it."""
    return '"' + _printable(value if len(value) <= 60 else value[:59] + "…") + '"'


def _printable(value: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", value)


def _listed(words: Collection[str]) -> str:
    return ", ".join(sorted(words))
