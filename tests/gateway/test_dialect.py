from __future__ import annotations

import json
import math
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent

from coordinator.gateway.dialect import (
    LONGEST_WAIT_S,
    Denial,
    Denied,
    Dialect,
    Family,
    dialect_of,
    google_call,
    not_called,
    refusal_event,
    refusal_reply,
)

CLAUDE = anthropic.Anthropic(api_key="x", base_url="http://127.0.0.1:1")
GPT = openai.OpenAI(api_key="x", base_url="http://127.0.0.1:1")
STREAMED = (
    Dialect.ANTHROPIC_MESSAGES,
    Dialect.OPENAI_CHAT,
    Dialect.OPENAI_RESPONSES,
    Dialect.GOOGLE_GENERATE,
)


@pytest.mark.parametrize(
    ("method", "target", "dialect"),
    [
        (b"POST", b"/v1/messages", Dialect.ANTHROPIC_MESSAGES),
        (b"POST", b"/v1/messages?beta=true", Dialect.ANTHROPIC_MESSAGES),
        (b"POST", b"/v1/messages/count_tokens?beta=true", Dialect.ANTHROPIC_COUNT),
        (b"POST", b"/v1/chat/completions", Dialect.OPENAI_CHAT),
        (b"POST", b"/v1/embeddings", Dialect.OPENAI_EMBEDDINGS),
        (b"POST", b"/v1/responses", Dialect.OPENAI_RESPONSES),
        (b"POST", b"/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", Dialect.GOOGLE_GENERATE),
        (b"POST", b"/v1beta/models/gemini-2.5-pro:generateContent", Dialect.GOOGLE_GENERATE),
        (b"POST", b"/v1/models/gemini-2.5-pro:generateContent", Dialect.GOOGLE_GENERATE),
        (b"POST", b"/v1beta/tunedModels/mine-1:countTokens", Dialect.GOOGLE_COUNT),
        (b"POST", b"/v1beta/models/text-embedding-004:batchEmbedContents", Dialect.GOOGLE_EMBEDDINGS),
        (b"GET", b"/v1/models", Dialect.MODELS),
        (b"GET", b"/v1/models?limit=1000", Dialect.MODELS),
        (b"GET", b"/v1/models/claude-opus-5-5", Dialect.MODELS),
        (b"GET", b"/v1/models/meta-llama/Llama-3.3-70B", Dialect.MODELS),
        (b"GET", b"/v1/models/meta-llama%2fLlama-3.3-70B", Dialect.MODELS),
        (b"GET", b"/v1/models/ft%3Agpt-4o%3Aorg", Dialect.MODELS),
        (b"GET", b"/v1beta/models", Dialect.GOOGLE_MODELS),
        (b"GET", b"/v1beta/models/gemini-2.5-pro?key=k", Dialect.GOOGLE_MODELS),
        (b"GET", b"/v1/messages", None),
        (b"POST", b"/v1/models", None),
        (b"post", b"/v1/messages", None),
        (b"POST", b"/v1/messages/", None),
        (b"POST", b"/v1/messages/../files", None),
        (b"POST", b"/V1/messages", None),
        (b"POST", b"//v1/messages", None),
        (b"POST", b"http://elsewhere/v1/messages", None),
        (b"GET", b"/v1/models/..", None),
        (b"GET", b"/v1/models/a/../../files", None),
        (b"GET", b"/v1/models/a%2F..%2F..%2Ffiles", None),
        (b"GET", b"/v1/models/a%2f%2e%2e%2ffiles", None),
        (b"GET", b"/v1/models/%2Fa", None),
        (b"GET", b"/v1/models/a%2F", None),
        (b"GET", b"/v1/models/a%3Fb=c", None),
        (b"POST", b"/v1beta/models/a/../b:generateContent", None),
        (b"POST", b"/v1beta/models/gemini:deleteModel", None),
        (b"POST", b"/v1beta/models/gemini%2F..:generateContent", None),
        (b"POST", b"", None),
        (b"", b"", None),
    ],
)
def test_a_dialect_is_known_by_method_and_path(method: bytes, target: bytes, dialect: Dialect | None) -> None:
    assert dialect_of(method, target) is dialect


def test_google_names_the_model_in_the_path() -> None:
    assert google_call(b"/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse") == ("gemini-2.5-pro", True)
    assert google_call(b"/v1beta/tunedModels/mine:generateContent?x=a:b") == ("mine", False)


@given(st.binary(max_size=40), st.binary(max_size=400))
def test_any_bytes_may_ask(method: bytes, target: bytes) -> None:
    assert dialect_of(method, b"/v1/files" + target) is None
    google_call(target)
    assert str(not_called(method, b"/v1/files" + target))


