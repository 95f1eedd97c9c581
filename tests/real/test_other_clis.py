"""The real codex, opencode, gemini and aider against a local scripted server: what their drivers say of them, they do."""

from __future__ import annotations

import json
import os
import shutil
import stat
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CANNOT, git
from tests.fleet.orders import offer, start_agent
from tests.real.dialects import Refusal, ScriptedModels, Shell, Text
from tests.real.programs import TOP, path_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from coordinator.domain.attempt import Result
    from coordinator.sdk.layout import Layout
    from tests.fleet.orders import Offer
    from tests.real.dialects import Line

KEY = "key-of-this-attempt"
WORK = Shell("echo made > made.txt && ls")
ALL = ("aider", "codex", "gemini", "opencode")


@dataclass(frozen=True)
class Program:
    """How a card would have it started, and what its model must say to have a file made."""

    arguments: tuple[str, ...] = ()
    model: str = ""
    lines: tuple[Line, ...] = (WORK, Text("All done."))
    calls: int = 2
    path: str = "/v1/chat/completions"


PROGRAMS: Mapping[str, Program] = {
    "aider": Program(
        arguments=("--edit-format=whole",),
        calls=1,
        lines=(Text("Here it is.\n\nmade.txt\n```\nmade\n```\n"),),
        model="openai/scripted",
    ),
    "codex": Program(model="gpt-scripted", path="/v1/responses"),
    "gemini": Program(
        arguments=("--approval-mode", "yolo"),
        model="gemini-2.5-pro",
        path="/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
    ),
    "opencode": Program(model="local/scripted"),
}


@dataclass
class Bench:
    """Attempts by real programs, one after the other, in one repository."""

    layout: Layout
    home: Path
    number: int = 0
    made: list[Offer] = field(default_factory=list)

    def run(self, name: str, *script: Line, **more: Any) -> tuple[Result, list[Any]]:
        """One attempt with that conversation; its result and what the server was asked."""
        search, program = path_with(name), PROGRAMS[name]
        self.number += 1
        with ScriptedModels(*script) as models:
            task, base = f"t{self.number}", f"{models.url}/agents/t{self.number}/1"
            order = {
                "brief": "Make made.txt.",
                "command": (name, *program.arguments),
                "driver": name,
                "gateway": base,
                "home": str(self.home),
                "key": KEY,
                "memory_bytes": 8 * 2**30,
                "model": program.model,
                "session": str(uuid.uuid4()),
                "timeout_s": 60.0,
                **more,
            }
            made = offer(self.layout, task, **order)
            self.made.append(made)
            with start_agent(self.layout, PATH=search) as agent:
                result = made.ended()
                agent.wait(20)
            return result, models.asked

    @property
    def tree(self) -> Path:
        return self.made[-1].tree

    @property
    def said(self) -> str:
        """What it printed, for a test that fails."""
        folder = self.made[-1].folder
        names = ("result.json", "transcript.jsonl", "agent.log")
        return "\n".join(
            (folder / name).read_text(errors="replace")[-4000:] for name in names if (folder / name).exists()
        )


@pytest.fixture
def bench(layout: Layout, tmp_path: Path) -> Bench:
    return Bench(layout, tmp_path / "home")


@pytest.fixture
def safe_home() -> Iterator[Path]:
    """Where nobody else can write: gemini believes no settings below /tmp, and codex lets anybody write there."""
    home = TOP / ".tools" / "homes" / uuid.uuid4().hex
    home.mkdir(parents=True)
    if any(folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH) for folder in home.parents):
        pytest.skip(f"{CANNOT}{home} is below a folder that others can write to")
    yield home
    shutil.rmtree(home)


# -- work ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_it_does_its_work_with_the_key_and_at_the_address_of_its_order(bench: Bench, name: str) -> None:
    program = PROGRAMS[name]
    result, asked = bench.run(name, *program.lines)
    assert result.outcome == "done", bench.said
    assert (bench.tree / "made.txt").read_text() == "made\n"
    assert {one.key for one in asked} == {KEY}
    assert {one.path for one in asked} == {f"/agents/t1/1{program.path}"}
    assert "made.txt" in result.summary if name == "aider" else result.summary == "All done."
    assert (result.turns, len(asked)) == (program.calls, program.calls)
    assert "Make made.txt." in json.dumps(asked[0].body)
    left = git(bench.tree, "status", "--porcelain", "--ignored").split()
    assert left in (["??", "made.txt"], []), "nothing of the program's own lies in the tree"


def test_codex_writes_nowhere_but_in_its_tree(bench: Bench, safe_home: Path) -> None:
    outside = safe_home / "outside"
    result, _ = bench.run("codex", Shell(f"touch inside; touch {outside}"), Text("ok"))
    assert (result.outcome, (bench.tree / "inside").exists(), outside.exists()) == ("done", True, False)


def test_codex_goes_on_with_a_conversation_in_another_tree(bench: Bench) -> None:
    first, _ = bench.run("codex", Text("The word is Rumpelstiltskin."))
    second, asked = bench.run("codex", Shell("pwd > here"), Text("ok"), resume=first.session)
    assert (second.outcome, second.session) == ("done", first.session)
    assert "Rumpelstiltskin" in json.dumps(asked[0].body)
    assert (bench.tree / "here").read_text().strip() == str(bench.tree)


