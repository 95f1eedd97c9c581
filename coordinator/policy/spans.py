"""Which spans tell of what happened: one for each attempt, and below it one for each of its model calls.

Owns one invariant: nothing that an agent, a model or a person wrote is in a span: no prompt, no answer, no title, no sentence
of why. Names are OpenTelemetry's conventions for generative AI; ours begin with ``coordinator.``. Nothing is sent here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from coordinator.domain.attempt import Ending
from coordinator.domain.event import AttemptEnded, RequestServed
from coordinator.domain.span import AttemptIds, Attributes, SpanSketch
from coordinator.policy.quality import Finish

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.event import Published

_LONGEST: Final = 200
_OPERATIONS: Final[Mapping[str, str]] = {
    "/v1/chat/completions": "chat",
    "/v1/embeddings": "embeddings",
    "/v1/infer": "chat",
    "/v1/messages": "chat",
    "/v1/messages/count_tokens": "count_tokens",
    "/v1/responses": "chat",
}
_VERBS: Final[Mapping[str, str]] = {
    "batchEmbedContents": "embeddings",
    "countTokens": "count_tokens",
    "embedContent": "embeddings",
    "generateContent": "generate_content",
    "streamGenerateContent": "generate_content",
}
_PROVIDERS: Final[Mapping[str, str]] = {"google": "gcp.gemini"}
"""What the conventions call a kind of upstream, where it is not its own name."""
_LISTS: Final = "list_models"
"""This and ``count_tokens`` are names of ours: the conventions have none for what generates nothing."""
_FINISHES: Final[Mapping[str, str]] = {Finish.END: "stop", Finish.LENGTH: "length", Finish.REFUSED: "content_filter"}
_SERVED: Final = "served"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanPlace:
    """Where a call went. ``address`` empty: nowhere that has one."""

    address: str = ""
    port: int = 0
    provider: str

    @classmethod
    def of(cls, kind: str, url: str) -> SpanPlace:
        """Of an upstream; nothing of its URL but host and port."""
        kind = _PROVIDERS.get(kind, kind)
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:  # nobody can call there
            return cls(provider=kind)
        return cls(address=parts.hostname, port=port, provider=kind) if parts.hostname else cls(provider=kind)


def span_sketch(published: Published, places: Mapping[str, SpanPlace], house: str) -> SpanSketch | None:
    """None: that event is no span. ``places`` are the upstreams by name."""
    event, at = published.event, published.at.timestamp()
    if isinstance(event, RequestServed):
        return _call(event, at - event.age_s, places, house)
    return _attempt(event, at, house) if isinstance(event, AttemptEnded) else None


def _call(event: RequestServed, ended: float, places: Mapping[str, SpanPlace], house: str) -> SpanSketch:
    operation = _operation(event.path)
    model = event.model[:_LONGEST]
    failure = event.ending if event.ending != _SERVED else str(event.status) if event.status >= 400 else ""
    place = places.get(event.upstream) or SpanPlace(provider=_provider(event.path))
    said: Attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": place.provider}
    said |= _known(
        {
            "error.type": failure,
            "gen_ai.agent.name": event.role,
            "gen_ai.request.model": model,
            "gen_ai.request.stream": event.stream,
            "gen_ai.response.model": event.answer_model[:_LONGEST],
            "gen_ai.response.time_to_first_chunk": event.first_byte_s if event.stream else 0.0,
            "http.response.status_code": event.status,
            "server.address": place.address,
            "server.port": place.port,
        }
    )
    if event.finish in _FINISHES:
        said["gen_ai.response.finish_reasons"] = (_FINISHES[event.finish],)
    said |= _usage(event) | _own(event)
    attempt = AttemptIds.of(house, event.task, event.generation) if event.generation else None
    name = f"{operation} {model}" if model else operation
    return SpanSketch(
        attempt=attempt, attributes=said, began=ended - event.took_s, ended=ended, failure=failure, name=name
    )


def _usage(event: RequestServed) -> Attributes:
    """All input tokens are in the first of them, cached ones too, as the conventions have it. Nothing where nothing is known."""
    prompt = event.input_tokens + event.cache_read_tokens + event.cache_write_tokens
    if not prompt and not event.output_tokens:
        return {}
    said: Attributes = {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": event.output_tokens}
    return said | _known(
        {
            "gen_ai.usage.cache_read.input_tokens": event.cache_read_tokens,
            "gen_ai.usage.cache_write.input_tokens": event.cache_write_tokens,
        }
    )


def _own(event: RequestServed) -> Attributes:
    """What the conventions have no name for."""
    return _known(
        {
            "coordinator.collapsed": event.collapsed,
            "coordinator.cost_usd": event.cost_usd,
            "coordinator.generation": event.generation,
            "coordinator.lane": event.lane,
            "coordinator.request": event.request,
            "coordinator.saved_usd": event.saved_usd,
            "coordinator.task": event.task,
            "coordinator.tries": event.tries,
            "coordinator.upstream": event.upstream,
            "coordinator.wait_s": event.wait_s,
        }
    )


def _attempt(event: AttemptEnded, ended: float, house: str) -> SpanSketch:
    failure = "" if event.ending == Ending.LANDED else event.ending
    said: Attributes = {"gen_ai.operation.name": "invoke_agent"}
    said |= _known(
        {
            "coordinator.agent": event.agent,
            "coordinator.ending": event.ending,
            "coordinator.generation": event.generation,
            "coordinator.task": event.task,
            "error.type": failure,
            "gen_ai.agent.name": event.role,
        }
    )
    return SpanSketch(
        attempt=AttemptIds.of(house, event.task, event.generation),
        attributes=said,
        began=ended - event.took_s,
        ended=ended,
        failure=failure,
        name=f"invoke_agent {event.role}".rstrip(),
        whole=True,
    )


def _known(said: Attributes) -> Attributes:
    return {name: value for name, value in said.items() if value}


def _operation(path: str) -> str:
    return _OPERATIONS.get(path) or _VERBS.get(path.rpartition(":")[2]) or _LISTS


def _provider(path: str) -> str:
    """Whose protocol was spoken, of a call that went nowhere."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    google = path.startswith(("/v1beta/", "/v1alpha/")) or path.rpartition(":")[2] in _VERBS
    return _PROVIDERS["google"] if google else "openai"
