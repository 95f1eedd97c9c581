"""Flat records that travel as JSON objects through files which other programs, agents among them, write.

Owns one invariant: what is read back has exactly the types that its fields name, or is refused here and now.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


class Record:
    """Base of frozen dataclasses: to and from the flat JSON objects of the protocol. Unknown keys are ignored, so that
    agents may add their own."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raise ``TypeError`` when a required key is missing or a value is not what the field holds.

        Agents write these files: a text that cannot be encoded, a number that is not one or has no end, would fail much
        later and somewhere else.
        """
        kinds = {field.name: str(field.type) for field in fields(cls)}  # type: ignore[arg-type]
        return cls(
            **{name: _checked(name, kinds[name], _frozen(value)) for name, value in data.items() if name in kinds}
        )


_LARGEST = 2**63 - 1


def _checked(name: str, kind: str, value: Any) -> Any:
    if kind.endswith(" | None") and value is None:
        return value
    match kind.removesuffix(" | None"):
        case "str":
            fine = _is_text(value)
        case "int":
            fine = type(value) is int and -_LARGEST <= value <= _LARGEST
        case "float":
            fine = type(value) in (int, float) and math.isfinite(value) and abs(value) <= _LARGEST
        case "tuple[str, ...]":
            fine = isinstance(value, tuple) and all(map(_is_text, value))
        case _:  # tuple[tuple[str, str], ...]
            fine = isinstance(value, tuple) and all(
                isinstance(pair, tuple) and len(pair) == 2 and all(map(_is_text, pair)) for pair in value
            )
    if not fine:
        raise TypeError(f"{name} is no {kind}")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
