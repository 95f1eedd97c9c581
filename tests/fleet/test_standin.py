"""The stand-in for ``claude`` behaves as the real one was seen to: command line, model calls, sessions, ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.kit.lock import process_start
from tests.conftest import git
from tests.standin import search_path
from tests.standin.play import BEHAVIOURS, behaviour_of
from tests.standin.upstream import PromptedUpstream
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ONE = "11111111-2222-4333-8444-555555555555"
TWO = "22222222-2222-4333-8444-555555555555"
LAUNCH = ("claude", "-p", "--output-format", "stream-json", "--verbose", "--setting-sources", "", "--strict-mcp-config")
"""The launch line of the field guide."""


@dataclass(frozen=True)
class Run:
    code: int
    complaint: str
    out: bytes

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def result(self) -> dict[str, Any]:
        return next(line for line in reversed(self.lines) if line["type"] == "result")

    def said(self, kind: str, subtype: str = "") -> list[dict[str, Any]]:
        return [line for line in self.lines if line["type"] == kind and line.get("subtype", "") == subtype]


@dataclass(frozen=True)
class Desk:
    """A repository to work in, and a home."""

    top: Path
    home: Path

    def start(self, prompt: str, *options: str, allow: str = "Bash,Write", **env: str) -> subprocess.Popen[bytes]:
        allowed = ("--allowedTools", allow) if allow else ()
        process = subprocess.Popen(
            [*LAUNCH, *options, *allowed],
            cwd=self.top,
            env={
                "PATH": search_path(sys.executable, os.environ["PATH"]),
                "CLAUDE_CONFIG_DIR": str(self.home),
                "ANTHROPIC_API_KEY": "key-1",
                "COORDINATOR_ATTEMPT": str(self.home),
                **env,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(prompt.encode())
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, prompt: str, *options: str, **more: Any) -> Run:
        with self.start(prompt, *options, **more) as process:
            out, complaint = process.communicate(timeout=20)
        return Run(process.returncode, complaint.decode(), out)

    def pids(self) -> list[int]:
        path = self.home / "pids"
        return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def desk(repository: Path, tmp_path: Path) -> Iterator[Desk]:
    """Whatever a test leaves of its processes is ended."""
    home = tmp_path / "home"
    home.mkdir()
    made = Desk(repository, home)
    yield made
    for pid in made.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def upstream() -> Iterator[PromptedUpstream]:
    with PromptedUpstream() as server:
        yield server


def test_good_work_is_committed_and_told(desk: Desk) -> None:
    run = desk.run("Do it.\nSTANDIN: work file=new.txt text='two words'\n", "--session-id", ONE, "--model", "haiku")
    assert (run.code, run.complaint) == (0, "")
    assert (desk.top / "new.txt").read_text() == "two words\n"
    assert git(desk.top, "log", "-1", "--format=%s") == "Do the work"
    assert {line["session_id"] for line in run.lines} == {ONE}
    assert [line["type"] for line in run.lines] == ["system", *["assistant", "user"] * 2, "assistant", "result"]
    assert run.lines[0]["model"] == "claude-haiku-5-5"
    assert (run.result["subtype"], run.result["terminal_reason"], run.result["num_turns"]) == (
        "success",
        "completed",
        3,
    )
    assert run.result["total_cost_usd"] > 0
    assert list((desk.home / "sessions").iterdir()) == []


def test_a_call_goes_where_the_base_url_says(desk: Desk, upstream: PromptedUpstream) -> None:
    run = desk.run(
        "Say hello.\nSTANDIN: nothing\n",
        "--session-id",
        ONE,
        ANTHROPIC_BASE_URL=f"{upstream.url}/agents/a/1",
        ANTHROPIC_CUSTOM_HEADERS="X-Agent: seven\nX-Run: 42",
    )
    assert run.code == 0
    (call,) = upstream.calls.pop(ONE)
    assert call.path == "/agents/a/1/v1/messages?beta=true"
    assert (call.headers["x-api-key"], call.headers["x-agent"], call.headers["x-run"]) == ("key-1", "seven", "42")
    assert call.body["messages"][0]["content"].startswith("Say hello.")
    assert json.loads(call.body["metadata"]["user_id"])["session_id"] == ONE
    assert run.result["usage"] == {"input_tokens": 100, "output_tokens": 10}


def test_a_refusal_is_tried_again_as_the_real_one_does(desk: Desk, upstream: PromptedUpstream) -> None:
    run = desk.run("UPSTREAM: 429 times=1 retry-after=0.1\nSTANDIN: nothing\n", ANTHROPIC_BASE_URL=upstream.url)
    assert run.code == 0
    (retry,) = run.said("system", "api_retry")
    assert (retry["attempt"], retry["max_retries"], retry["error_status"]) == (1, 10, 429)
    assert retry["retry_delay_ms"] == 100


@pytest.mark.parametrize(
    ("wish", "status", "reason", "text", "calls"),
    [
        ("429 retry-after=90 message='try later'", 429, "api_error", "API Error: 429 try later", 1),
        ("529 x-should-retry=false", 529, "api_error", "API Error: 529 refused by the script", 1),
        ("401 retry-after=0.05", 401, "api_error", "Invalid API key · Fix external API key", 3),
        ("402 message='budget exhausted'", 402, "api_error", "API Error: 402 budget exhausted", 1),
        ("403 message=no", 403, "api_error", "Failed to authenticate. API Error: 403 no", 1),
        ("400 message='prompt is too long: 9 tokens > 8 maximum'", 400, "prompt_too_long", "Prompt is too long", 1),
    ],
)
def test_a_refusal_that_stays_ends_it(
    desk: Desk, upstream: PromptedUpstream, wish: str, status: int, reason: str, text: str, calls: int
) -> None:
    environment = {"ANTHROPIC_BASE_URL": upstream.url, "CLAUDE_CODE_MAX_RETRIES": "2"}
    run = desk.run(f"UPSTREAM: {wish}\n", "--session-id", ONE, **environment)
    assert len(upstream.calls.pop(ONE)) == calls
    assert run.code == 1
    result = run.result
    assert (result["subtype"], result["is_error"], result["api_error_status"]) == ("success", True, status)
    assert (result["terminal_reason"], result["result"]) == (reason, text)


def test_nobody_there_and_nobody_logged_in(desk: Desk) -> None:
    away = desk.run("Go.", ANTHROPIC_BASE_URL="http://127.0.0.1:9", CLAUDE_CODE_MAX_RETRIES="0")
    assert (away.code, away.result["api_error_status"]) == (1, None)
    assert "Connection refused" in away.result["result"]
    out = desk.run("Go.", ANTHROPIC_API_KEY="", ANTHROPIC_BASE_URL="http://127.0.0.1:9")
    assert (out.code, out.result["result"]) == (1, "Not logged in · Please run /login")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--no-such-option",), "unknown option"),
        (("--session-id", "seven"), "Invalid session ID"),
        (("--resume", TWO), "No conversation found"),
        (("--session-id", ONE, "--resume", TWO), "--fork-session"),
        (("--permission-mode", "mild"), "is invalid"),
        (("--output-format", "text"), "stream-json"),
    ],
)
def test_what_the_real_one_refuses_is_refused(desk: Desk, options: tuple[str, ...], complaint: str) -> None:
    run = desk.run("Go.", *options)
    assert (run.code, run.out) == (1, b"")
    assert complaint in run.complaint


@pytest.mark.skipif(os.getuid() != 0, reason="cannot run here: only root is refused")
def test_bypass_as_root_needs_a_sandbox(desk: Desk) -> None:
    assert desk.run("Go.", "--dangerously-skip-permissions").code == 1
    assert desk.run("Go.", "--permission-mode", "bypassPermissions", allow="", IS_SANDBOX="1").code == 0


def test_an_empty_prompt_is_refused(desk: Desk) -> None:
    assert "Input must be provided" in desk.run("\n").complaint


def test_a_session_goes_on_where_it_was(desk: Desk) -> None:
    first = desk.run("STANDIN: nothing | work file=later.txt\n", "--session-id", ONE)
    assert desk.run("Again.", "--session-id", ONE).complaint.endswith("already in use.\n")
    second = desk.run("The tests fail.", "--resume", ONE, COORDINATOR_GENERATION="2")
    assert second.code == 0
    assert second.result["session_id"] == ONE
    assert second.result["total_cost_usd"] > first.result["total_cost_usd"]
    assert (desk.top / "later.txt").exists()


def test_two_at_once_in_one_home_are_noted(desk: Desk) -> None:
    with desk.start("STANDIN: orphans\n") as first:
        first.communicate(timeout=20)
    desk.run("STANDIN: nothing\n")
    assert not (desk.home / "two-at-once").exists(), "what one left behind is not a second one"
    with desk.start("STANDIN: hang\n") as hanging:
        wait_until(lambda: list((desk.home / "sessions").iterdir()), what="the first")
        desk.run("STANDIN: nothing\n", COORDINATOR_ATTEMPT=str(desk.top))
        hanging.kill()
    assert (desk.home / "two-at-once").read_text() == f"{desk.top}\n"


@pytest.mark.parametrize(
    ("allow", "options", "denied"),
    [
        ("", (), ["Write", "Bash"]),
        ("Write", (), ["Bash"]),
        ("", ("--permission-mode", "acceptEdits"), ["Bash"]),
        ("Write,Bash(git add *)", (), []),
        ("Write,Bash(git:*)", ("--permission-mode", "dontAsk"), []),
        ("Write,Bash(npm *)", (), ["Bash"]),
        ("Write Bash", ("--disallowedTools", "Write"), ["Write"]),
    ],
)
def test_what_is_not_allowed_is_denied_and_the_exit_code_does_not_tell(
    desk: Desk, allow: str, options: tuple[str, ...], denied: list[str]
) -> None:
    run = desk.run("Go.", *options, allow=allow)
    assert (run.code, run.result["is_error"], run.result["subtype"]) == (0, False, "success")
    assert [one["tool_name"] for one in run.result["permission_denials"]] == denied
    assert [line["tool_name"] for line in run.said("system", "permission_denied")] == denied


def test_limits_of_turns_and_money(desk: Desk) -> None:
    turns = desk.run("STANDIN: endless\n", "--max-turns", "2")
    assert (turns.code, turns.result["subtype"], turns.result["terminal_reason"]) == (1, "error_max_turns", "max_turns")
    assert turns.result["num_turns"] == 3
    assert "result" not in turns.result
    money = desk.run("STANDIN: endless\n", "--max-budget-usd", "0.01")
    assert (money.code, money.result["subtype"]) == (1, "error_max_budget_usd")
    assert money.result["total_cost_usd"] >= 0.01


def test_sigterm_ends_it_and_its_tool_without_a_result(desk: Desk) -> None:
    with desk.start("STANDIN: build s=1000\n") as process:
        wait_until(lambda: len(desk.pids()) == 2, what="the build")
        assert os.getsid(desk.pids()[1]) == desk.pids()[1]
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=10)
    assert process.returncode == 143
    assert b'"result"' not in out
    wait_until(lambda: process_start(desk.pids()[1]) is None, what="the end of the build")


def test_sigkill_leaves_its_tool_behind(desk: Desk) -> None:
    with desk.start("STANDIN: build s=1000\n") as process:
        wait_until(lambda: len(desk.pids()) == 2, what="the build")
        process.kill()
    assert process_start(desk.pids()[1]) is not None


def test_orphans_live_on_and_the_hidden_one_shows_nothing(desk: Desk) -> None:
    assert desk.run("STANDIN: orphans\n").code == 0
    own, *tools = desk.pids()
    left = [pid for pid in tools if process_start(pid) is not None]
    assert len(left) == 4
    assert process_start(own) is None
    assert (desk.home / "port").exists()
    assert sorted(bool(Path(f"/proc/{pid}/environ").read_bytes()) for pid in left) == [False, True, True, True]


def test_the_stubborn_one_does_not_mind_sigterm(desk: Desk) -> None:
    with desk.start("STANDIN: stubborn\n") as process:
        assert process.stdout is not None
        wait_until(lambda: b"Now for the rest" in process.stdout.readline(), what="its last word")  # type: ignore[union-attr]
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.kill()


def test_garbage_and_a_flood_end_in_good_work(desk: Desk) -> None:
    garbage = desk.run("STANDIN: garbage file=a.txt\n")
    assert garbage.code == 0
    good = [line for line in garbage.out.splitlines() if line.startswith(b'{"type":"result","subtype":"success"')]
    assert len(good) == 1
    flood = desk.run("STANDIN: flood file=b.txt\n")
    assert max(map(len, flood.out.splitlines())) > 10_000_000
    assert flood.result["result"] == "All done."


def test_the_others_do_what_they_say(desk: Desk) -> None:
    assert desk.run("STANDIN: crash code=3\n").code == 3
    assert desk.run("STANDIN: crash signal=11\n").code == -signal.SIGSEGV
    head = git(desk.top, "rev-parse", "HEAD")
    assert desk.run("STANDIN: uncommitted file=u.txt\n").code == 0
    assert git(desk.top, "rev-parse", "HEAD") == head
    assert desk.run("STANDIN: denied\n").result["permission_denials"][0]["tool_name"] == "WebFetch"
    twice = desk.run("STANDIN: background s=0\n")
    assert [line["result_index"] for line in twice.lines if line["type"] == "result"] == [0, 1]
    limit = desk.run("STANDIN: usage_limit s=60\n")
    assert limit.result["result"].startswith("Claude AI usage limit reached|")
    assert desk.run("STANDIN: wrong_branch\n").code == 0
    assert git(desk.top, "branch", "--show-current") == "elsewhere"
    assert desk.run("STANDIN: delete_tests\n").code == 0
    assert "test_price.py" not in git(desk.top, "ls-files")


def test_what_is_done_at_which_attempt() -> None:
    prompt = "Do it.\n  STANDIN: crash code=2 | hang | work file=x.txt text='a | b'\n"
    assert behaviour_of([prompt], 1) == ("crash", {"code": "2"})
    assert behaviour_of([prompt], 2) == ("hang", {})
    assert behaviour_of([prompt], 3) == behaviour_of([prompt], 9) == ("work", {"file": "x.txt", "text": "a | b"})
    assert behaviour_of(["Do."], 1) == ("work", {})
    assert behaviour_of([prompt, "Only: mend it."], 2) == ("hang", {})
    assert all(one.__doc__ for one in BEHAVIOURS.values())
