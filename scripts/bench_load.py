"""What the benchmark of the gateway drives it with: a mock upstream and a load generator (C, in gateway_load/), and processes
pinned to one core each. Owns one invariant: whatever was started here is stopped in the end, even when this process is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import psutil
from filelock import FileLock

from scripts.bench_rig import TOP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TOOLS: Final = Path(os.environ.get("COORDINATOR_TOOLS") or TOP / ".tools") / "bench"
SOURCES: Final = TOP / "scripts" / "gateway_load"
FLAGS: Final = ("-O2", "-std=c11", "-Wall", "-Wextra")
COMPILER_WHEEL: Final = "ziglang==0.17.0"
OPEN_FILES: Final = 20_000
PORTS: Final = range(20_000, 32_000)

CORES: Final[Sequence[int]] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ()
LOAD_CORE: Final = CORES[0] if CORES else None
GATEWAY_CORE: Final = CORES[-1] if CORES else None


def cores_said() -> str:
    if not CORES:
        return "nothing pinned"
    shared = " (the same: figures are of little worth)" if LOAD_CORE == GATEWAY_CORE else ""
    return f"gateway on {GATEWAY_CORE}, load and upstream on {LOAD_CORE}{shared}"


Figures = dict[str, Any]
"""What load.c reports."""


class NotMeasured(Exception):
    """One sentence: why."""


# ------------------------------------------------------------------------------------------------------------- processes

_JANITOR: Final = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    group = int(line)
    groups.add(group) if group > 0 else groups.discard(-group)
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


@dataclass(kw_only=True)
class Crew:
    """Every process that is started, each the leader of a group. A signal that would end this process unwinds it instead, and
    a janitor ends what a killed benchmark leaves."""

    before: dict[int, Any] = field(default_factory=dict)
    """What signals did before."""
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ports: set[int] = field(default_factory=set)
    janitor: subprocess.Popen[str] | None = None
    starting: bool = False
    """A signal waits until what is being started is known here."""
    told: int = 0
    """The signal that came; 0: none."""

    def __enter__(self) -> Self:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._unwind)
        argv = [sys.executable, "-c", _JANITOR]
        self.janitor = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True, start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        for process in tuple(self.running):
            self.stop(process)
        if self.janitor is not None and self.janitor.stdin is not None:
            self.janitor.stdin.close()
            self.janitor.wait()
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self._end_when_told()

    def port(self) -> int:
        """A port of loopback that nobody has now, that was not given out before, and that no outgoing connection gets."""
        while True:
            port = secrets.choice(PORTS)
            if port in self.ports:
                continue
            self.ports.add(port)
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port

    def start(self, argv: Sequence[str], core: int | None, **options: Any) -> subprocess.Popen[bytes]:
        self._end_when_told()
        self.starting = True
        try:
            with _pinned(core):  # a child has its parent's cores from its first instruction on
                process = subprocess.Popen(argv, start_new_session=True, **options)
            self.running.append(process)
            self._tell(process.pid)
        finally:
            self.starting = False
        self._end_when_told()
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """A moment to end by itself, then not. Its group is signalled while the leader, dead or alive, holds the number."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, sign)
            deadline = time.perf_counter() + 2.0
            while not ended(process) and time.perf_counter() < deadline:
                time.sleep(0.005)
        self.running.remove(process)
        self._tell(-process.pid)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _unwind(self, number: int, _frame: object) -> None:
        if not self.told:  # a second signal does not disturb the unwinding
            self.told = number
            if not self.starting:
                self._end_when_told()

    def _end_when_told(self) -> None:
        """Asked again at each start, for what is raised while an object is being freed is lost."""
        if self.told:
            raise SystemExit(128 + self.told)

    def _tell(self, group: int) -> None:
        if self.janitor is not None and self.janitor.stdin is not None:
            self.janitor.stdin.write(f"{group}\n")
            self.janitor.stdin.flush()


def ended(process: subprocess.Popen[bytes], *, wait: bool = False) -> bool:
    """Without reaping it: as long as it is a zombie nobody else gets its number."""
    options = os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG)
    return os.waitid(os.P_PID, process.pid, options) is not None


@contextlib.contextmanager
def _pinned(core: int | None) -> Iterator[None]:
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def allow_open_files() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def cpu_s(process: psutil.Process) -> float:
    """Processor seconds of a process and its children so far."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def resident_bytes(process: psutil.Process) -> int:
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total


def await_rest(process: psutil.Process, most_s: float = 5.0) -> None:
    """Until it uses next to no processor any more: what one measurement left behind is not the next one's."""
    deadline, used = time.perf_counter() + most_s, cpu_s(process)
    while time.perf_counter() < deadline:
        time.sleep(0.05)
        before, used = used, cpu_s(process)
        if used - before <= 0.01:
            return


# -------------------------------------------------------------------------------------------------------------- programs