@pytest.mark.parametrize(
    ("method", "target", "denial", "says"),
    [
        (b"GET", b"/v1/messages", Denial.WRONG_METHOD, "POST"),
        (b"POST", b"/v1/models", Denial.WRONG_METHOD, "GET"),
        (b"DELETE", b"/v1beta/models/a:generateContent", Denial.WRONG_METHOD, "POST"),
        (b"POST", b"/v1/v1/messages", Denial.NOT_FOUND, "one /v1 too many"),
        (b"POST", b"/v1/files?x=secret", Denial.NOT_FOUND, "/v1/files"),
    ],
)
def test_what_is_not_called_is_told(method: bytes, target: bytes, denial: Denial, says: str) -> None:
    denied = not_called(method, target)
    assert denied.denial is denial
    assert says in str(denied)
    assert "secret" not in str(denied)


# -- whole answers ------------------------------------------------------------------------------------------------------


def response(dialect: Dialect | None, denied: Denied) -> httpx2.Response:
    status, headers, body = refusal_reply(dialect, denied)
    return httpx2.Response(
        status, headers=list(headers), content=body, request=httpx2.Request("POST", "http://127.0.0.1:1/")
    )


ANTHROPIC_CLASSES: dict[Denial, type[anthropic.APIStatusError]] = {
    Denial.BAD_REQUEST: anthropic.BadRequestError,
    Denial.LIMITED: anthropic.RateLimitError,
    Denial.NOT_ALLOWED: anthropic.PermissionDeniedError,
    Denial.NOT_FOUND: anthropic.NotFoundError,
    Denial.NO_KEY: anthropic.AuthenticationError,
}
OPENAI_CLASSES: dict[Denial, type[openai.APIStatusError]] = {
    Denial.BAD_REQUEST: openai.BadRequestError,
    Denial.LIMITED: openai.RateLimitError,
    Denial.NOT_ALLOWED: openai.PermissionDeniedError,
    Denial.NOT_FOUND: openai.NotFoundError,
    Denial.NO_KEY: openai.AuthenticationError,
}
STATUSES = {
    Denial.BAD_REQUEST: 400,
    Denial.NO_KEY: 401,
    Denial.OVER_BUDGET: 402,
    Denial.NOT_ALLOWED: 403,
    Denial.NOT_FOUND: 404,
    Denial.WRONG_METHOD: 405,
    Denial.TOO_LARGE: 413,
    Denial.LIMITED: 429,
    Denial.FAULT: 500,
    Denial.UNREACHED: 502,
    Denial.STOPPING: 503,
    Denial.TOO_LATE: 504,
    Denial.OVERLOADED: 529,
}


@pytest.mark.parametrize("dialect", [Dialect.ANTHROPIC_MESSAGES, Dialect.ANTHROPIC_COUNT, Dialect.MODELS, None])
@pytest.mark.parametrize("denial", Denial)
def test_anthropics_library_understands(denial: Denial, dialect: Dialect | None) -> None:
    answer = response(dialect, Denied(denial, "because"))
    error = CLAUDE._make_status_error_from_response(answer)
    assert type(error) is not anthropic.APIError
    assert isinstance(error, ANTHROPIC_CLASSES.get(denial, anthropic.APIStatusError))
    if dialect in (Dialect.ANTHROPIC_MESSAGES, Dialect.ANTHROPIC_COUNT):
        assert error.status_code == STATUSES[denial]
    assert (error.type, error.api_message) == (denial.value.anthropic, "coordinator: because")
    assert CLAUDE._should_retry(answer) is denial.again


@pytest.mark.parametrize("dialect", [Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES, Dialect.MODELS, None])
@pytest.mark.parametrize("denial", Denial)
def test_openais_library_understands(denial: Denial, dialect: Dialect | None) -> None:
    answer = response(dialect, Denied(denial, "because"))
    error = GPT._make_status_error_from_response(answer)
    assert isinstance(error, OPENAI_CLASSES.get(denial, openai.APIStatusError))
    assert error.status_code == (503 if denial is Denial.OVERLOADED else STATUSES[denial])
    assert (error.code, error.param) == (denial.value.code, None)
    assert isinstance(error.body, dict)
    assert error.body["message"] == "coordinator: because"
    assert error.type == (denial.value.openai if dialect and dialect is not Dialect.MODELS else denial.value.anthropic)
    assert GPT._should_retry(answer) is denial.again


@pytest.mark.parametrize("denial", Denial)
def test_google_is_answered_in_its_own_shape(denial: Denial) -> None:
    status, headers, body = refusal_reply(Dialect.GOOGLE_GENERATE, Denied(denial, "because", retry_after_s=7))
    error = json.loads(body)["error"]
    assert (error["code"], error["message"], error["status"]) == (status, "coordinator: because", denial.value.google)
    assert status == (503 if denial is Denial.OVERLOADED else STATUSES[denial])
    assert error.get("details", [{}])[0].get("retryDelay") == ("7s" if denial.again else None)
    assert dict(headers).get(b"x-should-retry") == (None if denial.again else b"false")


