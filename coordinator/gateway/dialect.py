"""The protocols that a client may speak here: known by method and path, and how each of them hears that we refuse.

Owns one invariant: a refusal of ours is a whole error in the caller's own protocol, with the status and headers that make
its program do the right thing: stop at once, or come back when it is worth it. What an upstream says is never put into other
words, and whether to refuse is not decided here.
"""

from __future__ import annotations

import enum
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

WireHeaders = tuple[tuple[bytes, bytes], ...]

LONGEST_WAIT_S: Final = 60
"""Of ``retry-after``: Claude Code gives up at once when it is told more."""

_MODEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._:@+-]|%3[Aa]|%40|%2[Bb]){0,199}"
"""Of a name, what stands between two slashes. No part begins with a dot, so none leads elsewhere."""
_MODELS: Final = re.compile(rf"/v1/models(?:/{_MODEL}(?:(?:/|%2[Ff]){_MODEL}){{0,2}})?".encode())
_GOOGLE: Final = re.compile(
    rb"/v1(?:beta|alpha)?/(?:models|tunedModels)/[A-Za-z0-9][A-Za-z0-9._+-]{0,199}:([A-Za-z]{1,40})"
)
_GOOGLE_MODELS: Final = re.compile(rf"/v1(?:beta|alpha)/models(/{_MODEL})?".encode())


class Family(enum.Enum):
    """Whose shapes the messages have. ``EITHER``: paths that Anthropic and OpenAI share; one body serves both."""

    ANTHROPIC = "anthropic"
    EITHER = "either"
    GOOGLE = "google"
    OPENAI = "openai"


class Dialect(enum.StrEnum):
    """One kind of request."""

    __hash__ = str.__hash__  # several tables a call are asked with one of these, and an enum's own is Python

    ANTHROPIC_COUNT = "anthropic-count"
    ANTHROPIC_MESSAGES = "anthropic-messages"
    GOOGLE_COUNT = "google-count"
    GOOGLE_EMBEDDINGS = "google-embeddings"
    GOOGLE_GENERATE = "google-generate"
    GOOGLE_MODELS = "google-models"
    MODELS = "models"
    OPENAI_CHAT = "openai-chat"
    OPENAI_EMBEDDINGS = "openai-embeddings"
    OPENAI_RESPONSES = "openai-responses"

    @property
    def family(self) -> Family:
        return Family.EITHER if self is Dialect.MODELS else Family(self.value.partition("-")[0])


_POSTED: Final[Mapping[bytes, Dialect]] = {
    b"/v1/chat/completions": Dialect.OPENAI_CHAT,
    b"/v1/embeddings": Dialect.OPENAI_EMBEDDINGS,
    b"/v1/messages": Dialect.ANTHROPIC_MESSAGES,
    b"/v1/messages/count_tokens": Dialect.ANTHROPIC_COUNT,
    b"/v1/responses": Dialect.OPENAI_RESPONSES,
}
_VERBS: Final[Mapping[bytes, Dialect]] = {
    b"batchEmbedContents": Dialect.GOOGLE_EMBEDDINGS,
    b"countTokens": Dialect.GOOGLE_COUNT,
    b"embedContent": Dialect.GOOGLE_EMBEDDINGS,
    b"generateContent": Dialect.GOOGLE_GENERATE,
    b"streamGenerateContent": Dialect.GOOGLE_GENERATE,
}


def dialect_of(method: bytes, target: bytes) -> Dialect | None:
    """``target`` without what stands before the protocol's own path (a claim's prefix). None: no model is called so."""
    path = target.partition(b"?")[0]
    if method == b"POST":
        return _POSTED.get(path) or _verb(path)
    return _listed(path) if method == b"GET" else None


def google_call(target: bytes) -> tuple[str, bool]:
    """The model that a path of one of Google's dialects names, and whether the answer is to be a stream."""
    name, _, verb = target.partition(b"?")[0].rpartition(b":")
    return name.rpartition(b"/")[2].decode("ascii", "replace"), verb == b"streamGenerateContent"


def _verb(path: bytes) -> Dialect | None:
    match = _GOOGLE.fullmatch(path)
    return _VERBS.get(match[1]) if match is not None else None


def _listed(path: bytes) -> Dialect | None:
    if _MODELS.fullmatch(path) is not None:
        return Dialect.MODELS
    return Dialect.GOOGLE_MODELS if _GOOGLE_MODELS.fullmatch(path) is not None else None


# -- refusals -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Words:
    """The status, and what the error is called by each: Anthropic's type, OpenAI's type and code, Google's status."""

    status: int
    anthropic: str
    openai: str
    code: str
    google: str
    again: bool = False


