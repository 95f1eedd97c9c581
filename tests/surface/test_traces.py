"""Spans, given to a real collector on a real socket: what they say, that they come whole, and that nobody waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from coordinator.domain.event import AttemptEnded, Noticed, RequestServed
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.policy.spans import SpanPlace
from coordinator.policy.trace_export import EXTRA
from coordinator.surface import traces as module
from coordinator.surface.traces import Traces, traces_of
from tests.collector import Collector
from tests.gateway.rig import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from coordinator.domain.event import Published

PLACES = {
    "team": SpanPlace.of("anthropic", "https://user:pass@models.example/base"),
    "echo": SpanPlace.of("echo", "echo"),
}
AT = datetime(2026, 12, 1, 12, 0, 0, 250_000, tzinfo=UTC)
CALL = RequestServed(
    age_s=0.25,
    agent="fix-it.2",
    answer_model="claude-x-20260901",
    bytes_down=500,
    bytes_up=400,
    cache_read_tokens=60,
    cache_write_tokens=30,
    cost_usd=0.0125,
    ending="served",
    finish="length",
    first_byte_s=0.75,
    generation=2,
    input_tokens=10,
    lane="high",
    model="claude-x",
    output_tokens=7,
    path="/v1/messages",
    priced=True,
    request="abc-1",
    role="fixer",
    status=200,
    stream=True,
    task="fix-it",
    took_s=2.5,
    tries=2,
    upstream="team",
    wait_s=0.5,
)
ENDED = AttemptEnded(
    agent="agent-1", ending="landed", generation=2, reason="it works", role="fixer", task="fix-it", took_s=30.0
)


class HandClock(SystemClock):
    def now(self) -> datetime:
        return AT


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)
    with Collector().listening() as listening:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", listening.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        yield listening


class Telling:
    """A bus with a service on it that tells of what is published."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.bus = Bus(HandClock())
        self.events: list[Published] = []
        self.bus.tap(self.events.append)
        made = traces_of(
            "auto", environment, self.bus, PLACES, repository=Path("/srv/shop"), state=Path("/srv/shop/.c")
        )
        assert made is not None
        self.traces: Traces = made
        self.stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.traces.run(self.stopping))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        self.stopping.set()
        assert self._task is not None
        await self._task
        return time.monotonic() - began

    @property
    def said(self) -> list[str]:
        return [one.event.message for one in self.events if isinstance(one.event, Noticed)]

    @property
    def counts(self) -> dict[str, float]:
        (meter,) = self.traces.meters()
        assert meter.labels == ("outcome",)
        return {labels[0]: value for labels, value in meter.samples if value}  # type: ignore[misc]


@contextlib.asynccontextmanager
async def telling(**environment: str) -> AsyncIterator[Telling]:
    import os

    async with Telling({**os.environ, **environment}) as made:
        yield made


# -- what they say -----------------------------------------------------------------------------------------------------


async def test_a_call_is_a_span_of_the_conventions(collector: Collector) -> None:
    async with telling() as told:
        told.bus.publish(CALL)
        await until(lambda: collector.taken)
    (span,) = collector.taken
    assert (span.name, span.kind, span.failed, span.scope) == ("chat claude-x", "CLIENT", False, "coordinator")
    assert (span.ended, span.ended - span.began) == (AT.timestamp() - 0.25, 2.5)
    assert span.attributes == {
        "coordinator.cost_usd": 0.0125,
        "coordinator.generation": 2,
        "coordinator.lane": "high",
        "coordinator.request": "abc-1",
        "coordinator.task": "fix-it",
        "coordinator.tries": 2,
        "coordinator.upstream": "team",
        "coordinator.wait_s": 0.5,
        "gen_ai.agent.name": "fixer",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-x",
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.response.model": "claude-x-20260901",
        "gen_ai.response.time_to_first_chunk": 0.75,
        "gen_ai.usage.cache_read.input_tokens": 60,
        "gen_ai.usage.cache_write.input_tokens": 30,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 7,
        "http.response.status_code": 200,
        "server.address": "models.example",
        "server.port": 443,
    }
    assert collector.paths == ["/v1/traces"]
    assert told.counts == {"sent": 1}


async def test_an_attempt_is_a_trace_with_its_calls_below_it_whoever_tells_of_them(collector: Collector) -> None:
    """The call comes from one daemon, the attempt's end from the next."""
    async with telling() as told:
        told.bus.publish(CALL)
        told.bus.publish(replace(CALL, generation=3, request="abc-2"))
    async with telling() as told:
        told.bus.publish(ENDED)
    (attempt,) = collector.named("invoke_agent fixer")
    mine, other = collector.named("chat claude-x")
    assert (attempt.kind, attempt.parent, attempt.failed) == ("INTERNAL", "", False)
    assert (mine.trace, mine.parent) == (attempt.trace, attempt.span)
    assert other.trace != attempt.trace
    assert mine.span not in (attempt.span, other.span)
    assert (attempt.ended, attempt.ended - attempt.began) == (AT.timestamp(), 30.0)
    assert attempt.began <= mine.began <= mine.ended <= attempt.ended
    assert attempt.attributes == {
        "coordinator.agent": "agent-1",
        "coordinator.ending": "landed",
        "coordinator.generation": 2,
        "coordinator.task": "fix-it",
        "gen_ai.agent.name": "fixer",
        "gen_ai.operation.name": "invoke_agent",
    }


