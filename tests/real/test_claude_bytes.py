"""What the real Claude Code sends reaches the model unchanged: its requests behind the gateway, and its requests without one.

The daemon starts it on a task; the very same program, folder, environment and words are then started once more, with no
gateway before the same scripted server. Nothing that differs between the two may come of us.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.real.programs import path_with
from tests.real.tap import Tap
from tests.real.upstream import Say, Upstream
from tests.walks.house import ENVIRONMENT, House, build

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.tap import Request

PROVIDER_KEY = "sk-ant-provider-secret"
TASK = '[[tasks]]\nid = "turn"\nrole = "claude"\nprompt = "Turn the factors around: “a·b” is “b·a”."\ntimeout = 60\n'
EDIT = {"file_path": "calc.py", "old_string": "number * 2", "new_string": "2 * number"}
SIGNS = r"printf 'h\303\251 \360\237\246\212 \\n \"quoted\" \001\n'"
SCRIPT = (
    Say("I look first.", tools=[("Read", {"file_path": "calc.py"}), ("Bash", {"command": "seq 1 6000"})]),
    Say(tools=[("Edit", EDIT), ("Bash", {"command": SIGNS})]),
    Say(tools=[("Bash", {"command": "python3 -m unittest -q 2>/dev/null && git commit -qam Turn"})]),
    Say("Turned."),
)
NOT_CARRIED = {b"connection", b"content-length", b"host", b"x-api-key"}
"""Of a request's fields, what is of one connection or one account. All else is the protocol's and goes up as it is."""
OF_ONE_RUN = {b"x-claude-code-prompt-id", b"x-claude-code-prev-tool-durations"}
"""What the program draws or measures anew each time, and nothing can be said to keep it from that."""
DATE = re.compile(rb"Today's date is \d{4}-\d\d-\d\d\.")

WRAPPER = """\
#!/bin/sh
# Notes how it was started, then is the real one, with a tap before the gateway.
set -e
cd {note}
cat >stdin
env -0 >env
printf '%s\\0' "$@" >argv
printf %s "$OLDPWD" >cwd
printf %s "$ANTHROPIC_BASE_URL" >url
cp -a "$OLDPWD" tree
cd "$OLDPWD"
rest=${{ANTHROPIC_BASE_URL#http://*/}}
ANTHROPIC_BASE_URL={tap}/$rest exec {real} "$@" <{note}/stdin
"""


@dataclass(frozen=True)
class Seen:
    """The requests of the three places: into the gateway, out of it, and without one."""

    came: list[Request]
    went: list[Request]
    alone: list[Request]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    search = path_with("claude")
    real = shutil.which("claude", path=search)
    assert real is not None
    folder = tmp_path_factory.mktemp("bytes")
    house, note = build(folder / "house"), folder / "note"
    note.mkdir()
    (house.top / "tasks").mkdir()
    (house.top / "tasks" / "turn.toml").write_text(TASK)
    with scripted() as went, Tap(lambda: port_of((note / "url").read_text())) as came:
        run_behind_the_gateway(house, wrap(folder / "bin", note, came, real), search, went)
    with scripted() as alone:
        run_without(note, real, alone)
    assert came.wrong + went.wrong + alone.wrong == []
    return Seen(came.requests, went.requests, alone.requests)


@contextmanager
def scripted() -> Iterator[Tap]:
    with Upstream({"turn": SCRIPT}) as upstream, Tap(lambda: port_of(upstream.url)) as tap:
        yield tap


def port_of(url: str) -> int:
    return urlsplit(url).port or 0


def wrap(folder: Path, note: Path, tap: Tap, real: str) -> Path:
    folder.mkdir()
    text = WRAPPER.format(note=shlex.quote(str(note)), tap=tap.url, real=shlex.quote(real))
    (folder / "claude").write_text(text)
    (folder / "claude").chmod(0o755)
    return folder


def run_behind_the_gateway(house: House, wrapped: Path, search: str, upstream: Tap) -> None:
    keys = {"ANTHROPIC_API_KEY": PROVIDER_KEY, "ANTHROPIC_BASE_URL": upstream.url}
    argv = [sys.executable, "-m", "coordinator", "-C", str(house.top), "run", "--until-idle"]
    env = {**ENVIRONMENT, **keys, "PATH": f"{wrapped}:{search}"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, house.landed()) == (0, ["turn"]), done.stdout + done.stderr
    assert "2 * number" in house.show("calc.py")


def run_without(note: Path, real: str, upstream: Tap) -> None:
    """The same place as it was, the same installation (its ids are drawn at a first start), the same words."""
    env = dict(entry.split("=", 1) for entry in (note / "env").read_text().split("\0") if entry)
    argv, tree = (note / "argv").read_text().split("\0")[:-1], Path((note / "cwd").read_text())
    shutil.copytree(note / "tree", tree, symlinks=True)
    config = Path(env["CLAUDE_CONFIG_DIR"])
    installed = json.loads((config / ".claude.json").read_text())
    shutil.rmtree(env["HOME"])
    config.mkdir(parents=True)
    (config / ".claude.json").write_text(json.dumps({name: installed[name] for name in ("machineID", "userID")}))
    with (note / "stdin").open() as words:
        env |= {"ANTHROPIC_BASE_URL": upstream.url}
        done = subprocess.run(
            [real, *argv], cwd=tree, env=env, stdin=words, capture_output=True, text=True, timeout=90, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr


def fields(request: Request, *without: set[bytes]) -> list[tuple[bytes, bytes]]:
    return [pair for pair in request.fields if pair[0].lower() not in set().union(*without)]


def test_the_bodies_are_those_that_it_sends_without_a_gateway(seen: Seen) -> None:
    """Session, device and folders are the same by arrangement; of all that stands in them only the day is masked."""
    assert len(seen.went) == len(seen.alone) == len(SCRIPT)
    for with_us, without in zip(seen.went, seen.alone, strict=True):
        assert len(DATE.findall(without.body)) == 1, "what is masked is there"
        assert DATE.sub(b"", with_us.body) == DATE.sub(b"", without.body)
        assert with_us.target == without.target == b"/v1/messages?beta=true"
        assert fields(with_us, NOT_CARRIED, OF_ONE_RUN) == fields(without, NOT_CARRIED, OF_ONE_RUN)
    last = json.loads(seen.went[-1].body)
    said = [block for one in last["messages"] if one["role"] == "assistant" for block in one["content"]]
    uses = [block["name"] for block in said if block["type"] == "tool_use"]
    assert uses == ["Read", "Bash", "Edit", "Bash", "Bash"]
    for kept in ("6000", "hé 🦊", "“a·b”"):
        assert kept in json.dumps(last, ensure_ascii=False)


def test_what_came_in_went_up(seen: Seen) -> None:
    """Each byte of the bodies, each field of the protocol with its spelling and place; the provider's key for the agent's."""
    assert len(seen.came) == len(seen.went) == len(SCRIPT)
    for came, went in zip(seen.came, seen.went, strict=True):
        assert went.body == came.body
        assert (went.method, b"/agents/turn/1" + went.target) == (came.method, came.target)
        assert fields(went, NOT_CARRIED) == fields(came, NOT_CARRIED)
        names = {name.lower() for name, _ in fields(went, NOT_CARRIED)}
        assert {b"accept-encoding", b"anthropic-beta", b"anthropic-version", b"x-claude-code-session-id"} <= names
        assert dict(went.fields)[b"x-api-key"] == PROVIDER_KEY.encode() != dict(came.fields)[b"x-api-key"]