@pytest.mark.parametrize(
    ("asked_s", "said"),
    [
        (0.0, 1),
        (0.2, 1),
        (1.0, 1),
        (1.01, 2),
        (59.2, 60),
        (61.0, 60),
        (1e9, 60),
        (math.inf, 60),
        (-math.inf, 1),
        (math.nan, 60),
        (-5, 1),
    ],
)
def test_nobody_is_told_to_wait_longer_than_clients_bear(asked_s: float, said: int) -> None:
    denied = Denied(Denial.LIMITED, "full", retry_after_s=asked_s)
    assert denied.wait_s == said <= LONGEST_WAIT_S
    for client, dialect in ((CLAUDE, Dialect.ANTHROPIC_MESSAGES), (GPT, Dialect.OPENAI_CHAT)):
        assert client._parse_retry_after_header(response(dialect, denied).headers) == said


def test_only_what_waiting_mends_says_how_long() -> None:
    for denial in Denial:
        names = {name for name, _ in refusal_reply(None, Denied(denial, "no", retry_after_s=5))[1]}
        assert (b"retry-after" in names) is denial.again
        assert (b"x-should-retry" in names) is not denial.again
    assert b"retry-after" not in dict(refusal_reply(None, Denied(Denial.UNREACHED, "away"))[1])


def test_each_dialect_has_a_family() -> None:
    assert {dialect.family for dialect in Dialect} == set(Family)


@given(st.sampled_from([*Dialect, None]), st.sampled_from(Denial), st.text(max_size=200), st.floats())
def test_any_message_is_sent_whole(dialect: Dialect | None, denial: Denial, message: str, wait_s: float) -> None:
    denied = Denied(denial, message, retry_after_s=wait_s)
    _, headers, body = refusal_reply(dialect, denied)
    assert json.loads(body)["error"]["message"] == f"coordinator: {message}"
    assert all(b"\n" not in name + value and b"\r" not in name + value for name, value in headers)


# -- in the middle of a stream ----------------------------------------------------------------------------------------------


def read_stream(client: Any, kind: Any, sent: bytes) -> list[Any]:
    """What the library makes of it; raises what it raises."""
    answer = httpx2.Response(200, content=sent, request=httpx2.Request("POST", "http://127.0.0.1:1/"))
    stream = anthropic.Stream if client is CLAUDE else openai.Stream
    return list(stream(cast_to=kind, response=answer, client=client))


@pytest.mark.parametrize("denial", Denial)
def test_anthropics_library_hears_of_it_in_mid_stream(denial: Denial) -> None:
    sent = b'event: ping\ndata: {"type":"ping"}\n\n' + refusal_event(Dialect.ANTHROPIC_MESSAGES, Denied(denial, "late"))
    with pytest.raises(anthropic.APIStatusError) as raised:
        read_stream(CLAUDE, RawMessageStreamEvent, sent)
    assert raised.value.type == denial.value.anthropic
    assert str(raised.value.api_message).startswith("coordinator: late")


@pytest.mark.parametrize(
    ("dialect", "kind"),
    [(Dialect.OPENAI_CHAT, ChatCompletionChunk), (Dialect.OPENAI_RESPONSES, ResponseStreamEvent)],
)
@pytest.mark.parametrize("denial", Denial)
def test_openais_library_hears_of_it_in_mid_stream(denial: Denial, dialect: Dialect, kind: Any) -> None:
    with pytest.raises(openai.APIError) as raised:
        read_stream(GPT, kind, refusal_event(dialect, Denied(denial, "late")))
    assert raised.value.code == denial.value.code
    assert raised.value.message.startswith("coordinator: late")


def test_codex_hears_of_it_in_mid_stream() -> None:
    """It knows ``response.failed`` alone, and looks into the message for how long to wait."""
    sent = refusal_event(Dialect.OPENAI_RESPONSES, Denied(Denial.LIMITED, "full", retry_after_s=9))
    failed = [json.loads(line[6:]) for line in sent.decode().split("\n") if line.startswith("data: ")][-1]
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == "rate_limit_exceeded"
    assert "try again in 9 s" in failed["response"]["error"]["message"]
    sent = refusal_event(Dialect.OPENAI_RESPONSES, Denied(Denial.OVER_BUDGET, "spent"))
    assert b'"insufficient_quota"' in sent
    assert b"try again" not in sent


def test_googles_library_hears_of_it_in_mid_stream() -> None:
    """It throws when a piece as it was received is JSON with an error in it, and when one is left that has no end."""
    sent = refusal_event(Dialect.GOOGLE_GENERATE, Denied(Denial.TOO_LATE, "late"))
    assert 400 <= json.loads(sent)["error"]["code"] < 600
    assert b"\n\n" not in sent


@given(st.sampled_from(Denial), st.text(max_size=200), st.floats())
def test_no_message_ends_an_event_early(denial: Denial, message: str, wait_s: float) -> None:
    for dialect in Dialect:
        sent = refusal_event(dialect, Denied(denial, message, retry_after_s=wait_s))
        assert bool(sent) is (dialect in STREAMED)
        for event in sent.split(b"\n\n"):
            assert event.count(b"\n") <= 1
