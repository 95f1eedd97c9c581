"""The benchmark of shared calls: its model is one that is sampled and sends a bill, and its table adds up."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from scripts import bench_jobs
from scripts.bench_model import Model
from tests.house.source import TOP
from tests.real.programs import path_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.bench_model import Job


def asked(prompt: str, *said: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}]
    for text in said:
        turns += [{"role": "assistant", "content": text}, {"role": "user", "content": "done"}]
    return {"model": "m", "messages": turns, "system": [{"type": "text", "text": "Be good. " * 100}], "tools": []}


def blocks(model: Model, request: dict[str, Any]) -> list[tuple[str, str]]:
    """Kind and words of each block of the next answer."""
    events = list(model.answer(request))
    begun = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    pieces = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    return [(kind, str(list(piece.values())[1])) for kind, piece in zip(begun, pieces, strict=True)]


@pytest.fixture
def job() -> Job:
    (made,) = bench_jobs.raced(1)
    return made


@pytest.fixture
def model(job: Job) -> Iterator[Model]:
    with Model(jobs=[job], first_s=0.0, rest_s=0.0) as running:
        yield running


def test_the_model_never_says_the_same_twice_and_does_what_the_job_wants(model: Model, job: Job) -> None:
    one, other = blocks(model, asked(job.prompt)), blocks(model, asked(job.prompt))
    assert [kind for kind, _ in one] == ["text", "tool_use"]
    assert one[0] != other[0]
    assert one[1] == other[1] == ("tool_use", json.dumps(job.steps[0][0][1]))
    assert [kind for kind, _ in blocks(model, asked(job.prompt, *"abcdef"))] == ["text"], "the last word"
    assert (model.calls, model.strangers) == (3, 0)
    blocks(model, asked("Something else"))
    assert model.strangers == 1


def test_the_model_bills_what_a_providers_cache_would_have(model: Model, job: Job) -> None:
    blocks(model, asked(job.prompt))
    blocks(model, asked(job.prompt, "a"))
    blocks(model, asked(job.prompt, "b"))
    first, second, third = model.usage
    assert first.cache_read_tokens == 0
    assert second.cache_read_tokens == third.cache_read_tokens == first.cache_write_tokens > 200
    assert 0 < second.cache_write_tokens < 40


def test_jobs_are_what_their_scenario_says() -> None:
    assert len({job.prompt for job in bench_jobs.raced(24)}) == 1
    for made in (bench_jobs.similar(24), bench_jobs.unrelated(24)):
        prompts = [job.prompt for job in made]
        assert len(set(prompts)) == 24
        assert not [one for one in prompts for other in prompts if one != other and one in other]
    assert len({len(job.steps) for job in bench_jobs.unrelated(24)}) > 1


@pytest.mark.parametrize("scenario", ["raced", "unrelated", "containers", "branches"])
def test_it_measures_real_agents(scenario: str) -> None:
    path_with("claude")
    env = {**os.environ, "COORDINATOR_BENCH_PYTHON": sys.executable}
    argv = [sys.executable, TOP / "scripts" / "bench", "dedup", "--short", "--only", scenario]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in done.stdout.splitlines() if "| " in line][1:]
    if scenario in ("containers", "branches") and os.geteuid() != 0:
        assert rows == [["not measured: it takes root and unshare"]]
        return
    assert [row[0] for row in rows] == ["strict", "loose"]
    for mode, calls, reached, raw, strict, loose, retry, spared, cost, saved, _ in rows:
        shared = int(raw) + int(strict) + int(loose) + int(retry)
        assert int(calls) == int(reached) + shared >= 21
        assert float(spared.rstrip("%")) == pytest.approx(100 * shared / int(calls), abs=0.1)
        assert _usd(cost) > 0
        assert (_usd(saved) > 0) is (shared > 0)
        alike = scenario == "containers" or (scenario, mode) == ("branches", "loose")
        assert shared > 0 if alike else scenario == "raced" or shared == 0


def _usd(cell: str) -> float:
    return float(re.sub(r"[$ ]", "", cell))
