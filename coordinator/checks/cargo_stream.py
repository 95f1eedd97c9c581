"""What ``cargo check`` and ``cargo clippy`` print with ``--message-format=json``: one JSON object a line.

Owns one invariant: a stream without cargo's own last word (``build-finished``) is no answer. Lines of other programs, which a
macro of the project may print in between, are passed over. Which of the messages are findings is ``cargo_check``'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks.adapter import text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_CARGO: Final = '{"reason":'
_MACHINE: Final = "MachineApplicable"
_MOST_EXPANSIONS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanEdit:
    """Replace the bytes from ``start`` up to ``end`` by ``text``. ``lines`` are those that the compiler saw there, from the
    1-based ``line`` on; the bytes begin at the 1-based character ``column`` of the first of them.
    """

    column: int
    end: int
    file: str
    line: int
    lines: tuple[str, ...]
    start: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CargoMessage:
    """One diagnostic. ``code`` is empty where it has none. ``spans`` are file, line, column, first and last byte of what it
    is about, each the innermost first and then the places of the macros that it came from. ``edits`` are the compiler's own
    fix, when it has just one and calls it applicable by a machine; ``helps`` are its suggestions in words.
    """

    code: str
    edits: tuple[SpanEdit, ...]
    error: bool
    helps: tuple[str, ...]
    manifest: str
    message: str
    spans: tuple[tuple[tuple[str, int, int, int, int], ...], ...]
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CargoStream:
    """``built`` is cargo's last word. ``artifacts`` are manifest, target and whether it was built as a test harness."""

    artifacts: frozenset[tuple[str, str, bool]]
    built: bool
    messages: tuple[CargoMessage, ...]


def read_stream(text: str) -> CargoStream:
    """Raises one of ``UNREADABLE`` for what cargo would not say, and for a stream that was cut off."""
    artifacts: set[tuple[str, str, bool]] = set()
    messages: list[CargoMessage] = []
    built: bool | None = None
    for line in text.splitlines():
        if not line.startswith(_CARGO):
            continue
        data = json.loads(line)
        match data["reason"]:
            case "compiler-message":
                messages += _message(data)
            case "compiler-artifact":
                harness = data["profile"]["test"] is True
                artifacts.add((text_of(data["manifest_path"]), _target(data), harness))
            case "build-finished":
                if not isinstance(data["success"], bool):
                    raise TypeError("build-finished without success")
                built = data["success"]
    if built is None:
        raise ValueError("it ends before the build did")
    return CargoStream(artifacts=frozenset(artifacts), built=built, messages=tuple(messages))


def _target(data: Mapping[str, Any]) -> str:
    return f"{','.join(map(text_of, data['target']['kind']))} {text_of(data['target']['name'])}"


def _message(data: Mapping[str, Any]) -> Iterator[CargoMessage]:
    """Nothing for the compiler's remarks about its own messages: they have neither a code nor a place."""
    told = data["message"]
    code = text_of((told.get("code") or {}).get("code"), default="")
    level, spans = text_of(told["level"]), [span for span in told["spans"] if span["is_primary"]]
    if (level != "warning" and not level.startswith("error")) or not (code or spans):
        return
    offers = [child for child in told["children"] if any(_is_offer(span) for span in child["spans"])]
    yield CargoMessage(
        code=code,
        edits=_edits(offers[0]["spans"]) if len(offers) == 1 else (),
        error=level != "warning",
        helps=tuple(_in_words(child) for child in offers),
        manifest=text_of(data["manifest_path"]),
        message=text_of(told["message"]),
        spans=tuple(tuple(_unfolded(span)) for span in spans),
        target=_target(data),
    )


def _is_offer(span: Mapping[str, Any]) -> bool:
    return span.get("suggested_replacement") is not None


def _edits(spans: list[Mapping[str, Any]]) -> tuple[SpanEdit, ...]:
    """Nothing when a part of the fix is a guess, or lies in what a macro wrote."""
    offers = [span for span in spans if _is_offer(span)]
    if any(one.get("suggestion_applicability") != _MACHINE or one.get("expansion") for one in offers):
        return ()
    edits = (
        SpanEdit(
            column=_number(one["column_start"]),
            end=_number(one["byte_end"]),
            file=text_of(one["file_name"]),
            line=_number(one["line_start"]),
            lines=tuple(text_of(line["text"]) for line in one["text"]),
            start=_number(one["byte_start"]),
            text=text_of(one["suggested_replacement"]),
        )
        for one in offers
    )
    return tuple(dict.fromkeys(edits))


def _in_words(child: Mapping[str, Any]) -> str:
    texts = [text_of(span["suggested_replacement"]).strip() for span in child["spans"] if _is_offer(span)]
    words = text_of(child["message"])
    return f"{words}: {texts[0]}" if len(texts) == 1 and texts[0] else words


def _unfolded(span: Mapping[str, Any] | None) -> Iterator[tuple[str, int, int, int, int]]:
    for _ in range(_MOST_EXPANSIONS):
        if span is None:
            return
        numbers = (span["line_start"], span["column_start"], span["byte_start"], span["byte_end"])
        line, column, first, last = map(_number, numbers)
        yield text_of(span["file_name"]), line, column, first, last
        span = (span.get("expansion") or {}).get("span")


def _number(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r:.40} is no number of a line, a column or a byte")
    return value