def test_a_conversation_that_is_gone_is_nobodys_fault(bench: Bench) -> None:
    result, _ = bench.run("codex", Text("ok"), resume=str(uuid.uuid4()))
    assert (result.reason, "no rollout found" in result.summary) == ("unavailable", True)


# -- what a repository may not do ----------------------------------------------------------------------------------------

TRAPS = {
    "codex": {
        ".codex/config.toml": 'model_provider = "trap"\n[model_providers.trap]\nname = "trap"\n'
        'base_url = "http://127.0.0.1:1/v1"\nwire_api = "responses"\n'
    },
    "gemini": {
        ".env": "GOOGLE_GEMINI_BASE_URL=http://127.0.0.1:1\n",
        ".gemini/settings.json": json.dumps(
            {
                "hooks": {"SessionStart": [{"hooks": [{"type": "command", "command": "touch TRAPPED"}]}]},
                "mcpServers": {"trap": {"command": "touch", "args": ["TRAPPED"]}},
                "security": {"auth": {"selectedType": "oauth-personal"}},
            }
        ),
    },
    "opencode": {
        "opencode.json": json.dumps({"provider": {"local": {"options": {"baseURL": "http://127.0.0.1:1/v1"}}}}),
    },
    "aider": {
        ".env": "OPENAI_API_BASE=http://127.0.0.1:1/v1\n",
        ".aider.conf.yml": "openai-api-base: http://127.0.0.1:1\n",
    },
}


@pytest.mark.parametrize("name", ALL)
def test_a_repository_decides_neither_where_it_calls_nor_what_it_starts(
    bench: Bench, repository: Path, safe_home: Path, name: str
) -> None:
    for file, text in TRAPS[name].items():
        (repository / file).parent.mkdir(parents=True, exist_ok=True)
        (repository / file).write_text(text)
    git(repository, "add", "--force", *TRAPS[name])
    git(repository, "commit", "--quiet", "-m", "Set traps")
    bench.home = safe_home
    result, asked = bench.run(name, Text("ok"))
    assert (result.outcome, len(asked)) == ("done", 1), bench.said
    assert not (bench.tree / "TRAPPED").exists()


# -- endings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_key_that_is_refused_is_a_missing_login(bench: Bench, name: str) -> None:
    result, asked = bench.run(name, Refusal(401, "Incorrect API key provided", "UNAUTHENTICATED"))
    assert (result.outcome, result.reason) == ("failed", "login_missing"), bench.said
    assert "where the coordinator is started" in result.summary
    assert len(asked) <= 3


@pytest.mark.parametrize("name", ["codex", "gemini", "aider"])
def test_a_conversation_that_is_too_long_is_a_context_overflow(bench: Bench, name: str) -> None:
    said = "The input token count (1200000) exceeds the maximum number of tokens allowed, the context window."
    result, _ = bench.run(name, Refusal(400, said, "context_length_exceeded"))
    assert (result.outcome, result.reason) == ("failed", "context_overflow"), bench.said


def test_a_limit_that_is_used_up_is_a_rate_limit(bench: Bench) -> None:
    result, _ = bench.run("codex", Refusal(429, "The usage limit has been reached", "usage_limit_reached"))
    assert (result.outcome, result.reason) == ("failed", "rate_limited"), bench.said


def test_gemini_calls_by_itself_where_no_gateway_runs(bench: Bench) -> None:
    with ScriptedModels(WORK, Text("All done.")) as models:
        env = (("GEMINI_API_KEY", "key-of-the-card"), ("GOOGLE_GEMINI_BASE_URL", models.url))
        result, _ = bench.run("gemini", Text("never asked"), env=env, gateway="", key="")
        assert (result.outcome, result.summary) == ("done", "All done."), bench.said
        assert {one.key for one in models.asked} == {"key-of-the-card"}


def test_a_login_that_is_not_there_is_named(bench: Bench) -> None:
    result, asked = bench.run("gemini", Text("ok"), env=(), gateway="", key="")
    assert (result.reason, asked) == ("login_missing", []), bench.said
    assert "GEMINI_API_KEY" in result.summary


def test_an_argument_that_the_program_does_not_know_is_no_failure_of_the_task(bench: Bench) -> None:
    result, _ = bench.run("codex", Text("ok"), command=("codex", "--no-such-option"))
    assert (result.outcome, result.reason) == ("unstarted", "options"), bench.said
    assert "--no-such-option" in result.summary


@pytest.mark.parametrize("name", ALL)
def test_a_program_that_is_missing_is_named(bench: Bench, layout: Layout, name: str) -> None:
    made = offer(layout, "t", command=(f"{name}-of-nowhere",), driver=name, home=str(bench.home))
    with start_agent(layout, PATH=os.environ["PATH"]) as agent:
        result = made.ended()
        agent.wait(20)
    assert (result.outcome, result.reason, f"{name}-of-nowhere" in result.summary) == ("unstarted", "spawn", True)