async def test_what_failed_says_how_and_not_in_which_words(collector: Collector) -> None:
    secret = "what the agent printed"
    async with telling() as told:
        told.bus.publish(replace(CALL, status=429, finish=""))
        told.bus.publish(replace(CALL, ending="late", status=504, upstream="", answer_model=""))
        told.bus.publish(replace(ENDED, ending="gate_failed", reason=secret))
    refused, late, attempt = collector.taken
    assert [one.attributes["error.type"] for one in collector.taken] == ["429", "late", "gate_failed"]
    assert [(one.failed, one.said) for one in collector.taken] == [(True, "")] * 3
    assert refused.attributes["http.response.status_code"] == 429
    assert late.attributes["gen_ai.provider.name"] == "anthropic", "by the protocol that was spoken"
    assert not {"server.address", "server.port", "coordinator.upstream"} & set(late.attributes)
    assert secret not in str(attempt)


async def test_calls_of_no_attempt_are_traces_of_their_own(collector: Collector) -> None:
    async with telling() as told:
        for request in ("one", "two"):
            told.bus.publish(replace(CALL, generation=0, role="", task="laptop", upstream="echo", request=request))
    one, two = collector.taken
    assert (one.parent, two.parent) == ("", "")
    assert one.trace != two.trace
    assert one.attributes["gen_ai.provider.name"] == "echo"
    assert "server.address" not in one.attributes


