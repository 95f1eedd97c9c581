"""One thing wrong in something a person wrote: where, which key, what was expected.

Problems are collected and reported together; one never hides another.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Problem:
    """``line`` is 1-based, 0 when the whole file is meant; ``key`` is dotted, empty when no key is to blame."""

    file: str
    line: int = 0
    key: str = ""
    message: str
    expected: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        key = f"{self.key}: " if self.key else ""
        expected = f" (expected {self.expected})" if self.expected else ""
        return f"{place}: {key}{self.message}{expected}"
