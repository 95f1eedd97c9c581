"""What routing needs to know of a request: decoded out of a body of any size without building the rest of it.

Owns one invariant: a body goes up as it came; this only looks. What it does not know or does not understand (a field of a
wrong type) is left to the upstream, which says so better; only what is no JSON object is nobody's. It is also the door to
msgspec: its decoder skips what no struct names, and takes a fifth of the time of ``json``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec

from coordinator.gateway.codings import inflated
from coordinator.gateway.dialect import Dialect, google_call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_T = TypeVar("_T")

Raw = msgspec.Raw
"""A value that is skipped."""

_INFLATED_BYTES: Final = 32 * 1024 * 1024
"""Of a compressed body, to be looked at: an agent's whole context has a tenth of it."""

MOST: Final = 10**9
"""Of tokens or anything else that is counted here: what is more is no count."""

UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoding bytes of any kind raises: no JSON, another shape, no UTF-8, nested too deeply."""


class Sparse(msgspec.Struct, gc=False):
    """A JSON object of which the named fields are decoded and all others skipped. What is ``Any`` may be anything at all."""


def sparse_reader(kind: type[_T]) -> Callable[[bytes], _T | None]:
    """A function that decodes one JSON document; None for what is none or has another shape. It never raises."""
    decode = msgspec.json.Decoder(kind).decode

    def read(data: bytes) -> _T | None:
        try:
            return decode(data)
        except UNREADABLE:
            return None

    return read


class Envelope(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """``max_tokens``: the most that may be generated per choice (0: the request does not say). ``turns``: messages in a
    conversation of Anthropic's protocol."""

    choices: int = 1
    max_tokens: int = 0
    model: str = ""
    stream: bool = False
    turns: int = 0


Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]


class _SoundRequest(Sparse):
    """One whose fields are all of their types, which nearly every one is. What another protocol calls otherwise is read there
    as if it were not said."""

    max_completion_tokens: Count = 0
    max_output_tokens: Count = 0
    max_tokens: Count = 0
    messages: list[Raw] | None = None
    model: str = ""
    n: Annotated[int, msgspec.Meta(ge=1, le=MOST)] = 1
    stream: bool = False


class _AnyRequest(Sparse):
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    max_tokens: Any = None
    model: Any = None
    n: Any = None
    stream: Any = None


class _GoogleGeneration(Sparse):
    """Google's JSON may name a field in either way."""

    candidateCount: Any = None  # noqa: N815
    candidate_count: Any = None
    maxOutputTokens: Any = None  # noqa: N815
    max_output_tokens: Any = None


class _GoogleRequest(Sparse):
    generationConfig: _GoogleGeneration | None = None  # noqa: N815
    generation_config: _GoogleGeneration | None = None


_any: Final = msgspec.json.Decoder(_AnyRequest).decode
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_google: Final = msgspec.json.Decoder(_GoogleRequest).decode
_sound: Final = msgspec.json.Decoder(_SoundRequest).decode

_SHAPED: Final = frozenset({"generationConfig", "generation_config"})
"""Fields that a struct gives a shape; of another shape they are left out of account."""


def read_envelope(dialect: Dialect, target: bytes, body: bytes) -> Envelope | None:
    """None: the body is no JSON object, and ``why_unread`` says why. ``target``: as for ``dialect_of``; Google names the
    model there. Requests without a body have an empty envelope."""
    read = _READERS[dialect]
    try:
        return read(body, target)
    except msgspec.ValidationError:
        pass
    except UNREADABLE:
        return None
    try:
        fields = {name: value for name, value in _fields(body).items() if name not in _SHAPED}
        return read(msgspec.json.encode(fields), target)
    except UNREADABLE:
        return None


def plain_body(body: bytes, coding: bytes) -> bytes:
    """A body that came compressed, to be looked at; as it is where it did not, or cannot be inflated to ``_INFLATED_BYTES``."""
    return inflated(body, coding, _INFLATED_BYTES) if coding else body


def why_unread(body: bytes) -> str:
    """One sentence about a body for which ``read_envelope`` gave None."""
    try:
        _fields(body)
    except RecursionError:
        return "the body is nested too deeply"
    except msgspec.ValidationError:
        return "the body is no JSON object"
    except (msgspec.MsgspecError, ValueError) as error:
        said = re.sub(r" \(byte (\d+)\)", r" at byte \1", str(error).removeprefix("JSON is malformed: "))
        return f"the body is no JSON: {said if ' at byte ' in said else f'{said} at byte {len(body)}'}"
    return "the body has a number or a text in it that cannot be read"


def _request(body: bytes) -> _SoundRequest:
    """What makes no sense is as good as unsaid; a maximum that is too large is the largest there is."""
    try:
        return _sound(body)
    except msgspec.ValidationError:
        said = _any(body)
    return _SoundRequest(
        max_completion_tokens=_count(said.max_completion_tokens),
        max_output_tokens=_count(said.max_output_tokens),
        max_tokens=_count(said.max_tokens),
        model=_text(said.model),
        n=_count(said.n) or 1,
        stream=said.stream is True,
    )


def _of_anthropic(body: bytes, _: bytes) -> Envelope:
    said = _request(body)
    turns = len(said.messages or ())
    return Envelope(max_tokens=said.max_tokens, model=said.model, stream=said.stream, turns=turns)


def _of_chat(body: bytes, _: bytes) -> Envelope:
    """Which of two maxima counts is the upstream's affair: the larger is the worst that can happen."""
    said = _request(body)
    most = max(said.max_tokens, said.max_completion_tokens)
    return Envelope(choices=said.n, max_tokens=most, model=said.model, stream=said.stream)


def _of_responses(body: bytes, _: bytes) -> Envelope:
    said = _request(body)
    return Envelope(max_tokens=said.max_output_tokens, model=said.model, stream=said.stream)


def _of_google(body: bytes, target: bytes) -> Envelope:
    said = _google(body)
    model, stream = google_call(target)
    asked = said.generationConfig or said.generation_config
    if asked is None:
        return Envelope(model=model, stream=stream)
    return Envelope(
        choices=max(_count(asked.candidateCount), _count(asked.candidate_count), 1),
        max_tokens=max(_count(asked.maxOutputTokens), _count(asked.max_output_tokens)),
        model=model,
        stream=stream,
    )


def _of_other(body: bytes, _: bytes) -> Envelope:
    return Envelope(model=_text(_any(body).model))


def _of_nothing(_: bytes, __: bytes) -> Envelope:
    return Envelope()


_READERS: Final[Mapping[Dialect, Callable[[bytes, bytes], Envelope]]] = {
    Dialect.ANTHROPIC_COUNT: _of_anthropic,
    Dialect.ANTHROPIC_MESSAGES: _of_anthropic,
    Dialect.GOOGLE_COUNT: _of_google,
    Dialect.GOOGLE_EMBEDDINGS: _of_google,
    Dialect.GOOGLE_GENERATE: _of_google,
    Dialect.GOOGLE_MODELS: _of_nothing,
    Dialect.MODELS: _of_nothing,
    Dialect.OPENAI_CHAT: _of_chat,
    Dialect.OPENAI_EMBEDDINGS: _of_other,
    Dialect.OPENAI_RESPONSES: _of_responses,
}


def _count(value: Any) -> int:
    """A number that is too large stays the largest there is: it must not turn into "nothing was said"."""
    if type(value) is not int or value <= 0:
        return 0
    if value > MOST:
        return MOST
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
