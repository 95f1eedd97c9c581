"""What a span says of a call and of an attempt, and what it never says."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.attempt import Ending
from coordinator.domain.event import AttemptEnded, DaemonStopped, Event, Published, RequestServed
from coordinator.domain.span import AttemptIds, SpanSketch
from coordinator.policy.spans import SpanPlace, span_sketch

AT = datetime(2026, 12, 1, tzinfo=UTC)
BARE = RequestServed(
    bytes_down=0, bytes_up=0, ending="served", first_byte_s=0.0, generation=1, path="/v1/messages", status=200,
    task="t", took_s=1.0, upstream="",
)  # fmt: skip
ENDED = AttemptEnded(ending="landed", generation=1, reason="r", task="t")


def sketched(event: Event, **places: SpanPlace) -> SpanSketch:
    found = span_sketch(Published(seq=1, at=AT, event=event), places, "house")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("path", "operation", "provider"),
    [
        ("/v1/messages", "chat", "anthropic"),
        ("/v1/messages/count_tokens", "count_tokens", "anthropic"),
        ("/v1/chat/completions", "chat", "openai"),
        ("/v1/responses", "chat", "openai"),
        ("/v1/embeddings", "embeddings", "openai"),
        ("/v1/infer", "chat", "openai"),
        ("/v1/models", "list_models", "openai"),
        ("/v1beta/models", "list_models", "gcp.gemini"),
        ("/v1beta/models/g-1:streamGenerateContent", "generate_content", "gcp.gemini"),
        ("/v1beta/models/g-1:countTokens", "count_tokens", "gcp.gemini"),
        ("/v1/models/g-1:generateContent", "generate_content", "gcp.gemini"),
        ("/v1beta/models/g-1:batchEmbedContents", "embeddings", "gcp.gemini"),
    ],
)
def test_operations(path: str, operation: str, provider: str) -> None:
    found = sketched(replace(BARE, path=path))
    assert found.name == operation
    assert found.attributes["gen_ai.operation.name"] == operation
    assert found.attributes["gen_ai.provider.name"] == provider
    assert sketched(replace(BARE, path=path, model="m")).name == f"{operation} m"


def test_what_is_not_known_is_not_said() -> None:
    assert sketched(BARE).attributes == {
        "coordinator.generation": 1,
        "coordinator.task": "t",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "http.response.status_code": 200,
    }


def test_all_input_counts_as_input() -> None:
    found = sketched(replace(BARE, input_tokens=1, cache_read_tokens=20, cache_write_tokens=300)).attributes
    assert {name: value for name, value in found.items() if "usage" in name} == {
        "gen_ai.usage.cache_read.input_tokens": 20,
        "gen_ai.usage.cache_write.input_tokens": 300,
        "gen_ai.usage.input_tokens": 321,
        "gen_ai.usage.output_tokens": 0,
    }


def test_time_to_the_first_chunk_is_that_of_streams() -> None:
    name = "gen_ai.response.time_to_first_chunk"
    assert name not in sketched(replace(BARE, first_byte_s=0.5)).attributes
    assert sketched(replace(BARE, first_byte_s=0.5, stream=True)).attributes[name] == 0.5


@pytest.mark.parametrize(
    ("kind", "url", "address", "port"),
    [
        ("anthropic", "https://api.anthropic.com", "api.anthropic.com", 443),
        ("vllm", "http://[fd00::7]:8000/v1", "fd00::7", 8000),
        ("openai", "http://proxy", "proxy", 80),
        ("echo", "echo", "", 0),
        ("openai", "http://[::1", "", 0),
        ("openai", "http://x:y", "", 0),
    ],
)
def test_places(kind: str, url: str, address: str, port: int) -> None:
    place = SpanPlace.of(kind, url)
    assert (place.provider, place.address, place.port) == (kind, address, port)
    found = sketched(replace(BARE, upstream="here"), here=place).attributes
    assert (found.get("server.address", ""), found.get("server.port", 0)) == (address, port)


@pytest.mark.parametrize(
    ("ending", "status", "failure"),
    [("served", 200, ""), ("served", 529, "529"), ("left", 0, "left"), ("limited", 429, "limited"), ("broken", 200, "broken")],
)  # fmt: skip
def test_failures_of_calls(ending: str, status: int, failure: str) -> None:
    found = sketched(replace(BARE, ending=ending, status=status))
    assert (found.failure, found.attributes.get("error.type", "")) == (failure, failure)


@pytest.mark.parametrize("ending", Ending)
def test_failures_of_attempts(ending: Ending) -> None:
    found = sketched(replace(ENDED, ending=ending.value))
    assert found.failure == ("" if ending is Ending.LANDED else ending.value)
    assert found.whole


def test_an_attempt_is_the_same_trace_whoever_asks() -> None:
    one, other = sketched(BARE).attempt, sketched(ENDED).attempt
    assert one == other == AttemptIds.of("house", "t", 1)
    assert sketched(replace(BARE, generation=0)).attempt is None


@given(st.tuples(st.text(), st.text(), st.integers(1, 10**9)), st.tuples(st.text(), st.text(), st.integers(1, 10**9)))
def test_two_attempts_are_two_traces(one: tuple[str, str, int], other: tuple[str, str, int]) -> None:
    ids = [AttemptIds.of(*one), AttemptIds.of(*other)]
    assert (ids[0] == ids[1]) is ("\0".join(map(str, one)) == "\0".join(map(str, other)))
    for each in ids:
        assert 0 < each.trace < 2**128
        assert 0 < each.span < 2**64


def test_nothing_that_anybody_wrote_is_in_a_span() -> None:
    """Of an attempt's end its reason, which may quote the agent's output; every other text is a name."""
    names = {"agent", "ending", "role", "task"}
    texts: dict[str, Any] = {field.name: f"<{field.name}>" for field in fields(AttemptEnded) if field.type == "str"}
    found = sketched(AttemptEnded(generation=1, **texts))
    assert {name for name in texts if f"<{name}>" in str(found)} == names
    assert set(texts) - names == {"reason"}
    said = {"answer_model", "collapsed", "ending", "lane", "model", "request", "role", "task", "upstream"}
    texts = {field.name: f"<{field.name}>" for field in fields(RequestServed) if field.type == "str"}
    found = sketched(replace(BARE, **texts))
    assert {name for name in texts if f"<{name}>" in str(found)} == said
    assert set(texts) - said == {"agent", "finish", "path"}


def test_other_events_are_no_spans() -> None:
    assert span_sketch(Published(seq=1, at=AT, event=DaemonStopped(reason="r")), {}, "house") is None


def test_times_are_those_of_the_call_not_of_the_telling() -> None:
    found = sketched(replace(BARE, age_s=0.5, took_s=2.0))
    assert (found.began, found.ended) == (AT.timestamp() - 2.5, AT.timestamp() - 0.5)


def test_googles_kind_has_another_name_by_convention() -> None:
    place = SpanPlace.of("google", "https://generativelanguage.googleapis.com")
    assert sketched(replace(BARE, upstream="here"), here=place).attributes["gen_ai.provider.name"] == "gcp.gemini"
    assert SpanPlace.of("google", "http://x:y").provider == "gcp.gemini"
