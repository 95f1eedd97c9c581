from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path

import pytest

from coordinator.checks.shell import ShellCheck, run_command
from coordinator.checks.tool import Surroundings, find_tool, read_tail, search_path, tool_environment
from coordinator.domain.check import BrokenBy, CheckOutcome, CheckStatus
from coordinator.domain.settings import GateSettings


async def run(command: str, tree: Path, *, gate: GateSettings | None = None) -> CheckOutcome:
    scratch = Path(tempfile.mkdtemp(dir=tree.parent))
    surroundings = Surroundings(gate=gate or GateSettings(memory_bytes=0, timeout_s=30.0))
    return await run_command(command, name="it", tree=tree, scratch=scratch, surroundings=surroundings)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


async def test_passed_failed_and_the_last_output(tree: Path) -> None:
    assert (await run("true", tree)).status is CheckStatus.PASSED
    outcome = await run("echo first; echo last >&2; exit 3", tree)
    assert outcome.status is CheckStatus.FAILED
    assert outcome.broken_by is None
    assert "exit 3" in outcome.reason
    assert outcome.excerpt == "first\nlast\n"


@pytest.mark.parametrize(
    ("command", "broken_by"),
    [
        ("no-such-program", BrokenBy.ENVIRONMENT),
        ("/no/such/program", BrokenBy.ENVIRONMENT),
        ("./no-such-script", BrokenBy.TREE),
        ("./not-executable", BrokenBy.TREE),
        ("true && scripts/absent --now", BrokenBy.TREE),
        ("kill -KILL $$", BrokenBy.ENVIRONMENT),
        ("kill -SEGV $$", BrokenBy.TREE),
        ("sh -c 'kill -KILL $$'; exit $?", BrokenBy.TREE),
        ("sh -c 'kill -TERM $$'; exit $?", BrokenBy.TREE),
    ],
)
async def test_what_could_not_run_is_broken(tree: Path, command: str, broken_by: BrokenBy) -> None:
    (tree / "not-executable").write_text("exit 0\n")
    outcome = await run(command, tree)
    assert (outcome.status, outcome.broken_by) == (CheckStatus.BROKEN, broken_by), outcome
    assert outcome.reason


async def test_limits(tree: Path) -> None:
    gate = GateSettings(timeout_s=0.3, output_bytes=10_000, memory_bytes=0)
    assert (await run("sleep 30", tree, gate=gate)).broken_by is BrokenBy.TIME
    gate = GateSettings(timeout_s=30.0, output_bytes=10_000, memory_bytes=0)
    outcome = await run("while :; do echo endless endless endless; done", tree, gate=gate)
    assert outcome.broken_by is BrokenBy.TREE
    assert len(outcome.excerpt) <= 4096


async def test_the_environment_is_ours_to_give(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "1")
    monkeypatch.setenv("GIT_DIR", "/elsewhere")
    monkeypatch.setenv("LET_THROUGH", "yes")
    monkeypatch.setenv("PATH", f".:{tree}/bin:/usr/bin:/bin")
    env = tool_environment(tree, scratch=tmp_path, let_through=("LET_THROUGH", "GIT_DIR"))
    assert "SECRET_TOKEN" not in env
    assert "GIT_DIR" not in env
    assert env["LET_THROUGH"] == "yes"
    assert env["PATH"].startswith("/usr/bin:/bin:")
    assert env["PYTHONPATH"].split(":") == [f"{tree}/src", str(tree)]
    assert (await run("ruff --version", tree)).status is CheckStatus.PASSED  # our own folder is on PATH, last


def test_the_way_to_the_network_is_passed_on_but_no_password(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ours.pem")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("HTTPS_PROXY", "http://ada:secret@proxy.example:3128")
    env = tool_environment(tree, scratch=tree)
    assert (env["SSL_CERT_FILE"], env["https_proxy"]) == ("/etc/ours.pem", "http://proxy.example:3128")
    assert "HTTPS_PROXY" not in env
    env = tool_environment(tree, scratch=tree, let_through=("HTTPS_PROXY",))
    assert env["HTTPS_PROXY"] == "http://ada:secret@proxy.example:3128"


def test_a_program_of_the_tree_is_never_taken(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = tree / "bin" / "ruff"
    planted.parent.mkdir()
    planted.write_text("#!/bin/sh\n")
    planted.chmod(0o755)
    monkeypatch.setenv("PATH", str(planted.parent))
    found = find_tool("ruff", tree=tree)
    assert found is not None
    assert not found.is_relative_to(tree)
    assert find_tool("no-such-tool", tree=tree) is None
    assert str(tree) not in search_path(tree, f"{tree}/bin:{tree.parent}/tree/../tree/bin")


async def test_scratch_in_values_of_env(tree: Path, tmp_path: Path) -> None:
    surroundings = Surroundings(gate=GateSettings(memory_bytes=0))
    check = ShellCheck(
        'test "$WHERE" = "$COORDINATOR_ATTEMPT/x"', surroundings=surroundings, identity="", env={"WHERE": "{scratch}/x"}
    )
    assert (await check.run(tree, tmp_path)).status is CheckStatus.PASSED


def test_tail(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert read_tail(path) == ""
    path.write_bytes(b"a" * 5000 + b"\xff\0end")
    assert read_tail(path).endswith("��end")
    assert len(read_tail(path)) <= 4096


async def test_a_check_that_grows_too_large_is_stopped_and_address_space_is_no_memory(tmp_path: Path) -> None:
    gate = GateSettings(timeout_s=60.0, memory_bytes=200 * 2**20)
    reserve = "import mmap; m = mmap.mmap(-1, 64 * 2**30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)"
    use = "x = bytearray(300 * 2**20); x[::4096] = b'x' * len(x[::4096]); import time; time.sleep(50)"
    for name, code, status in (("reserve", reserve, CheckStatus.PASSED), ("use", use, CheckStatus.BROKEN)):
        scratch = tmp_path / name
        scratch.mkdir()
        command = f"{sys.executable} -c {shlex.quote(code)} & wait $!"  # what counts is the whole tree of processes
        surroundings = Surroundings(gate=gate)
        outcome = await run_command(command, name="c", tree=scratch, scratch=scratch, surroundings=surroundings)
        assert outcome.status is status, outcome
    assert outcome.broken_by is BrokenBy.TREE
    assert "more than 200 MiB of memory" in outcome.reason
    assert outcome.took_s < 40
