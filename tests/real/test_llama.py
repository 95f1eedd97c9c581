"""scripts/llama: a real llama.cpp server behind the gateway, and what the script says when there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import CANNOT
from tests.house.source import TOP

pytestmark = pytest.mark.xdist_group("llama")
"""One after the other: the first of them installs what both want."""


def talk(*options: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COORDINATOR_BENCH_PYTHON": sys.executable}
    argv = [sys.executable, TOP / "scripts" / "llama", *options]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode == 3 and not options:
        pytest.skip(f"{CANNOT}{done.stderr.strip().splitlines()[-1]}")
    return done


def test_the_official_clients_talk_to_a_real_server() -> None:
    done = talk()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "all well"
    for client in ("anthropic", "openai"):
        for talked in ("plain", "stream", "tools", "cancel"):
            assert sum(f"{client}: {talked} " in line and " ok " in line for line in lines) == 2, talked
    assert any(line.startswith("book ") and "'left': 4" in line for line in lines)


def test_a_program_that_is_no_server_is_named() -> None:
    done = talk("--server", "/bin/false")
    assert done.returncode == 3
    assert "no llama.cpp server can be had here: it ended" in done.stderr
