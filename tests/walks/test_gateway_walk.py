"""An agent's model call goes through the daemon and in no other way, and a person hears of what needs one."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.collector import Collector
from tests.waiting import wait_until
from tests.walks.house import ENVIRONMENT, House, build

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "sk-provider-secret-0123456789"
CALL = """\
python3 - <<'EOF'
import json, os, pathlib, urllib.request, urllib.error
url, key = os.environ["ANTHROPIC_BASE_URL"], os.environ["ANTHROPIC_API_KEY"]
pathlib.Path(os.environ["COORDINATOR_ATTEMPT"], "environment").write_text(json.dumps(dict(os.environ)))
request = urllib.request.Request(url + "/v1/messages", b'{"model": "m"}', {"x-api-key": key})
pathlib.Path("answer").write_bytes(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).read())
EOF
"""


METRICS = """\
python3 - <<'EOF'
import os, pathlib, urllib.request
url = os.environ["ANTHROPIC_BASE_URL"].partition("/agents/")[0] + "/metrics"
pathlib.Path("metrics").write_bytes(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url).read())
EOF
"""


@dataclass
class Provider:
    """Answers every call alike; keeps what it was asked and told."""

    calls: list[tuple[str, str | None, bytes]] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0

    @contextmanager
    def listening(self) -> Iterator[Provider]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/told":
                    provider.told.append(json.loads(body))
                else:
                    provider.calls.append((self.path, self.headers["x-api-key"], body))
                self.send_response(200)
                self.send_header("Content-Length", "9")
                self.end_headers()
                self.wfile.write(b"forty-two")

            def log_message(self, *_: Any) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider().listening() as listening:
        yield listening


@pytest.fixture
def house(tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setitem(ENVIRONMENT, "ANTHROPIC_API_KEY", SECRET)
    made = build(tmp_path / "house")
    settings = made.top / "coordinator.toml"
    here = f"http://127.0.0.1:{provider.port}"
    settings.write_text(
        f'{settings.read_text()}\n[gateway]\nanthropic_url = "{here}"\n'
        f'[[notify]]\nurl = "{here}/told"\non = ["task_landed", "task_failed", "fleet_idle", "daemon_stopped"]\n'
    )
    return made


def _end(daemon: subprocess.Popen[str]) -> str:
    daemon.terminate()
    return daemon.communicate(timeout=30)[0]


def test_a_call_passes_through_is_attributed_and_shows_no_secret(house: House, provider: Provider) -> None:
    house.task("t", CALL)
    house.task("bad", "exit 3", max_attempts=1)
    daemon = house.start("run")
    try:
        wait_until(lambda: house.states().get("t") == "completed", 30, what="t landed")
        wait_until(lambda: house.states().get("bad") == "failed", 30, what="bad failed")
        wait_until(lambda: any(one["occasion"] == "fleet_idle" for one in provider.told), 15, what="told of idleness")
        status = json.loads(house.command("status", "--json").stdout)
        said = house.command("status").stdout
    finally:
        printed = _end(daemon)
    assert house.show("answer") == "forty-two"
    assert provider.calls == [("/v1/messages", SECRET, b'{"model": "m"}')]
    environment = json.loads((house.top / ".coordinator/attempts/t/1/environment").read_text())
    assert SECRET not in environment.values()
    assert environment["ANTHROPIC_BASE_URL"] == f"{status['gateway']['url']}/agents/t/1"
    assert status["gateway"]["upstreams"] == [f"http://127.0.0.1:{provider.port}"]
    assert "model calls pass through" in said
    served = [json.loads(row[0]) for row in house.rows("SELECT data FROM journal WHERE kind = 'calls_counted'")]
    assert [(one["task"], one["generation"], one["calls"], one["last_status"]) for one in served] == [("t", 1, 1, 200)]
    hidden = [path for path in (house.top / ".coordinator").rglob("*") if path.is_file()]
    assert not [path for path in hidden if SECRET.encode() in path.read_bytes()]
    assert SECRET not in printed
    occasions = {(one["occasion"], one["event"].get("task", "")) for one in provider.told}
    assert occasions == {("task_landed", "t"), ("task_failed", "bad"), ("fleet_idle", ""), ("daemon_stopped", "")}


def test_an_attempt_is_a_trace_with_its_calls(
    house: House, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector().listening() as collector:
        monkeypatch.setitem(ENVIRONMENT, "OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setitem(ENVIRONMENT, "OTEL_BSP_SCHEDULE_DELAY", "60000")
        house.task("secret-work", f"{CALL}\n{CALL}\n{METRICS}", title="a headline that says it all")
        house.task("bad", "echo leaked-output >&2; exit 3", max_attempts=1)
        assert house.command("run", "--until-idle").returncode == 1
    good, bad = (
        next(one for one in collector.taken if one.attributes["coordinator.task"] == name and not one.parent)
        for name in ("secret-work", "bad")
    )
    calls = [one for one in collector.taken if one.parent]
    assert 'orchestrator_spans_total{outcome="sent"} 0.0' in house.show("metrics")
    assert [(one.name, one.kind, one.failed) for one in (good, bad)] == [
        ("invoke_agent edit", "INTERNAL", False),
        ("invoke_agent edit", "INTERNAL", True),
    ]
    assert {(one.trace, one.parent, one.name, one.kind) for one in calls} == {
        (good.trace, good.span, "chat m", "CLIENT")
    }
    assert len(calls) == 2
    assert all(good.began < one.began <= one.ended < good.ended for one in calls)
    assert {one.attributes["server.port"] for one in calls} == {provider.port}
    assert {one.resource["coordinator.repository"] for one in collector.taken} == {"house"}
    told = str(collector.taken) + str(collector.headers)
    assert not [word for word in (SECRET, "cck-", "headline", "leaked-output", "forty-two") if word in told]


def test_a_key_dies_with_its_attempt_and_lives_over_a_restart(house: House, provider: Provider) -> None:
    go = house.top / ".coordinator" / "go"
    house.task("t", f"touch {go}.at-work; until [ -e {go} ]; do sleep 0.05; done\n{CALL}")
    first = house.start("run")
    wait_until((go.parent / "go.at-work").exists, 20, what="at work")
    first.kill()
    first.communicate()
    second = house.start("run")
    try:
        wait_until(lambda: json.loads(house.command("status", "--json").stdout)["gateway"]["url"], 20, what="a gateway")
        go.touch()
        wait_until(lambda: house.states().get("t") == "completed", 30, what="t landed")
        assert len(provider.calls) == 1
        environment = json.loads((house.top / ".coordinator/attempts/t/1/environment").read_text())
        refused = _call(environment)
        assert "403" in refused
        assert len(provider.calls) == 1
    finally:
        _end(second)


STUBBORN = """\
cat > dying.py <<'EOF'
import os, pathlib, signal, sys, time, urllib.error, urllib.request
note = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: None)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
url, key = os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", os.environ["ANTHROPIC_API_KEY"]
def call():
    try:
        return opener.open(urllib.request.Request(url, b"{}", {"x-api-key": key}), timeout=5).status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