def make_venv(folder: Path, *requirements: str, env: Mapping[str, str] | None = None) -> None:
    """An environment of its own in ``folder``; nothing happens when it holds just that. Raises ``NotMeasured``.

    Several may ask for it at once: one makes it, the others wait.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=900):
        _fill_venv(folder, requirements, env)


def _fill_venv(folder: Path, requirements: Sequence[str], env: Mapping[str, str] | None) -> None:
    stamp = folder / "installed"
    wanted = "\n".join([sys.version, *requirements])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print(f"installing {', '.join(requirements)} into {folder}", file=sys.stderr, flush=True)
    stamp.unlink(missing_ok=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run_quietly([sys.executable, "-m", "venv", "--clear", str(folder)])
    run_quietly([*pip, *requirements], env=env)
    stamp.write_text(wanted, encoding="utf-8")


def run_quietly(argv: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    """Raises ``NotMeasured`` with the last line of what the command said."""
    try:
        done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMeasured(f"{Path(argv[0]).name} did not run: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no reason was given").splitlines()[-1]
        raise NotMeasured(f"`{' '.join(map(str, argv[-4:]))}` failed: {said}")


def compiler() -> list[str]:
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        if shutil.which(name):
            return [name]
    try:
        make_venv(TOOLS / "ziglang", COMPILER_WHEEL)
    except NotMeasured as reason:
        raise SystemExit(f"the benchmark of the gateway needs a C compiler (cc): {reason}") from reason
    return [str(TOOLS / "ziglang" / "bin" / "python"), "-m", "ziglang", "cc"]


def build() -> dict[str, str]:
    """Paths of the two programs, compiled anew when their source is younger. Linux only (epoll)."""
    if not sys.platform.startswith("linux"):
        raise SystemExit("the benchmark of the gateway runs on Linux only: its load generator is made on epoll")
    TOOLS.mkdir(parents=True, exist_ok=True)
    programs = {}
    for source in sorted(SOURCES.glob("*.c")):
        program = TOOLS / source.stem
        if not program.is_file() or program.stat().st_mtime < source.stat().st_mtime:
            made = program.with_suffix(f".{os.getpid()}")
            done = subprocess.run(
                [*compiler(), *FLAGS, "-o", str(made), str(source)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{source.name} cannot be compiled:\n{done.stderr}")
            made.replace(program)
        programs[source.stem] = str(program)
    return programs


# --------------------------------------------------------------------------------------------------------- load, upstream


@dataclass(kw_only=True)
class Rig:
    """The mock upstream and the load generator, both on the load's core."""

    crew: Crew
    load: str
    port: int
    upstream: subprocess.Popen[bytes]

    def served(self) -> Figures:
        """What the upstream has answered so far."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=10) as answer:
                figures: Figures = json.load(answer)
        except OSError as error:
            self.crew.stop(self.upstream)
            raise SystemExit(f"the mock upstream is gone (exit code {self.upstream.returncode}): {error}") from error
        return figures

    def run(
        self, options: Sequence[str], watched: psutil.Process | None = None, timeout_s: float = 90.0
    ) -> tuple[Figures, float]:
        """What the load generator measured, and the processor seconds of ``watched`` from the end of its warm-up on."""
        process = self.crew.start(
            [self.load, *options], LOAD_CORE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            with _limit(process, timeout_s):
                assert process.stdout is not None
                assert process.stderr is not None
                process.stdout.readline()
                before = cpu_s(watched) if watched else 0.0
                last = process.stdout.readline()
                after = cpu_s(watched) if watched else 0.0
                if not last:
                    raise NotMeasured(process.stderr.read().decode().strip() or "the load generator said nothing")
                ended(process, wait=True)  # it lets the answers under way come in
            return json.loads(last), after - before
        except psutil.NoSuchProcess as error:
            raise NotMeasured("it ended by itself under load") from error
        finally:
            self.crew.stop(process)

    @contextlib.contextmanager
    def held(self, options: Sequence[str]) -> Iterator[Figures]:
        """Streams that stay open for the time of the block."""
        argv = [self.load, *options, "--hold"]
        process = self.crew.start(argv, LOAD_CORE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            with _limit(process, 120.0):
                assert process.stdout is not None
                line = process.stdout.readline()
            if not line:
                raise NotMeasured("the load generator said nothing")
            yield json.loads(line)
        finally:
            self.crew.stop(process)


@contextlib.contextmanager
def _limit(process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """Kills a program that says nothing for too long, so that reading from it ends."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    programs = build()
    with _pinned(LOAD_CORE), Crew() as crew:  # this process as well: the gateway has its core for itself
        upstream = crew.start([programs["upstream"]], LOAD_CORE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert upstream.stdout is not None
        port = int(upstream.stdout.readline())
        yield Rig(crew=crew, load=programs["load"], port=port, upstream=upstream)


@contextlib.contextmanager
def server(
    crew: Crew, argv: Sequence[str], env: Mapping[str, str], log: Path, says: Mapping[str, str], timeout_s: float
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A gateway on its core. ``says``: patterns of what it must print before it can be asked, by the name of the finding."""
    with log.open("wb") as output:
        process = crew.start(
            argv, GATEWAY_CORE, env=dict(env), cwd=log.parent, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        found: dict[str, str] = {}
        await_ready(process, log, lambda: _found(log, says, found), timeout_s)
        yield process, found
    finally:
        crew.stop(process)


def _found(log: Path, says: Mapping[str, str], found: dict[str, str]) -> bool:
    if says:
        text = log.read_text(encoding="utf-8", errors="replace")
        found |= {name: match[1] for name, pattern in says.items() if (match := re.search(pattern, text))}
    return found.keys() == says.keys()


def await_ready(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool], timeout_s: float) -> None:
    """Asks again and again; raises ``NotMeasured`` with the end of its log when it died or is too slow."""
    deadline = time.perf_counter() + timeout_s
    while not ready():
        dead = ended(process)
        if dead or time.perf_counter() > deadline:
            text = log.read_text(encoding="utf-8", errors="replace").strip()
            last = text.splitlines()[-1].strip()[:300] if text else "it said nothing"
            raise NotMeasured(f"{'it ended' if dead else f'not ready after {timeout_s:.0f} s'}: {last}")
        time.sleep(0.005)


def answers(url: str, headers: Mapping[str, str], body: bytes) -> bool:
    request = urllib.request.Request(url, body, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bool(answer.status == 200 and answer.read())
    except (OSError, urllib.error.HTTPError):
        return False