class Denial(enum.Enum):
    """Why we say no. The value holds each protocol's words for it."""

    BAD_REQUEST = _Words(400, "invalid_request_error", "invalid_request_error", "invalid_request", "INVALID_ARGUMENT")
    NO_KEY = _Words(401, "authentication_error", "authentication_error", "invalid_api_key", "UNAUTHENTICATED")
    OVER_BUDGET = _Words(402, "billing_error", "insufficient_quota", "insufficient_quota", "FAILED_PRECONDITION")
    NOT_ALLOWED = _Words(403, "permission_error", "permission_error", "permission_denied", "PERMISSION_DENIED")
    """Another agent's key, a revoked one, or from a place that may not call."""
    NOT_FOUND = _Words(404, "not_found_error", "invalid_request_error", "not_found", "NOT_FOUND")
    WRONG_METHOD = _Words(405, "invalid_request_error", "invalid_request_error", "method_not_allowed", "UNIMPLEMENTED")
    TOO_LARGE = _Words(413, "request_too_large", "invalid_request_error", "request_too_large", "INVALID_ARGUMENT")
    LIMITED = _Words(429, "rate_limit_error", "rate_limit_error", "rate_limit_exceeded", "RESOURCE_EXHAUSTED", True)
    """Too many calls of this agent, or the upstream's limit is used up: waiting helps."""
    FAULT = _Words(500, "api_error", "server_error", "server_error", "INTERNAL", True)
    UNREACHED = _Words(502, "api_error", "server_error", "upstream_unreachable", "UNAVAILABLE", True)
    STOPPING = _Words(503, "api_error", "server_error", "service_unavailable", "UNAVAILABLE", True)
    TOO_LATE = _Words(504, "timeout_error", "server_error", "timeout", "DEADLINE_EXCEEDED", True)
    OVERLOADED = _Words(529, "overloaded_error", "server_error", "server_is_overloaded", "UNAVAILABLE", True)
    """Too much at one time for us. Anthropic alone has a status of its own for it; others hear 503."""

    @property
    def again(self) -> bool:
        """Whether asking again can help."""
        return self.value.again

    def status(self, family: Family) -> int:
        return 503 if self is Denial.OVERLOADED and family is not Family.ANTHROPIC else self.value.status


class Denied(Exception):
    """``str()`` is one sentence for a person. ``retry_after_s``: when asking again is worth it; 0: soon, or never. ``final``:
    that is later than a program should wait; it is to stop, and whoever started it knows when to come back."""

    def __init__(self, denial: Denial, message: str, *, final: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.denial = denial
        self.final = final
        self.retry_after_s = retry_after_s

    @property
    def wait_s(self) -> int:
        """What we say of it: whole seconds, no more than clients bear; 0: nothing is said."""
        if self.final or not self.denial.again or (self.retry_after_s <= 0 and self.denial is not Denial.LIMITED):
            return 0
        return math.ceil(max(1, min(LONGEST_WAIT_S, self.retry_after_s)))


def not_called(method: bytes, target: bytes) -> Denied:
    """What to say where ``dialect_of`` found nothing."""
    path = target.partition(b"?")[0]
    said = path[:100].decode("ascii", "replace")
    right = "POST" if dialect_of(b"POST", target) else "GET" if dialect_of(b"GET", target) else ""
    if right:
        return Denied(
            Denial.WRONG_METHOD, f"{said} is called with {right}, not {method[:20].decode('ascii', 'replace')}"
        )
    if path.startswith(b"/v1/v1/"):
        return Denied(Denial.NOT_FOUND, f"no model is called at {said}; the base URL has one /v1 too many")
    return Denied(Denial.NOT_FOUND, f"no model is called at {said}")


def refusal_reply(dialect: Dialect | None, denied: Denied) -> tuple[int, WireHeaders, bytes]:
    """Status, headers and body of a whole answer; lengths and connection are the wire's. None: a path we do not know."""
    family = dialect.family if dialect is not None else Family.EITHER
    headers: WireHeaders = ((b"content-type", b"application/json"),)
    if denied.final or not denied.denial.again:
        headers = (*headers, (b"x-should-retry", b"false"))
    if denied.wait_s:
        headers = (*headers, (b"retry-after", str(denied.wait_s).encode()))
    return denied.denial.status(family), headers, _json(_body(family, denied, str(denied)))


def refusal_event(dialect: Dialect, denied: Denied) -> bytes:
    """The same in the middle of a stream, to be sent after a whole event; empty: this dialect has no streams.

    No proper end of a stream follows it: what came before is not whole. Headers have gone, so the message says how long to
    wait.
    """
    said = f"{denied}; try again in {denied.wait_s} s" if denied.wait_s else str(denied)
    body = _body(dialect.family, denied, said)
    match dialect:
        case Dialect.ANTHROPIC_MESSAGES:
            return b"event: error\ndata: " + _json(body) + b"\n\n"
        case Dialect.OPENAI_CHAT:
            return b"data: " + _json(body) + b"\n\n"
        case Dialect.OPENAI_RESPONSES:
            return _responses_events(body["error"])
        case Dialect.GOOGLE_GENERATE:
            return (
                _json(body) + b"\n"
            )  # bare, as Google does: its own client looks for that and passes over a data line
        case _:
            return b""


def _body(family: Family, denied: Denied, message: str) -> dict[str, Any]:
    """The prefix is how our own agents' readers know whose words these are."""
    words, message = denied.denial.value, f"coordinator: {message}"
    match family:
        case Family.ANTHROPIC:
            return {"type": "error", "error": {"type": words.anthropic, "message": message}}
        case Family.OPENAI:
            return {"error": {"message": message, "type": words.openai, "param": None, "code": words.code}}
        case Family.GOOGLE:
            error = {"code": denied.denial.status(family), "message": message, "status": words.google}
            if denied.wait_s:
                delay = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{denied.wait_s}s"}
                return {"error": {**error, "details": [delay]}}
            return {"error": error}
        case Family.EITHER:
            error = {"type": words.anthropic, "message": message, "param": None, "code": words.code}
            return {"type": "error", "error": error}


def _responses_events(error: dict[str, Any]) -> bytes:
    """Two, as OpenAI sends them: its own library raises at the first, codex knows the second alone."""
    failed = {"object": "response", "status": "failed", "error": error, "output": []}
    return b"".join(
        b"event: " + kind.encode() + b"\ndata: " + _json({"type": kind, "sequence_number": number, **rest}) + b"\n\n"
        for number, (kind, rest) in enumerate((("error", {"error": error}), ("response.failed", {"response": failed})))
    )


def _json(value: dict[str, Any]) -> bytes:
    """On one line, in ASCII: nothing in a message can end an event."""
    return json.dumps(value, separators=(",", ":")).encode()
