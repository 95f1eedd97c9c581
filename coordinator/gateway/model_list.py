"""Lists of models in each protocol's shape: read, filled in for a caller of another one, and cut into pages.

Owns one invariant: whatever an upstream told of a model is kept, known or not; only what the caller's protocol wants beside it
is added. Who is asked, and which upstream is believed, is ``model_inquiry``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from coordinator.domain.upstream import UpstreamKind
from coordinator.gateway.dialect import Denial, Denied, Dialect, Family
from coordinator.gateway.fast_json import BadJson, decode, encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ModelEntry = dict[str, Any]

MOST: Final = 1000
"""Entries of a page, in Anthropic's protocol and in Google's."""
_USUAL: Final[Mapping[Family, int]] = {Family.ANTHROPIC: 20, Family.GOOGLE: 50}
"""The same where the caller does not say."""
_PREFIX: Final = "models/"
"""Of a name in Google's protocol."""
_LATEST_S: Final = 1e11
"""The end of what can be a time: the year 5138."""


def family_of(kind: UpstreamKind) -> Family:
    """Whose shape the lists of such an upstream have."""
    match kind:
        case UpstreamKind.ANTHROPIC:
            return Family.ANTHROPIC
        case UpstreamKind.GOOGLE:
            return Family.GOOGLE
        case _:
            return Family.OPENAI


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPage:
    """``after``: what to ask for the next one with; empty: there is none."""

    after: str = ""
    entries: tuple[ModelEntry, ...]


def read_list(body: bytes, family: Family) -> ModelPage | None:
    """One page of an upstream's list; None: it is none. Entries without a name are left out."""
    told = read_model(body)
    listed = None if told is None else told.get("models" if family is Family.GOOGLE else "data")
    if told is None or not isinstance(listed, list):
        return None
    entries = tuple(entry for entry in listed if isinstance(entry, dict) and name_of(entry, family))
    after = told.get("nextPageToken") if family is Family.GOOGLE else told.get("has_more") and told.get("last_id")
    return ModelPage(after=after if isinstance(after, str) else "", entries=entries)


def read_model(body: bytes) -> ModelEntry | None:
    """What was told of one model; None: it is no object."""
    try:
        told = decode(body)
    except BadJson:
        return None
    return told if isinstance(told, dict) else None


def name_of(entry: ModelEntry, family: Family) -> str:
    """The id by which it is called; empty: it has none."""
    name = entry.get("name" if family is Family.GOOGLE else "id")
    return name.removeprefix(_PREFIX) if isinstance(name, str) else ""


def shaped(entry: ModelEntry, family: Family, name: str, owner: str) -> ModelEntry:
    """The entry as callers of ``family`` know it, under that name. ``owner``: who has it, where nobody has said."""
    match family:
        case Family.GOOGLE:
            return {**entry, "name": _PREFIX + name}
        case Family.ANTHROPIC:
            made = datetime.fromtimestamp(_seconds(entry.get("created")), UTC).isoformat().replace("+00:00", "Z")
            usual: ModelEntry = {"type": "model", "display_name": name, "created_at": made}
        case _:
            usual = {"object": "model", "created": int(_epoch(entry.get("created_at"))), "owned_by": owner}
    return {**entry, **{key: value for key, value in usual.items() if key not in entry}, "id": name}


def list_reply(entries: Sequence[ModelEntry], family: Family, query: bytes) -> bytes:
    """A whole list, or the page of it that ``query`` asks for. Raises ``Denied``."""
    asked = dict(parse_qsl(query.decode("latin-1")))
    match family:
        case Family.ANTHROPIC:
            return encode(_anthropic_page(entries, asked))
        case Family.GOOGLE:
            return encode(_google_page(entries, asked))
        case _:
            return encode({"object": "list", "data": entries})


def _anthropic_page(entries: Sequence[ModelEntry], asked: Mapping[str, str]) -> dict[str, Any]:
    """After one id or before another; ``has_more`` is of that direction."""
    most = _most(asked, "limit", Family.ANTHROPIC)
    if "before_id" in asked:
        end = _place(entries, asked["before_id"], "before_id", Family.ANTHROPIC)
        page, more = entries[max(0, end - most) : end], end > most
    else:
        begin = _place(entries, asked["after_id"], "after_id", Family.ANTHROPIC) + 1 if "after_id" in asked else 0
        page, more = entries[begin : begin + most], begin + most < len(entries)
    ends = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"data": page, "has_more": more, "first_id": ends[0], "last_id": ends[1]}


def _google_page(entries: Sequence[ModelEntry], asked: Mapping[str, str]) -> dict[str, Any]:
    """A token of ours is the name of the last model before."""
    most = _most(asked, "pageSize", Family.GOOGLE)
    token = asked.get("pageToken", "")
    begin = _place(entries, token, "pageToken", Family.GOOGLE) + 1 if token else 0
    page = entries[begin : begin + most]
    if begin + most < len(entries):
        return {"models": page, "nextPageToken": name_of(page[-1], Family.GOOGLE)}
    return {"models": page}


def _most(asked: Mapping[str, str], key: str, family: Family) -> int:
    """Google takes whatever number for the nearest that is one; Anthropic does not."""
    said = asked.get(key, "")
    number = int(said) if said.isascii() and said.isdigit() and len(said) < 10 else -1
    if family is Family.GOOGLE and (not said or number == 0):
        return _USUAL[family]
    if not said:
        return _USUAL[family]
    if number < 1 or (number > MOST and family is Family.ANTHROPIC):
        raise Denied(Denial.BAD_REQUEST, f"{key} is a number from 1 to {MOST}")
    return min(number, MOST)


def _place(entries: Sequence[ModelEntry], name: str, key: str, family: Family) -> int:
    found = next((at for at, entry in enumerate(entries) if name_of(entry, family) == name), -1)
    if found < 0:
        raise Denied(Denial.BAD_REQUEST, f"{key} names no model of this list; begin it anew")
    return found


def _seconds(value: Any) -> float:
    """Epoch seconds, where it is a time; else 0."""
    return value if type(value) in (int, float) and 0 <= value < _LATEST_S else 0.0


def _epoch(value: Any) -> float:
    try:
        return _seconds(datetime.fromisoformat(value).timestamp()) if isinstance(value, str) else 0.0
    except (ValueError, OverflowError):
        return 0.0


def caller_family(dialect: Dialect, *, anthropic: bool, google: bool) -> Family:
    """Whose protocol a caller that wants a list speaks: three have the same path, and tell by their headers."""
    if dialect is Dialect.GOOGLE_MODELS:
        return Family.GOOGLE
    if anthropic:
        return Family.ANTHROPIC
    return Family.GOOGLE if google else Family.OPENAI
