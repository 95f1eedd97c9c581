"""``agents/PROTOCOL.md`` is enough to write an agent: its own example is run, and the sdk and it respect each other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.attempt import Result
from coordinator.domain.errors import ClaimHeld
from coordinator.kit import lock
from coordinator.sdk import Agent
from tests.conftest import CANNOT, git
from tests.sdk.offers import offer, somebody
from tests.waiting import wait_until

if TYPE_CHECKING:
    from coordinator.sdk.layout import Layout

PROTOCOL = Path(__file__).resolve().parents[2] / "agents" / "PROTOCOL.md"

pytestmark = pytest.mark.skipif(
    shutil.which("flock") is None or not Path("/proc/self/stat").exists(), reason=f"{CANNOT}no flock(1) or no /proc"
)


@pytest.fixture(params=["sh", "bash"])
def script(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    if shutil.which(request.param) is None:
        pytest.skip(f"{CANNOT}no {request.param}")
    blocks = PROTOCOL.read_text(encoding="utf-8").split("```sh\n")[1:]
    assert len(blocks) == 1, "PROTOCOL.md has one complete shell agent"
    path = tmp_path / "agent.sh"
    path.write_text(blocks[0].partition("\n```")[0] + "\n", encoding="utf-8")
    return [request.param, str(path)]


def start(script: list[str], layout: Layout, command: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*script, str(layout.state), "shell"],
        env={**os.environ, "AGENT_COMMAND": command, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: list[str], layout: Layout, command: str = "true", **more: str) -> tuple[int, str]:
    process = start(script, layout, command, **more)
    said, complaint = process.communicate(timeout=20)
    return process.returncode, said + complaint


def test_claim_clone_edit_result_release(script: list[str], layout: Layout) -> None:
    (layout.ready / "1-1-README").write_text("not an offer")
    entry = offer(layout, "one", 3)
    command = "cat > brief.copy; printf '%s\\n' \"$COORDINATOR_TASK\" >> README.md; git commit -qam edit; echo working"
    assert run(script, layout, command, GIT_DIR="/nowhere", GIT_WORK_TREE="/nowhere") == (0, "")
    tree = layout.worktree("one", 3)
    assert (tree / "brief.copy").read_text() == (layout.attempt("one", 3) / "brief.md").read_text()
    assert git(tree, "log", "--format=%s", "-1") == "edit"
    assert git(tree, "branch", "--show-current") == "coordinator/one/3"
    assert git(tree, "remote") == ""
    assert not entry.exists()
    result = Result.from_json(json.loads((layout.attempt("one", 3) / "result.json").read_text()))
    assert (result.outcome, result.exit_code, result.generation, result.task) == ("done", 0, 3, "one")
    record = lock.read_record(layout.claim_record("one"))
    assert record is not None
    assert (record.state, record.generation, record.agent) == ("released", 3, "shell")
    assert not lock.is_held(layout.claim_lock("one"))
    assert (layout.attempt("one", 3) / "agent.log").read_text() == "working\n"
    assert json.loads((layout.attempt("one", 3) / "heartbeat").read_text())["state"] == "running"
    assert [path.name for path in layout.claims.iterdir() if path.name.startswith(".")] == []


def test_a_failing_command_and_a_failing_clone_are_reported_as_such(script: list[str], layout: Layout) -> None:
    offer(layout, "one")
    assert run(script, layout, "exit 9") == (0, "")
    result = json.loads((layout.attempt("one", 1) / "result.json").read_text())
    assert (result["outcome"], result["exit_code"]) == ("failed", 9)
    offer(layout, "two")
    layout.worktree("two", 1).mkdir()
    (layout.worktree("two", 1) / "in the way").touch()
    assert run(script, layout, "touch must-not-run") == (0, "")
    assert json.loads((layout.attempt("two", 1) / "result.json").read_text())["outcome"] == "failed"
    assert not list(layout.repository.rglob("must-not-run"))


def test_nothing_to_claim(script: list[str], layout: Layout) -> None:
    assert run(script, layout) == (1, "")
    used_up = offer(layout, "one", 2)
    lock.write_record(layout.claim_record("one"), somebody("one", 2))
    assert run(script, layout) == (1, "")
    assert not used_up.exists()
    assert lock.read_record(layout.claim_record("one")) == somebody("one", 2)


def test_sdk_and_shell_exclude_each_other(script: list[str], layout: Layout, tmp_path: Path) -> None:
    sdk = Agent(state=layout.state, name="ada")
    offer(layout, "one")
    claim = sdk.claim("one")
    offer(layout, "one", 2)
    assert run(script, layout) == (1, ""), "ada has it"
    claim.release()

    gate, begun = tmp_path / "gate", tmp_path / "begun"
    os.mkfifo(gate)
    process = start(script, layout, f"touch {begun}; read line < {gate}")
    wait_until(begun.exists, what="the command's start")
    assert lock.is_held(layout.claim_lock("one"))
    record = lock.read_record(layout.claim_record("one"))
    assert record is not None
    assert lock.same_process_alive(record.pid, record.started, record.boot, record.host)
    assert record.pid == process.pid
    with pytest.raises(ClaimHeld, match=rf"shell \(pid {process.pid} on .*generation 2"):
        sdk.claim("one")
    gate.write_text("go\n")
    assert process.wait(20) == 0
    assert not lock.is_held(layout.claim_lock("one"))
    process.communicate()


def test_the_command_keeps_the_task_when_its_agent_is_killed(script: list[str], layout: Layout, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    offer(layout, "one")
    process = start(script, layout, f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60")
    wait_until(pid.exists, what="the command's start")
    process.kill()
    process.communicate()
    assert lock.is_held(layout.claim_lock("one"))
    offer(layout, "one", 2)
    assert Agent(state=layout.state).claim_next() is None
    os.kill(int(pid.read_text()), signal.SIGKILL)
    wait_until(lambda: not lock.is_held(layout.claim_lock("one")), what="the command's end")


def test_a_superseded_shell_agent_writes_nothing(script: list[str], layout: Layout) -> None:
    offer(layout, "one")
    newer = json.dumps(somebody("one", 2).to_json())
    record = layout.claim_record("one")
    code, said = run(script, layout, f"printf '%s' '{newer}' > {record}")
    assert (code, "generation 1 is over" in said) == (3, True)
    assert not (layout.attempt("one", 1) / "result.json").exists()
    assert lock.read_record(record) == somebody("one", 2)


def test_the_python_example_runs(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(layout.repository)
    offer(layout, "one")
    example = PROTOCOL.read_text(encoding="utf-8").split("```python\n")[1].partition("\n```")[0]
    exec(compile(example, str(PROTOCOL), "exec"), {})
    assert (layout.worktree("one", 1) / "NOTES.md").read_text().startswith("# one")
    assert json.loads((layout.attempt("one", 1) / "result.json").read_text())["outcome"] == "done"