before = call()
note.with_suffix(".ready").write_text(str(before))
signal.sigwait([signal.SIGTERM]) if hasattr(signal, "sigwait") else time.sleep(60)
note.write_text(f"{before} {call()}")
time.sleep(60)
EOF
exec python3 dying.py NOTE
"""
"""An agent that is asked to end, and uses its grace for one more call."""


@pytest.mark.parametrize("how", ["time limit", "cancel", "stop now"])
def test_the_key_dies_before_the_agent_is_stopped(house: House, provider: Provider, tmp_path: Path, how: str) -> None:
    note = tmp_path / "note"
    settings = house.top / "coordinator.toml"
    settings.write_text(settings.read_text().replace("[fleet]\n", "[fleet]\ngrace_s = 3\n"))
    limit = {"timeout": 4} if how == "time limit" else {}
    house.task("t", STUBBORN.replace("NOTE", str(note)), max_attempts=1, **limit)
    daemon = house.start("run")
    try:
        wait_until(note.with_suffix(".ready").exists, 20, what="at work")
        if how == "cancel":
            assert house.command("tasks", "cancel", "t").returncode == 0
        again = daemon.terminate if how == "stop now" else daemon.poll
        wait_until(lambda: (again(), note.exists() and note.read_text())[1], 20, what="asked to end")
    finally:
        daemon.terminate()
        daemon.terminate()
        daemon.communicate(timeout=40)
    assert note.read_text() == "200 403"
    assert len(provider.calls) == 1


def test_an_agents_parents_have_no_key_of_the_provider(house: House) -> None:
    """What a process has in its environment, every other one of the same user can read."""
    script = "for pid in $PPID $(cut -d' ' -f4 /proc/$PPID/stat); do tr '\\0' '\\n' < /proc/$pid/environ; done > seen"
    house.task("t", f"{script}\necho done >> seen")
    assert house.command("run", "--until-idle").returncode == 0
    seen = house.show("seen")
    assert seen.count("PATH=") >= 2, "both were read"
    assert SECRET not in seen


def _call(environment: dict[str, str]) -> str:
    import urllib.error
    import urllib.request

    url = f"{environment['ANTHROPIC_BASE_URL']}/v1/messages"
    request = urllib.request.Request(url, b"{}", {"x-api-key": environment["ANTHROPIC_API_KEY"]})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(request, timeout=10)
    with refused.value as answer:
        return str(answer)
