"""The gateway's benchmark: its load generator and mock upstream tell the truth, and nothing that it started outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from scripts import bench_figures, bench_gateway, bench_primitives
from scripts.bench_load import NotMeasured, Rig, rig
from scripts.bench_peers import ANTHROPIC, DIRECT, OPENAI, OURS, PEERS, filled
from tests.house.source import TOP
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="epoll")


@pytest.fixture(scope="module")
def made() -> Iterator[Rig]:
    with rig() as one:
        yield one


def drive(made: Rig, folder: Path, order: str, *options: str, path: str = "/v1/messages") -> dict[str, object]:
    body = folder / "body.json"
    body.write_text(json.dumps({"messages": [{"role": "user", "content": f"[[{order}]] @@@NONCE@@@@@@@@"}]}))
    argv = ["--to", f"127.0.0.1:{made.port}", "--path", path, "--body", str(body), "--warm", "0.05", "--seconds", "0.1"]
    return made.run([*argv, *options])[0]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
@pytest.mark.parametrize("callers", [1, 8])
def test_good_calls_are_counted_and_all_reach_the_upstream(made: Rig, tmp_path: Path, path: str, callers: int) -> None:
    before = made.served()["plain"]
    seen = drive(made, tmp_path, "bytes=1024", "--callers", str(callers), path=path)
    assert seen["errors"] == 0
    assert 0 < seen["calls"] <= made.served()["plain"] - before
    assert 0 < seen["latency_us"]["p50"] <= seen["latency_us"]["p99"] <= seen["latency_us"]["max"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
@pytest.mark.parametrize("burst", [0, 1])
def test_a_stream_has_all_its_tokens(made: Rig, tmp_path: Path, path: str, burst: int) -> None:
    order = f"stream=1 chunks=7 burst={burst} delay_us=100"
    seen = drive(made, tmp_path, order, "--stream", "--tokens", "7", path=path)
    assert (seen["errors"], seen["least_tokens"]) == (0, 7)
    assert seen["token_us"]["p50"] <= seen["latency_us"]["p50"]
    if burst:
        assert seen["latency_us"]["p50"] > 600, "seven pauses of 100 µs lie between its pieces"


def test_what_is_wrong_is_said(made: Rig, tmp_path: Path) -> None:
    seen = drive(made, tmp_path, "status=429")
    assert seen["calls"] == 0
    assert seen["wrong"].keys() == {"429"}
    assert "as ordered: 429" in seen["example"]
    seen = drive(made, tmp_path, "stream=1 chunks=3", "--stream", "--tokens", "4")
    assert seen["wrong"].keys() == {"short"}
    seen = drive(made, tmp_path, "bytes=1024", "--stream")
    assert seen["wrong"].keys() == {"torn"}, "a plain answer where a stream was wanted has not a stream's end"
    with pytest.raises(NotMeasured, match="does not take connections"):
        made.run(["--to", "127.0.0.1:1", "--warm", "0", "--seconds", "1"])


def test_streams_are_held_open_until_they_are_let_go(made: Rig, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text('{"x": "[[stream=1 hold=1]]"}')
    before = made.served()["open"]
    options = ["--to", f"127.0.0.1:{made.port}", "--path", "/v1/messages", "--body", str(body), "--callers", "40"]
    with made.held(options) as seen:
        assert seen["open"] == 40
        assert made.served()["open"] >= before + 40
    assert made.served()["open"] <= before + 1


@pytest.mark.parametrize("protocol", [ANTHROPIC, OPENAI])
@pytest.mark.parametrize("stream", [False, True])
def test_bodies_are_json_of_the_size_they_claim(protocol: str, stream: bool) -> None:
    for size in (bench_gateway.SMALL, bench_gateway.BIG):
        body = bench_gateway.body(protocol, "bench", size, stream=stream)
        assert json.loads(body)["stream"] is stream
        assert size <= len(body) <= size * 1.02


def test_each_primitive_can_be_measured() -> None:
    """Not how long it takes: that what is measured is still what the product has."""
    timed = bench_primitives.measure(short=True)
    assert [one.primitive.name for one in timed] == [one.name for one in bench_primitives.PRIMITIVES]
    assert all(one.ns is not None and one.ns > 0 for one in timed)


def test_a_peer_has_nothing_left_to_fill_in() -> None:
    names = ("key", "port", "scratch", "spare", "tools", "upstream", "upstream_port")
    values = dict.fromkeys(names, "1")
    for peer in (DIRECT, OURS, *PEERS):
        texts = [*peer.argv, *peer.env.values(), *peer.files.values()]
        texts += [value for route in peer.routes.values() for value in route.headers.values()]
        for text in texts:
            assert not {f"<{name}>" for name in names} & set(filled(text, values).split('"'))


def test_an_aim_is_met_missed_or_not_measured() -> None:
    def target(peer: object, p50: float) -> bench_gateway.Target:
        one = bench_gateway.Target(peer=peer)  # type: ignore[arg-type]
        one.keep(ANTHROPIC, "small", {"p50_us": p50, "p99_us": p50})
        return one

    def verdict(ours: float) -> str:
        targets = [target(DIRECT, 20), target(OURS, ours), target(PEERS[0], 120)]
        report = bench_figures.Report(machine="", open_streams=1, primitives=(), rounds=1, seconds=1.0, targets=targets)
        return next(aim.verdict for aim in report.aims() if aim.what.startswith("2 KB added p50, Anthropic"))

    assert verdict(130.0) == "PASS"
    assert verdict(131.0) == "FAIL", "111 of 100 added microseconds"
    report = bench_figures.Report(machine="", open_streams=1, primitives=(), rounds=1, seconds=1.0, targets=())
    assert {aim.verdict for aim in report.aims()} == {"not measured"}


def descendants(marker: str) -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["environ"]) if (one.info["environ"] or {}).get("BENCH_TEST") == marker]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_it(sign: signal.Signals, tmp_path: Path) -> None:
    marker = str(tmp_path)
    env = {**os.environ, "COORDINATOR_BENCH_PYTHON": sys.executable, "BENCH_TEST": marker}
    argv = [sys.executable, str(TOP / "scripts" / "bench"), "gateway", "--only", "direct"]
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("round 1")
        wait_until(lambda: len(descendants(marker)) >= 3, what="itself, the janitor, the upstream")
        mine = descendants(marker)
        process.send_signal(sign)
        process.wait(timeout=60)  # it ends the part that runs first
        _, alive = psutil.wait_procs([one for one in mine if one.pid != process.pid], timeout=20)
    assert alive == []
