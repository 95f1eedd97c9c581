"""scripts/bench gateway: what a model call costs through ours, through its peers, and without any gateway, all in one run.

The gateway under test is alone on one core; the load generator and the mock upstream are on another. Targets take turns over
several rounds, each started anew, and of each figure the best round counts. A figure of calls that failed, or that never
reached the upstream, is no figure.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from scripts import bench_figures, bench_peers, bench_primitives
from scripts.bench_load import (
    CORES,
    TOOLS,
    NotMeasured,
    allow_open_files,
    answers,
    await_ready,
    await_rest,
    cores_said,
    resident_bytes,
    rig,
    server,
)
from scripts.bench_peers import ANTHROPIC, DIRECT, OPENAI, OURS, PEERS, PROTOCOL_HEADERS, filled
from scripts.bench_rig import TOP

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from scripts.bench_load import Rig
    from scripts.bench_peers import Peer

ROUNDS: Final = 3
CHUNKS: Final = 50
OPEN_STREAMS: Final = 1_000
WARM_S: Final = 0.3
SETTLE_S: Final = 0.5
"""From the first answered call to the look at the memory of an idle gateway."""
LEAST_CALLS: Final = 100
"""A slow gateway gets more time until so many calls have ended, within limits (load.c: PATIENCE)."""
WRONG_SHARE: Final = 0.01
"""Of the calls of one measurement that may fail before it is none."""
SMALL, BIG = 2 * 1024, 150 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    body_bytes: int
    callers: int
    seconds: float
    stream: bool = False


SCENARIOS: Final = (
    Scenario(name="small", body_bytes=SMALL, callers=1, seconds=1.0),
    Scenario(name="small_many", body_bytes=SMALL, callers=64, seconds=1.5),
    Scenario(name="big", body_bytes=BIG, callers=1, seconds=1.0),
    Scenario(name="big_many", body_bytes=BIG, callers=16, seconds=1.0),
    Scenario(name="stream", body_bytes=SMALL, callers=1, seconds=1.0, stream=True),
    Scenario(name="stream_many", body_bytes=SMALL, callers=16, seconds=1.5, stream=True),
    Scenario(name="big_stream", body_bytes=BIG, callers=1, seconds=1.0, stream=True),
)


# ---------------------------------------------------------------------------------------------------------------- bodies

_CODE: Final = (
    "def total(prices: dict[str, float], *, rate: float = 0.19) -> float:\n"
    '    """Sum of \\"prices\\" with tax."""\n'
    "    return sum(prices.values()) * (1 + rate)  # näherungsweise\n\n"
)


def body(protocol: str, model: str, size: int, *, stream: bool, hold: bool = False) -> bytes:
    """A call such as a coding agent sends: what it wants comes first, then a growing talk and tools, ``stream`` last. The
    nonce makes every call another one; what stands in brackets is for the mock upstream."""
    order = f"[[chunks={CHUNKS} stream={int(stream)} hold={int(hold)}]] call @@@NONCE@@@@@@@@. "
    messages = [{"role": "user", "content": order}]
    call: dict[str, object] = {"model": model, "messages": messages, "max_tokens": 1024, "stream": stream}
    if protocol == OPENAI and stream:
        call["stream_options"] = {"include_usage": True}
    if size > 4 * SMALL:
        call = {**call, "tools": [_tool(protocol, number) for number in range(size // 6_000)]}
        call["stream"] = call.pop("stream")
        while len(_packed(call)) + 2 * SMALL < size:
            role = "assistant" if messages[-1]["role"] == "user" else "user"
            messages.append({"role": role, "content": _CODE * 10})
        if messages[-1]["role"] == "assistant":
            messages.append({"role": "user", "content": "Go on. "})
    rest = size - len(_packed(call))
    messages[-1]["content"] += "x" * max(0, rest)
    return _packed(call)


def _packed(call: Mapping[str, object]) -> bytes:
    return json.dumps(call, separators=(",", ":"), ensure_ascii=False).encode()


def _tool(protocol: str, number: int) -> dict[str, object]:
    schema = {
        "type": "object",
        "properties": {
            f"argument_{i}": {"type": "string", "description": f"What argument {i} is for, in a sentence or two."}
            for i in range(8)
        },
        "required": ["argument_0"],
    }
    about = "Does one thing, and says at some length when to use it and when rather not to. " * 5
    if protocol == ANTHROPIC:
        return {"name": f"tool_{number}", "description": about, "input_schema": schema}
    return {"type": "function", "function": {"name": f"tool_{number}", "description": about, "parameters": schema}}


# --------------------------------------------------------------------------------------------------------------- targets


@dataclass(kw_only=True)
class Target:
    """A peer and what was measured of it."""

    peer: Peer
    figures: bench_figures.Table = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    gone: bool = False
    """It could not be started: it is not tried again."""

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            print(f"{self.peer.name}: {text}", file=sys.stderr, flush=True)

    def keep(self, protocol: str, scenario: str, figures: Mapping[str, float]) -> None:
        kept = self.figures.setdefault(protocol, {}).setdefault(scenario, {})
        for name, value in figures.items():
            best = max if name in bench_figures.MORE_IS_BETTER else min
            kept[name] = best(kept[name], value) if name in kept else value


@dataclass(frozen=True, kw_only=True)
class Running:
    """A started gateway (``process`` None: the upstream itself)."""

    port: int
    process: psutil.Process | None
    start_s: float
    values: Mapping[str, str]


@contextlib.contextmanager
def started(peer: Peer, rig: Rig, scratch: Path) -> Iterator[Running]:
    values = {
        "key": f"sk-{secrets.token_hex(32)}",
        "port": str(rig.crew.port()),
        "scratch": str(scratch),
        "spare": str(rig.crew.port()),
        "tools": str(TOOLS / peer.name),
        "upstream": f"http://127.0.0.1:{rig.port}",
        "upstream_port": str(rig.port),
    }
    if not peer.argv:
        yield Running(port=rig.port, process=None, start_s=0.0, values=values)
        return
    for name, text in peer.files.items():
        (scratch / name).write_text(filled(text, values), encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", str(scratch)], check=True)
    env = {"HOME": str(scratch), "LANG": "C.UTF-8", "PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(TOP)}
    env |= {name: filled(value, values) for name, value in peer.env.items()}
    log = scratch / "log"
    began = time.perf_counter()
    with server(rig.crew, [filled(word, values) for word in peer.argv], env, log, peer.says, peer.start_s) as found:
        process, said = found
        values |= said
        protocol, route = next(iter(peer.routes.items()))
        url = f"http://127.0.0.1:{values['port']}{route.path}"
        first = body(protocol, route.model, SMALL, stream=False)
        headers = headers_of(peer, protocol, values)
        await_ready(process, log, lambda: answers(url, headers, first), peer.start_s)
        took = time.perf_counter() - began
        yield Running(port=int(values["port"]), process=psutil.Process(process.pid), start_s=took, values=values)


def headers_of(peer: Peer, protocol: str, values: Mapping[str, str]) -> dict[str, str]:
    named = {**PROTOCOL_HEADERS[protocol], **peer.routes[protocol].headers}
    return {name: filled(value, values) for name, value in named.items()}


# ------------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, kw_only=True)
class Bench:
    rig: Rig
    folder: Path
    short: bool

    def options(self, target: Target, running: Running, protocol: str, scenario: Scenario, *, hold: bool) -> list[str]:
        """Of the load generator; its files are written beside."""
        route = target.peer.routes[protocol]
        body_file, header_file = self.folder / "body.json", self.folder / "headers"
        body_file.write_bytes(body(protocol, route.model, scenario.body_bytes, stream=scenario.stream, hold=hold))
        headers = headers_of(target.peer, protocol, running.values)
        header_file.write_text("".join(f"{name}: {value}\r\n" for name, value in headers.items()), encoding="utf-8")
        options = [
            *("--to", f"127.0.0.1:{running.port}", "--path", route.path),
            *("--body", str(body_file), "--headers", str(header_file), "--callers", str(scenario.callers)),
        ]
        return [*options, "--stream", "--tokens", str(CHUNKS)] if scenario.stream else options

    def measure(self, target: Target, running: Running, protocol: str, scenario: Scenario) -> None:
        seconds = 0.1 if self.short else scenario.seconds
        options = self.options(target, running, protocol, scenario, hold=False)
        options += ["--seconds", str(seconds), "--warm", str(0.05 if self.short else WARM_S)]
        options += ["--least", str(LEAST_CALLS)]
        where = f"{protocol}, {scenario.name}"
        if running.process is not None:
            await_rest(running.process)
        before = self.rig.served()
        try:
            seen, cpu_s = self.rig.run(options, running.process)
        except NotMeasured as reason:
            target.note(f"{where}: {reason}")
            return
        after = self.rig.served()
        asked = after["plain"] + after["streams"] - before["plain"] - before["streams"]
        if seen["errors"]:
            target.note(f"{where}: of {seen['calls']} calls wrong {seen['wrong']} {seen['example']}".strip())
        if seen["latency_us"] is None:
            target.note(f"{where}: {seen['calls']} calls ended in {seen['seconds']:.0f} s")
            return
        if seen["errors"] > WRONG_SHARE * seen["calls"]:
            return
        if asked < seen["calls"]:
            target.note(f"{where}: answered {seen['calls']} calls, of which {asked} reached the upstream")
            return
        figures = {"calls_per_s": seen["calls_per_s"], "p50_us": seen["latency_us"]["p50"]}
        figures["p99_us"] = seen["latency_us"]["p99"]
        if running.process is not None:
            figures["cpu_us"] = 1e6 * cpu_s / seen["calls"]
        if scenario.stream and seen["token_us"]:
            figures["chunks_per_s"] = seen["chunks_per_s"]
            figures["token_p50_us"] = seen["token_us"]["p50"]
            figures["token_p99_us"] = seen["token_us"]["p99"]
        target.keep(protocol, scenario.name, figures)

    def open_streams(self, target: Target, running: Running) -> None:
        """The memory with many streams open that nobody ends."""
        count = 50 if self.short else OPEN_STREAMS
        scenario = Scenario(name="open", body_bytes=SMALL, callers=count, seconds=0.0, stream=True)
        protocol = next(iter(target.peer.routes))
        if running.process is None:
            return
        try:
            with self.rig.held(self.options(target, running, protocol, scenario, hold=True)) as seen:
                time.sleep(SETTLE_S)
                if seen["open"] < count or self.rig.served()["open"] < count:
                    raise NotMeasured(f"{seen['open']} of {count} streams were open; wrong {seen['wrong']}")
                target.keep("memory", "open", {"bytes": resident_bytes(running.process)})
        except NotMeasured as reason:
            target.note(f"open streams: {reason}")

    def round(self, target: Target, *, last: bool) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as scratch:
            try:
                with started(target.peer, self.rig, Path(scratch)) as running:
                    if running.process is not None:
                        target.keep("start", "start", {"seconds": running.start_s})
                        time.sleep(SETTLE_S)
                        target.keep("memory", "idle", {"bytes": resident_bytes(running.process)})
                    for protocol in target.peer.routes:
                        for scenario in SCENARIOS:
                            self.measure(target, running, protocol, scenario)
                    if last:
                        self.open_streams(target, running)
            except NotMeasured as reason:
                target.gone = True
                target.note(f"not measured: {reason}")


def chosen(asked: argparse.Namespace) -> list[Target]:
    ours = bench_peers.ours(asked.ours) if asked.ours else OURS
    known = {peer.name: peer for peer in (DIRECT, ours, *PEERS)}
    names = asked.only or ([DIRECT.name, OURS.name] if asked.short else list(known))
    unknown = set(names) - known.keys()
    if unknown:
        raise SystemExit(f"--only knows {', '.join(known)} here, not {', '.join(sorted(unknown))}")
    return [Target(peer=known[name]) for name in known if name in {DIRECT.name, *names}]


def install(targets: Sequence[Target]) -> None:
    for target in targets:
        try:
            target.peer.install()
        except NotMeasured as reason:
            target.gone = True
            target.note(f"not installed: {reason}")


def run(asked: argparse.Namespace) -> int:
    """Exit code 1: ours was asked for and could not be measured. An aim that was missed is said in the table."""
    allow_open_files()
    targets = chosen(asked)
    install(targets)
    rounds = asked.rounds or (1 if asked.short else ROUNDS)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="coordinator-bench-") as folder, rig() as made:
        bench = Bench(rig=made, folder=Path(folder), short=asked.short)
        for number in range(rounds):
            for target in targets if number % 2 == 0 else reversed(targets):
                if not target.gone:
                    print(f"round {number + 1} of {rounds}: {target.peer.name}", file=sys.stderr, flush=True)
                    bench.round(target, last=number == rounds - 1)
    report = bench_figures.Report(
        machine=f"{len(CORES)} cores, {cores_said()}, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}",
        open_streams=50 if asked.short else OPEN_STREAMS,
        primitives=bench_primitives.measure(short=asked.short),
        rounds=rounds,
        seconds=time.perf_counter() - began,
        targets=targets,
    )
    print(json.dumps(report.as_json(), indent=1) if asked.json else report.as_markdown(judged=not asked.short))
    failed = [target for target in targets if target.peer.name == OURS.name and not target.figures]
    return 1 if failed else 0
