"""The gateway by itself, as a real process: what it prints is all that a client needs, wherever it listens."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.policy.trace_export import EXTRA
from tests.collector import Collector
from tests.waiting import wait_until
from tests.walks.house import ENVIRONMENT, build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BODY = json.dumps({"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": "Say hello"}]})


@dataclass
class Alone:
    """``door`` is the first line that it printed."""

    door: dict[str, Any]
    process: subprocess.Popen[str]

    def call(self, *, host: str = "", key: str = "") -> tuple[int, dict[str, Any]]:
        where = self.door["url"].removeprefix("http://")
        connection = http.client.HTTPConnection(where, timeout=20)
        connection.request(
            "POST", "/v1/messages", BODY, {"host": host or where, "x-api-key": key or self.door["keys"]["laptop"]}
        )
        answer = connection.getresponse()
        said = json.loads(answer.read())
        connection.close()
        return answer.status, said

    def end(self) -> list[dict[str, Any]]:
        """Everything that it told, without the first line."""
        self.process.terminate()
        out, _ = self.process.communicate(timeout=30)
        return [json.loads(line) for line in out.splitlines()]


def command(top: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "coordinator", "-C", str(top), "gateway", "--json", *args]


@contextmanager
def alone(top: Path, *args: str, **environment: str) -> Iterator[Alone]:
    argv = command(top, "--name", "laptop", "--echo", *args)
    with subprocess.Popen(argv, env={**ENVIRONMENT, **environment}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Alone(json.loads(process.stdout.readline()), process)
        finally:
            process.kill()


def test_it_answers_who_has_a_key_and_nobody_else(tmp_path: Path) -> None:
    with alone(tmp_path) as running:
        assert running.door["url"].startswith("http://127.0.0.1:")
        status, said = running.call()
        assert (status, said["content"][0]["text"]) == (200, "Say hello")
        assert running.call(key="cck-0-nothing-laptop")[0] == 401
        assert running.call(host="evil.example")[0] == 403
        told = running.end()
    assert [one["status"] for one in told if one["kind"] == "request_served"] == [200]
    assert [one for one in told if one["kind"] == "noticed"] == []


def test_that_others_can_reach_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "coordinator.toml").write_text('[gateway]\nallowed_hosts = ["gateway.example"]\n')
    with alone(tmp_path, "--host", "0.0.0.0") as running:
        port = running.door["url"].rpartition(":")[2]
        assert running.door["url"] == f"http://127.0.0.1:{port}"
        assert running.call(host="gateway.example")[0] == 200
        assert running.call(host="evil.example")[0] == 403
        told = running.end()
    said = [one["message"] for one in told if one["kind"] == "noticed"]
    assert len(said) == 1
    assert said[0].startswith(f"other machines can reach 0.0.0.0:{port}: ")


def page(running: Alone, path: str) -> str:
    connection = http.client.HTTPConnection(running.door["url"].removeprefix("http://"), timeout=20)
    connection.request("GET", path)
    said = connection.getresponse().read().decode()
    connection.close()
    return said


def test_its_calls_are_spans_and_the_last_ones_are_sent_before_it_ends(tmp_path: Path) -> None:
    with Collector().listening() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with alone(tmp_path, **environment) as running:
            assert running.call()[0] == 200
            wait_until(lambda: collector.taken, what="the first span")
            wait_until(
                lambda: 'orchestrator_spans_total{outcome="sent"} 1.0' in page(running, "/metrics"), what="counted"
            )
            assert running.call(key="cck-0-nothing-laptop")[0] == 401
            assert running.call()[0] == 200
            told = running.end()
            assert running.process.returncode == 0
    assert [one.name for one in collector.taken] == ["chat echo", "chat echo"]
    assert len({one.trace for one in collector.taken}) == 2
    served = [one for one in told if one["kind"] == "request_served"]
    assert [one.attributes["coordinator.request"] for one in collector.taken] == [one["request"] for one in served]
    assert "Say hello" not in str(collector.taken)


def test_a_collector_that_answers_nothing_holds_up_no_end(tmp_path: Path) -> None:
    with Collector().listening() as collector:
        collector.open.clear()
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_TIMEOUT": "300"}
        with alone(tmp_path, OTEL_BSP_SCHEDULE_DELAY="1", **environment) as running:
            assert running.call()[0] == 200
            wait_until(lambda: collector.tries, what="a batch on its way")
            assert [running.call()[0] for _ in range(20)] == [200] * 20
            told = running.end()
            assert running.process.returncode == 0
    said = [one["message"] for one in told if one["kind"] == "noticed"]
    assert said == [f"21 spans were not sent to {collector.url} before the end"]


def test_what_is_missing_is_said_at_the_start_and_by_the_doctor(tmp_path: Path) -> None:
    nothing = tmp_path / "path" / "opentelemetry"
    nothing.mkdir(parents=True)
    (nothing / "__init__.py").write_text("raise ModuleNotFoundError('opentelemetry')\n")
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "PYTHONPATH": str(nothing.parent)}
    with alone(tmp_path, **environment) as running:
        assert running.call()[0] == 200
        told = running.end()
    said = [one["message"] for one in told if one["kind"] == "noticed"]
    assert said == [f"no spans are sent to http://127.0.0.1:1: OpenTelemetry is not installed; {EXTRA}"]
    house = build(tmp_path / "house")
    argv = [sys.executable, "-m", "coordinator", "-C", str(house.top), "--json", "doctor"]
    ended = subprocess.run(
        argv, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    (found,) = (one for one in json.loads(ended.stdout)["checks"] if one["check"] == "traces")
    assert (found["status"], found["remedy"]) == ("warn", EXTRA)


@pytest.mark.parametrize(
    ("host", "said"), [("203.0.113.254", "no address of this machine"), ("http://x", "--host: is 'http://x'")]
)
def test_a_host_that_is_none_is_said_in_a_sentence(tmp_path: Path, host: str, said: str) -> None:
    argv = command(tmp_path, "--echo", "--host", host)
    ended = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False)
    assert said in json.loads(ended.stdout)["error"]["message"] or said in ended.stdout
