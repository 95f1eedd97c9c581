"""scripts/bench dedup: how many of a fleet's model calls are spared because another agent asks the same at the same time.

Real Claude Code, a real daemon (or gateway), a local model that is sampled anew for each call that reaches it (``bench_model``).
What counts is the gateway's own book; what reached the model, the model counts as well, and the two must agree.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from coordinator.domain.attempt import Order
from coordinator.fleet.driver_claude import ClaudeDriver
from scripts import bench_jobs
from scripts.bench_load import Crew, NotMeasured, await_ready, ended
from scripts.bench_model import Model
from scripts.bench_rig import TOP, git

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from scripts.bench_model import Job

AGENTS: Final = 24
MODES: Final = ("strict", "loose")
KINDS: Final = ("raw", "strict", "loose", "retry")
TOOLS: Final = Path(os.environ.get("COORDINATOR_TOOLS") or TOP / ".tools")
PATIENCE_S: Final = 900.0
STOP_S: Final = 10.0
KEY: Final = "key-of-the-bench"
SETTINGS: Final = """\
[fleet]
agents = {agents}
default_role = "claude"
ramp_s = 0
[gate]
commands = ["true"]
[gateway]
dedup = "{mode}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One fleet's work: where it is done, who does it, what the model is."""

    agents: int
    crew: Crew
    folder: Path
    mode: str
    model: Model
    path: str

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """What it prints is in a log of its name."""
        with (self.folder / f"{name}.log").open("wb") as log:
            return self.crew.start(argv, None, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def environment(self) -> dict[str, str]:
        kept = ("HOME", "LANG", "TMPDIR", "USER")
        env = {name: os.environ[name] for name in kept if name in os.environ}
        keys = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": self.model.url}
        return {**env, **keys, "PATH": self.path, "NO_COLOR": "1", "PYTHONPATH": str(TOP)}

    def command(self, top: Path, *words: str) -> list[str]:
        return [sys.executable, "-m", "coordinator", "-C", str(top), *words]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a run came to. ``reached`` is the model's count, the rest the book's."""

    calls: int = 0
    reached: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0
    saved_usd: float = 0.0
    took_s: float = 0.0

    @property
    def spared(self) -> float:
        return 1 - self.reached / self.calls if self.calls else 0.0


# -- the ways in which a fleet works -----------------------------------------------------------------------------------


def by_daemon(run: Run, jobs: Sequence[Job]) -> Path:
    """Each job is a task of a daemon's. Gives the place whose book tells of the calls."""
    top = run.folder / "shop"
    top.mkdir()
    git(top, "init", "--quiet", "--initial-branch=main")
    bench_jobs.write_shop(top, run.agents)
    (top / "coordinator.toml").write_text(SETTINGS.format(agents=run.agents, mode=run.mode), encoding="utf-8")
    (top / "tasks").mkdir()
    for number, job in enumerate(jobs):
        task = f'[[tasks]]\nid = "job-{number:02d}"\nprompt = {json.dumps(job.prompt)}\nmax_attempts = 1\n'
        (top / "tasks" / f"{number:02d}.toml").write_text(task, encoding="utf-8")
    daemon = run.start("daemon", run.command(top, "run", "--until-idle"), run.environment())
    try:
        _wait([daemon])
    finally:
        if not ended(daemon):  # told twice, it stops its agents at once
            daemon.terminate()
            daemon.terminate()
            time.sleep(STOP_S)
    return top


def in_containers(run: Run, jobs: Sequence[Job], *, branches: bool) -> Path:
    """Each agent sees its clone and its home under the same names as all others, as in containers; a gateway stands alone.
    ``branches``: each is on one of its own."""
    top, seen = run.folder / "gateway", run.folder / "work"
    for folder in (top, seen):
        folder.mkdir()
    (top / "coordinator.toml").write_text(f'[gateway]\ndedup = "{run.mode}"\n', encoding="utf-8")
    source = run.folder / "shop"
    source.mkdir()
    git(source, "init", "--quiet", "--initial-branch=main")
    bench_jobs.write_shop(source, run.agents)
    names = [f"agent-{number:02d}" for number in range(run.agents)]
    for name in names:
        (run.folder / name / "home").mkdir(parents=True)
        who = ("--config", "user.name=Ada", "--config", "user.email=ada@example.org")
        git(source, "clone", "--quiet", *who, str(source), str(run.folder / name / "tree"))
        if branches:
            git(run.folder / name / "tree", "switch", "--quiet", "--create", name)
    words = [word for name in names for word in ("--name", name)]
    gateway = run.start("gateway", run.command(top, "--json", "gateway", *words), run.environment())
    said = run.folder / "gateway.log"
    await_ready(gateway, said, lambda: b"\n" in said.read_bytes(), 60.0)
    door = json.loads(said.read_text(encoding="utf-8").splitlines()[0])
    pairs = zip(names, jobs, strict=True)
    _wait([_in_container(run, name, job, seen, door["url"], door["keys"][name]) for name, job in pairs])
    time.sleep(1.0)  # the book is written within half a second
    return top


def _in_container(run: Run, name: str, job: Job, seen: Path, url: str, key: str) -> subprocess.Popen[bytes]:
    """The program as the coordinator starts it, but with what it says of git by itself."""
    order = Order(
        attempt="", base="", branch="", brief="", command=("claude",), gateway=url, generation=1, home=str(seen / "home"),
        key=key, repository="", session=str(uuid.uuid4()), task=name, worktree=str(seen / "tree"),
    )  # fmt: skip
    launch = ClaudeDriver().launch(order, python=sys.executable)
    env = {"PATH": run.path, **launch.env}
    del env["CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS"]
    (run.folder / name / "prompt").write_text(job.prompt, encoding="utf-8")
    enter = f'mount --bind "{run.folder / name}" "{seen}" && cd "{seen}/tree" && exec "$@" <../prompt'
    argv = ["unshare", "--mount", "sh", "-c", enter, "sh", *launch.argv]
    return run.start(name, argv, env)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended by themselves. Raises ``NotMeasured``."""
    deadline = time.perf_counter() + PATIENCE_S
    while not all(ended(process) for process in processes):
        if time.perf_counter() > deadline:
            raise NotMeasured(f"the fleet was at work after {PATIENCE_S:.0f} s")
        time.sleep(0.05)


# -- scenarios -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    title: str
    jobs: Callable[[int], list[Job]]
    work: Callable[[Run, Sequence[Job]], Path]
    reasons: bool = False
    contained: bool = False


def _containers(run: Run, jobs: Sequence[Job]) -> Path:
    return in_containers(run, jobs, branches=False)


def _branches(run: Run, jobs: Sequence[Job]) -> Path:
    return in_containers(run, jobs, branches=True)


SCENARIOS: Final = {
    "raced": Scenario(title="the same task, raced by all", jobs=bench_jobs.raced, work=by_daemon),
    "reasoned": Scenario(title="raced, answers reason", jobs=bench_jobs.raced, work=by_daemon, reasons=True),
    "similar": Scenario(title="similar tasks", jobs=bench_jobs.similar, work=by_daemon),
    "unrelated": Scenario(title="unrelated tasks", jobs=bench_jobs.unrelated, work=by_daemon),
    "containers": Scenario(
        title="raced in containers, answers reason",
        jobs=bench_jobs.raced,
        work=_containers,
        contained=True,
        reasons=True,
    ),
    "branches": Scenario(
        title="raced in containers, a branch each", jobs=bench_jobs.raced, work=_branches, contained=True
    ),
}


def measure(scenario: Scenario, mode: str, *, agents: int, first_s: float, rest_s: float, path: str) -> Tally:
    """Raises ``NotMeasured``."""
    jobs = scenario.jobs(agents)
    with (
        tempfile.TemporaryDirectory(prefix="coordinator-bench-", ignore_cleanup_errors=True) as folder,
        Model(jobs=jobs, first_s=first_s, rest_s=rest_s, reasons=scenario.reasons) as model,
        Crew() as crew,
    ):
        began = time.perf_counter()
        run = Run(agents=agents, crew=crew, folder=Path(folder).resolve(), mode=mode, model=model, path=path)
        top = scenario.work(run, jobs)
        tally = _tally(run, top)
        tally.took_s = time.perf_counter() - began
        if model.strangers or not tally.calls:
            said = "\n".join(log.read_text(errors="replace")[-2000:] for log in sorted(run.folder.glob("*.log"))[-2:])
            raise NotMeasured(f"{model.strangers} of {model.calls} calls were none of the bench's\n{said}")
    return tally


def _tally(run: Run, top: Path) -> Tally:
    argv = run.command(top, "--json", "calls", "-n", "10000")
    said = subprocess.run(argv, env=run.environment(), check=True, capture_output=True, text=True).stdout
    tally = Tally(reached=run.model.calls)
    told = 0
    for call in map(json.loads, said.splitlines()):
        tally.calls += 1
        told += call["tries"]
        tally.cost_usd += call["cost_usd"]
        tally.saved_usd += call["saved_usd"]
        if call["collapsed"]:
            tally.kinds[call["collapsed"]] += 1
    if told != tally.reached:
        raise NotMeasured(f"the book has {told} calls that went up, the model was asked {tally.reached} times")
    return tally


# -- the table -----------------------------------------------------------------------------------------------------------


def run(asked: argparse.Namespace) -> int:
    agents, first_s, rest_s = (3, 0.3, 0.3) if asked.short else (AGENTS, 1.0, 2.0)
    path = os.pathsep.join((str(TOOLS / "node_modules" / ".bin"), os.environ["PATH"], str(TOOLS / "node" / "bin")))
    program = shutil.which("claude", path=path)
    if program is None:
        print("claude is not installed: scripts/agent-clis claude", file=sys.stderr)
        return 3
    os.nice(10)
    version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout.split()[0]
    memory = psutil.virtual_memory().total / 2**30
    print(f"$ {' '.join(['scripts/bench', *sys.argv[1:]])}")
    print(f"{os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    print(f"{agents} agents of Claude Code {version}, a model that takes {first_s + rest_s:g} s for an answer\n")
    print(f"| {'scenario':<35} | mode   | calls | to model | {' | '.join(f'{kind:>6}' for kind in KINDS)} "
          "| spared |     cost |    saved | seconds |")  # fmt: skip
    print(
        f"|{'-' * 37}|--------|------:|---------:|{'-------:|' * len(KINDS)}-------:|---------:|---------:|--------:|"
    )
    for name in asked.only or SCENARIOS:
        scenario = SCENARIOS[name]
        if scenario.contained and (os.geteuid() != 0 or not shutil.which("unshare")):
            print(f"| {scenario.title:<35} | not measured: it takes root and unshare |", flush=True)
            continue
        for mode in MODES:
            tally = measure(scenario, mode, agents=agents, first_s=first_s, rest_s=rest_s, path=path)
            kinds = " | ".join(f"{tally.kinds[kind]:>6}" for kind in KINDS)
            print(
                f"| {scenario.title:<35} | {mode:<6} | {tally.calls:>5} | {tally.reached:>8} | {kinds} | {tally.spared:>6.1%} "
                f"| ${tally.cost_usd:>7.2f} | ${tally.saved_usd:>7.2f} | {tally.took_s:>7.0f} |",
                flush=True,
            )
    return 0
