"""What must hold of a fleet after ``scripts/chaos``: invariants I1 to I8, looked for in files, refs and processes.

Owns one invariant: a check looks at what really is (git, the process table, the upstream's own count), and where it has to
take the ledger's word it compares it with something else. Each yields a sentence for each thing that is wrong, and returns
what it has looked at.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.chaos_fleet import PROVIDER_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from scripts.chaos_fleet import ChaosFleet

    Look = Generator[str, None, str]

TARGET = "coordinator/main"
TARGET_REF = f"refs/heads/{TARGET}"
_NAMED = frozenset({"blocked", "cancelled", "completed", "failed", "held", "pending"})
_GONE_S = 5.0
_COMMITS_RUN = 60
"""Commits of the target whose tests are run, the last among them; more would take longer than the chaos."""


def one_owner(fleet: ChaosFleet) -> Look:
    """I1"""
    for path in fleet.layout.homes.rglob("two-at-once"):
        yield f"two agents worked at one task at the same time: {', '.join(path.read_text().split())}"
    trailers = fleet.git("log", "--format=%(trailers:key=Coordinator-Attempt,valueonly)", f"main..{TARGET}").split()
    for task, times in Counter(trailer.partition("/")[0] for trailer in trailers).items():
        if times > 1:
            yield f"{task} landed {times} times"
    landed = {f"{task}/{generation}" for task, generation in _attempts(fleet, "ending = 'landed'")}
    if landed != set(trailers):
        yield f"the ledger and the target differ about what landed: {sorted(landed ^ set(trailers))[:6]}"
    return f"{len(trailers)} landings"


def named_states(fleet: ChaosFleet) -> Look:
    """I2"""
    known = {task: (state, reason) for task, state, reason in fleet.rows("SELECT id, state, reason FROM tasks")}
    for task in fleet.dropped:
        state, reason = known.get(task, ("lost", ""))
        if state not in _NAMED:
            yield f"{task} is {state}"
        elif not reason:
            yield f"{task} is {state} and nothing says why"
    for task, generation in _attempts(fleet, "claimed_at != '' AND ending = ''"):
        yield f"attempt {generation} of {task} has no end"
    for task, (state, reason) in known.items():
        if state == "failed" and fleet.dropped.get(task) in ("work", "uncommitted"):
            yield f"{task} did good work and is failed: {reason}"
    return f"{len(fleet.dropped)} tasks"


def nobody_left(fleet: ChaosFleet) -> Look:
    """I3"""
    deadline = time.monotonic() + _GONE_S
    while (found := _of_fleet(fleet)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid, what in found.items():
        yield f"pid {pid} still runs: {what}"
    return f"{sum(len(path.read_text().splitlines()) for path in fleet.layout.attempts.glob('*/*/pids'))} processes"


def nothing_lost(fleet: ChaosFleet) -> Look:
    """I4"""
    written = 0
    held = set(fleet.git("for-each-ref", "--format=%(refname)", "refs/coordinator/rescue").splitlines())
    for transcript in fleet.layout.attempts.glob("*/*/transcript.jsonl"):
        task, generation = transcript.parts[-3:-1]
        tree, ref = fleet.layout.worktree(task, int(generation)), f"refs/coordinator/rescue/{task}/{generation}"
        for name in _written(transcript, tree):
            written += 1
            kept = (tree / name).exists() or (ref in held and _has(fleet, f"{ref}:{name}"))
            if not kept and not any(_has(fleet, f"{one}:{name}") for one in held if one.startswith(f"{ref}-")):
                yield f"{name}, which attempt {task}/{generation} wrote, is in no ref and no tree"
    broken = subprocess.run(
        ["git", "-C", str(fleet.top), "fsck", "--no-dangling"], capture_output=True, text=True, check=False
    )
    if broken.returncode:
        yield f"git fsck: {broken.stderr.strip()[:300]}"
    return f"{written} files"


def green_target(fleet: ChaosFleet) -> Look:
    """I5"""
    commits = fleet.git("rev-list", "--first-parent", f"main..{TARGET}").splitlines()
    step = max(1, -(-len(commits) // _COMMITS_RUN))
    for commit in commits[::step]:
        with tempfile.TemporaryDirectory() as folder:
            files = subprocess.run(
                ["git", "-C", str(fleet.top), "archive", commit], check=True, capture_output=True
            ).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=files, check=True)
            argv = [sys.executable, "-m", "unittest", "-q"]
            if subprocess.run(argv, cwd=folder, capture_output=True, check=False).returncode:
                yield f"{commit[:10]} is on the target and its tests fail"
    return f"{len(commits[::step])} of {len(commits)} commits"


def honest_spend(fleet: ChaosFleet) -> Look:
    """I6"""
    one_call_usd = 0.001
    for task, generation, cost_usd in fleet.rows("SELECT task, generation, cost_usd FROM attempts"):
        if cost_usd > 0.05 + one_call_usd:
            yield f"attempt {task}/{generation} has cost {cost_usd:.4f} USD of 0.05"
    calls = [json.loads(data) for (data,) in fleet.rows("SELECT data FROM calls")]
    answered = [call for call in calls if call["ending"] == "served" and call["tries"] and not call["collapsed"]]
    told, sent = len(answered), sum(len(calls) for calls in fleet.upstream.calls.values())
    if told > sent:  # a call that was refused here, or shared another's answer, reached nobody
        yield f"{told} model calls were answered by the upstream, and {sent} reached it"
    spent = sum(call["cost_usd"] for call in calls)
    if spent > (sent + 0.5) * one_call_usd:
        yield f"{spent:.4f} USD are in the book, and {sent} calls cost {one_call_usd} at most"
    return f"{sent} model calls, {told} of them in the book"


def true_words(fleet: ChaosFleet) -> Look:
    """I7"""
    counted = Counter(fleet.states().values())
    status = fleet.ledger_json("status")
    if {name: many for name, many in status["tasks"].items() if many} != dict(counted):
        yield f"status says {status['tasks']}, the ledger {dict(counted)}"
    for task, state in sorted(fleet.states().items()):
        if state in ("failed", "held") and task not in fleet.ledger_json("explain", task)["sentence"]:
            yield f"explain does not explain {task}"
    yield from fleet.died
    text = fleet.log.read_text(errors="replace")
    if re.search(r"^Traceback ", text, re.MULTILINE):
        yield f"a traceback in {fleet.log}"
    return f"{sum(counted.values())} tasks, {len(text.splitlines())} lines of log"


def keys_kept(fleet: ChaosFleet) -> Look:
    """I8"""
    calls = [call for calls in list(fleet.upstream.calls.values()) for call in calls]
    if {call.headers.get("x-api-key") for call in calls} - {PROVIDER_KEY}:
        yield "a call reached the provider with another key than the house's"
    paths = [path for top in (fleet.layout.attempts, fleet.layout.homes) for path in top.rglob("*") if path.is_file()]
    for path in paths:
        if PROVIDER_KEY.encode() in path.read_bytes():
            yield f"the provider's key is in {path}"
    api = fleet.layout.api
    if api.exists() and stat.S_IMODE(api.stat().st_mode) != 0o600:
        yield "others may read api.json"
    return f"{len(calls)} calls, {len(paths)} files"


def tidy_house(fleet: ChaosFleet) -> Look:
    """and"""
    status = fleet.git("status", "--porcelain")
    if status:
        yield f"the user's checkout was touched: {status[:200]}"
    if fleet.git("rev-list", "--count", "main") != str(fleet.committed + 1):
        yield "the user's branch has other commits than the user made"
    for what, found in (
        ("base refs", fleet.git("for-each-ref", "--format=%(refname)", "refs/coordinator/base").split()),
        ("ready entries", sorted(os.listdir(fleet.layout.ready))),
    ):
        if found:
            yield f"{what} are left: {found[:5]}"
    return f"{fleet.committed} commits of theirs"


CHECKS: dict[str, Callable[[ChaosFleet], Look]] = {
    "I1 one owner at a time": one_owner,
    "I2 every task in a named state": named_states,
    "I3 nothing outlives its attempt": nobody_left,
    "I4 every byte is kept": nothing_lost,
    "I5 the target is green": green_target,
    "I6 spend is what was called": honest_spend,
    "I7 status tells the truth": true_words,
    "I8 keys are kept": keys_kept,
    "and the user's repository is as they left it": tidy_house,
}


def look(fleet: ChaosFleet) -> Iterator[tuple[str, list[str], str]]:
    """Name, what is wrong, what was looked at; one check after the other."""
    for name, check in CHECKS.items():
        wrong, going_on = [], check(fleet)
        try:
            while True:
                wrong.append(next(going_on))
        except StopIteration as end:
            yield name, wrong, end.value


def _attempts(fleet: ChaosFleet, where: str) -> list[tuple[Any, ...]]:
    return fleet.rows(f"SELECT task, generation FROM attempts WHERE {where}")  # noqa: S608 - our own words


def _has(fleet: ChaosFleet, name: str) -> bool:
    argv = ["git", "-C", str(fleet.top), "cat-file", "-e", name]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _written(transcript: Path, tree: Path) -> Iterator[str]:
    """Files that the attempt was told it had written, below its tree."""
    for line in transcript.read_bytes().splitlines():
        if b'"tool_result"' not in line:
            continue
        try:
            blocks = json.loads(line)["message"]["content"]
        except (ValueError, KeyError, TypeError):
            continue
        for block in blocks if isinstance(blocks, list) else ():
            text = block.get("content") if isinstance(block, dict) else None
            if isinstance(text, str) and text.startswith("File created successfully at: "):
                yield Path(text.partition(": ")[2]).relative_to(tree).as_posix()


def _of_fleet(fleet: ChaosFleet) -> dict[int, str]:
    """Processes that carry the fleet's folder in their environment or were noted as an attempt's."""
    mark, found = os.fsencode(f"COORDINATOR_ATTEMPT={fleet.layout.attempts}"), dict.fromkeys(fleet.living(), "noted")
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                environment = Path(f"/proc/{name}/environ").read_bytes()
                words = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if mark in environment:
                found[int(name)] = words[:100]
    return found