async def test_who_we_are_is_said_and_the_environment_knows_better(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with telling() as told:
        told.bus.publish(CALL)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "night-shift")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab,coordinator.repository=other")
    async with telling() as told:
        told.bus.publish(CALL)
    usual, named = (one.resource for one in collector.taken)
    assert (usual["service.name"], usual["coordinator.repository"]) == ("coordinator", "shop")
    assert usual["telemetry.sdk.language"] == "python"
    assert (named["service.name"], named["coordinator.repository"]) == ("night-shift", "other")
    assert named["deployment.environment.name"] == "lab"
    assert "/srv" not in str(usual)


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio", "parentbased_always_off"])
async def test_a_trace_is_in_the_sample_as_a_whole_or_not_at_all(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    async with telling() as told:
        for number in range(1, 41):
            told.bus.publish(replace(CALL, generation=number))
            told.bus.publish(replace(ENDED, generation=number))
    traces = {one.trace for one in collector.taken}
    if sampler == "parentbased_always_off":
        assert not traces
    else:
        assert 5 < len(traces) < 35
        assert len(collector.taken) == 2 * len(traces)
    assert told.said == []


async def test_headers_and_compression_are_as_the_environment_wants_them(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=blue,authorization=Bearer%20t0ken")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/in/t0ken-2")
    async with telling() as told:
        told.bus.publish(CALL)
    assert (collector.headers[0]["x-team"], collector.headers[0]["authorization"]) == ("blue", "Bearer t0ken")
    assert collector.headers[0]["content-encoding"] == "gzip"
    assert collector.paths == ["/in/t0ken-2"]
    assert len(collector.taken) == 1


# -- that they come ----------------------------------------------------------------------------------------------------


async def test_they_come_in_batches(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    async with telling(OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10", OTEL_BSP_SCHEDULE_DELAY="60000") as told:
        for number in range(25):
            told.bus.publish(replace(CALL, request=f"r{number}"))
        await until(lambda: len(collector.taken) >= 20, 10)
        assert [len(one) for one in collector.batches] == [10, 10], "full ones go at once, the rest waits"
        took_s = await told.stop()
    assert [len(one) for one in collector.batches] == [10, 10, 5]
    assert [one.attributes["coordinator.request"] for one in collector.taken] == [f"r{number}" for number in range(25)]
    assert took_s < 2
    assert (told.counts, told.said) == ({"sent": 25}, [])


async def test_what_is_told_before_it_is_ready_comes_too(collector: Collector) -> None:
    told = Telling({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "60000"})
    for _ in range(3):
        told.bus.publish(CALL)
    async with told:
        told.bus.publish(ENDED)
    assert len(collector.taken) == 4


async def test_a_start_that_takes_long_loses_no_more_than_the_room_for_them(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The libraries are loaded meanwhile."""
    go, make = threading.Event(), Traces._make
    monkeypatch.setattr(Traces, "_make", lambda made: go.wait(20) and make(made))
    async with telling() as told:
        for _ in range(30):
            for _ in range(50):
                told.bus.publish(CALL)
            await asyncio.sleep(0)
        go.set()
        await until(lambda: len(collector.taken) >= 1500, 20)
    assert told.counts == {"sent": 1500}


# -- that nobody waits for them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "timeout_s", "shown"),
    [
        ("nobody listens", 1.5, "it cannot be reached"),
        ("no answer", 1.0, "in time"),
        ("401", 0.2, "it answers 401"),
        ("503", 1.5, "it answers 503"),
        ("503", 0.2, "in time"),
    ],
)
async def test_a_collector_that_fails_loses_what_is_told_and_it_is_said_once(
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
    timeout_s: float,
    shown: str,
) -> None:
    monkeypatch.setattr(module, "LAST_WORDS_S", 0.3)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0ken")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(timeout_s))
    endpoint = collector.url
    if how == "nobody listens":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"http://user:t0ken@127.0.0.1:{free.getsockname()[1]}"
    elif how == "no answer":
        collector.open.clear()
    else:
        collector.status = int(how)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    caplog.set_level(logging.DEBUG)
    async with telling(OTEL_BSP_MAX_QUEUE_SIZE="50", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="20") as told:
        total = 0
        async with asyncio.timeout(20):
            while told.counts.get("refused", 0) < 40:
                for _ in range(20):
                    told.bus.publish(CALL)
                total += 20
                await asyncio.sleep(0.002)
        await told.stop()
    assert sum(told.counts.values()) == total, "each is counted once"
    assert "sent" not in told.counts
    where = endpoint.replace("user:t0ken@", "")
    first, *rest = told.said
    assert first.startswith(f"{where} takes no spans (")
    assert shown in first
    assert [one.rpartition(" spans ")[2] for one in rest] == [f"were not sent to {where} before the end"] * len(rest)
    assert "t0ken" not in str(told.said)
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


async def test_while_a_collector_does_not_answer_everything_goes_on_and_ends(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LAST_WORDS_S", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    collector.open.clear()
    async with telling(OTEL_BSP_MAX_QUEUE_SIZE="50", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="20") as told:
        told.bus.publish(CALL)
        await until(lambda: collector.tries == 1, 10)
        for _ in range(200):
            told.bus.publish(CALL)
        await until(lambda: told.counts == {"dropped": 150})
        assert await told.stop() < 20, "long before it would have given up"
    assert told.counts == {"dropped": 150, "left": 51}
    assert told.said == [f"51 spans were not sent to {collector.url} before the end"]


async def test_a_collector_that_comes_back_gets_what_happens_then(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector.status = 400
    async with telling() as told:
        for _ in range(3):
            told.bus.publish(CALL)
            await until(lambda: told.counts.get("refused", 0), 5)
        await until(lambda: told.counts == {"refused": 3}, 5)
        collector.status = 200
        told.bus.publish(ENDED)
        await until(lambda: collector.taken)
    assert [one.name for one in collector.taken] == ["invoke_agent fixer"]
    assert told.counts == {"refused": 3, "sent": 1}
    assert told.said == [
        f"{collector.url} takes no spans (it answers 400); they are lost, and counted, until it does",
        f"{collector.url} takes spans again; 3 were lost",
    ]


async def test_what_the_libraries_log_is_heard_again_when_it_is_over(collector: Collector) -> None:
    library = logging.getLogger("opentelemetry")
    before = list(library.handlers), library.propagate
    async with telling() as told:
        told.bus.publish(CALL)
        await until(lambda: collector.taken)
        assert not library.propagate
    assert (library.handlers, library.propagate) == before


# -- that they are not sent --------------------------------------------------------------------------------------------


async def test_without_the_libraries_it_is_said_what_to_install(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "coordinator.kit.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    async with telling() as told:
        told.bus.publish(CALL)
        await until(lambda: told.said)
        (said,) = told.said
        assert said == f"no spans are sent to {collector.url}: OpenTelemetry is not installed; {EXTRA}"
        assert "pip install" in EXTRA
        assert await told.stop() < 0.5
    assert not collector.taken


async def test_what_cannot_be_followed_is_said(collector: Collector) -> None:
    async with telling(OTEL_EXPORTER_OTLP_PROTOCOL="grpc") as told:
        await until(lambda: told.said)
    assert "they are sent as http/protobuf only, and OTEL_EXPORTER_OTLP_PROTOCOL wants grpc" in told.said[0]


def test_off_costs_no_import() -> None:
    script = (
        "import sys, coordinator.alone, coordinator.daemon, coordinator.surface.traces as traces\n"
        "from coordinator.kit.bus import Bus; from coordinator.kit.clock import SystemClock\n"
        "from pathlib import Path\n"
        "assert traces.traces_of('auto', {}, Bus(SystemClock()), {}, repository=Path('/'), state=Path('/')) is None\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('opentelemetry', 'google', 'requests')])\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "[]\n"
