"""The verbs on a real ledger: JSON with stable keys, lines of at most 80 columns, answers that tell the truth."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.api import view
from coordinator.api.table import all_verbs
from coordinator.api.verb import Reply, arguments_from
from coordinator.domain.attempt import ClaimRecord
from coordinator.domain.errors import BadInput, DaemonUnreachable, PermanentError, UnknownTask
from coordinator.domain.task import Task, TaskState
from coordinator.kit import lock
from coordinator.kit.files import read_text

if TYPE_CHECKING:
    from tests.api.conftest import Place

VERBS = {verb.name: verb for verb in all_verbs()}
LONG = "a reason that is rather long and names /a/path/without/any/space/in/it/" + "x" * 90


def add(place: Place, task_id: str, *states: TaskState, reason: str = "because", **changes: Any) -> None:
    task = Task(id=task_id, prompt="Do it.", title=f"Title of {task_id}", file=f"tasks/{task_id}.toml", line=1)
    (place.desk.root / task.file).write_text(f'[[tasks]]\nid = "{task_id}"\nprompt = "Do it."\n')
    place.ledger.add(task, reason=f"new in {task.file}")
    for state in states:
        place.ledger.move(task_id, state, reason, **changes)


async def ask(place: Place, name: str, *, live: bool = True, **arguments: Any) -> Reply:
    verb = VERBS[name]
    assert verb.call is not None
    desk = place.desk if live else place.offline
    reply = await verb.call(desk, arguments_from(verb, arguments))
    json.dumps(reply.data)
    for width in (60, 80):
        for line in verb.show(reply.data, width):
            assert view.width_of("".join(span.text for span in line)) <= width, line
    return reply


async def stream(place: Place, name: str, *, live: bool = True, **arguments: Any) -> list[Any]:
    verb = VERBS[name]
    assert verb.stream is not None
    desk = place.desk if live else place.offline
    return [item async for item in verb.stream(desk, arguments_from(verb, arguments))]


def shown(place: Place, name: str, reply: Reply) -> str:
    return "\n".join("".join(span.text for span in line) for line in VERBS[name].show(reply.data, 80))


WORKING = (TaskState.READY, TaskState.CLAIMED, TaskState.RUNNING)
FAILED = (*WORKING, TaskState.FAILED)

KEYS = {
    "tasks list": {"tasks", "total"},
    "status": {
        "at_work", "daemon", "findings", "gate", "gateway", "incidents", "next", "problems", "refusal", "repository", "stuck", "target",
        "tasks", "version",
    },
    "explain": {"attempts", "commit", "feedback", "file", "history", "id", "judged", "landed", "line", "reason", "sentence", "state", "title"},
    "tasks show": {
        "attempts", "commit", "created_at", "definition", "feedback", "file", "generation", "id", "line", "priority",
        "reason", "role", "state", "title", "updated_at",
    },
    "agents list": {"agents", "outside"},
    "tasks check": {"blocked", "files", "problems", "tasks"},
    "tasks hold": {"action", "daemon", "results"},
    "doctor": {"checks", "ok", "python"},
    "init": {"kept", "repository", "written"},
}  # fmt: skip
"""What ``--json`` promises; taking a key away breaks somebody's script."""


@pytest.mark.parametrize("name", sorted(KEYS))
async def test_json_keys_are_stable(place: Place, name: str) -> None:
    add(place, "a", *FAILED, reason=LONG)
    arguments: dict[str, Any] = {"explain": {"task": "a"}, "tasks show": {"task": "a"}, "tasks hold": {"tasks": ["a"]}}
    reply = await ask(place, name, **arguments.get(name, {}))
    assert set(reply.data) == KEYS[name]


async def test_list_chooses_by_state_and_says_how_many_it_left_out(place: Place) -> None:
    add(place, "a")
    add(place, "b", *FAILED)
    add(place, "c")
    reply = await ask(place, "tasks list", state=["pending"], limit=1)
    assert [task["id"] for task in reply.data["tasks"]] == ["a"]
    assert reply.data["total"] == 2
    assert "1 more" in shown(place, "tasks list", reply)
    with pytest.raises(BadInput, match="no state 'lost'"):
        await ask(place, "tasks list", state=["lost"])


async def test_a_task_nobody_has_read_yet_is_not_denied(place: Place) -> None:
    (place.desk.root / "tasks" / "n.toml").write_text('[[tasks]]\nid = "n"\nprompt = "New."\n')
    reply = await ask(place, "tasks list", live=False)
    assert [(task["id"], task["state"]) for task in reply.data["tasks"]] == [("n", "pending")]
    assert (await ask(place, "status", live=False)).data["tasks"] == {"pending": 1}
    assert "no daemon has read its file yet" in (await ask(place, "explain", live=False, task="n")).data["sentence"]


async def test_an_unknown_task_is_named_with_what_looks_like_it(place: Place) -> None:
    add(place, "fix-parser")
    for name in ("tasks show", "explain"):
        with pytest.raises(UnknownTask, match="did you mean fix-parser"):
            await ask(place, name, task="fix-parsr")


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ((), "is pending: new in tasks/a.toml"),
        ((TaskState.BLOCKED,), "is blocked: because"),
        ((TaskState.HELD,), "is held: because"),
        ((TaskState.CANCELLED,), "is cancelled: because"),
        (FAILED, "is failed after 0 attempts: because"),
        ((TaskState.COMPLETED,), "is completed: because"),
        ((TaskState.REJECTED,), "is rejected: because"),
        (WORKING, "has let go of it"),
    ],
)
async def test_every_state_is_explained_in_one_sentence(place: Place, states: Any, said: str) -> None:
    add(place, "a", *states)
    reply = await ask(place, "explain", task="a")
    assert said in reply.data["sentence"]
    assert reply.data["sentence"].count("\n") == 0
    assert len(reply.data["history"]) == len(states) + 1 or len(reply.data["history"]) == 0


async def test_a_rejected_file_is_explained_although_the_ledger_never_saw_it(place: Place) -> None:
    (place.desk.root / "tasks" / "bad.toml").write_text('[[tasks]]\nid = "bad"\nprompt = "x"\ncolour = 1\n')
    reply = await ask(place, "explain", task="bad")
    assert reply.data["state"] == "rejected"
    assert "colour" in reply.data["sentence"]
    checked = await ask(place, "tasks check")
    assert checked.exit_code == 1
    assert checked.data["problems"][0]["line"] == 4


async def test_who_works_is_told_from_the_lock_not_from_the_ledger(place: Place) -> None:
    add(place, "a", *WORKING, generation=1)
    host, boot, pid, started = lock.own_identity()
    record = ClaimRecord(agent="agent-1", boot=boot, generation=1, host=host, pid=pid, started=started, task="a")
    lock.write_record(place.desk.layout.claim_record("a"), record)
    attempt = place.desk.layout.attempt("a", 1)
    attempt.mkdir(parents=True)
    (attempt / "heartbeat").write_text(json.dumps({"state": "running", "note": "thinking\x1b[2J", "pid": pid}))
    held = lock.acquire(place.desk.layout.claim_lock("a"))
    assert held is not None
    with held:
        work = (await ask(place, "status")).data["at_work"]
        assert [(row["agent"], row["doing"], row["held"]) for row in work] == [("agent-1", "running", True)]
        assert "agent-1" in (await ask(place, "explain", task="a")).data["sentence"]
    assert (await ask(place, "status")).data["at_work"][0]["held"] is False


async def test_status_tells_a_silent_daemon_from_none_and_a_tool_that_did_not_scan(place: Place) -> None:
    assert (await ask(place, "status", live=False)).data["findings"] == []  # nothing there that a tool would look at
    (place.desk.root / "shop.py").write_text("import os\n")
    reply = await ask(place, "status", live=False)
    assert reply.data["daemon"]["state"] == "stopped"
    assert [row["scan"] for row in reply.data["findings"]] == ["not scanned"]
    assert "not scanned" in shown(place, "status", reply)
    held = lock.acquire(place.desk.layout.daemon_lock)
    assert held is not None
    with held:
        assert (await ask(place, "status", live=False)).data["daemon"]["state"] == "silent"
    assert (await ask(place, "status")).data["daemon"]["state"] == "running"


async def test_add_writes_a_file_that_is_read_back_and_never_over_another(place: Place) -> None:
    prompt = 'Make it\n"""quoted""" and \\ and ünïcode\n'
    added = await ask(place, "tasks add", prompt=prompt, id="n", priority=3, accept=["true"], depends_on=["m"])
    path = place.desk.root / added.data["file"]
    assert isinstance(read_text(path), str)
    listed = (await ask(place, "tasks list", live=False)).data["tasks"]
    assert [(task["id"], task["priority"]) for task in listed] == [("n", 3)]
    with pytest.raises(BadInput, match="exists already"):
        await ask(place, "tasks add", prompt="again", id="n")
    with pytest.raises(BadInput, match="--id"):
        await ask(place, "tasks add", prompt="x", id="../../x")
    generated = await ask(place, "tasks add", prompt="Fix: the Parser!")
    assert generated.data["id"].startswith("fix-the-parser-")


async def test_operating_answers_for_each_task(place: Place) -> None:
    reply = await ask(place, "tasks retry", tasks=["a", "b", "a"])
    assert place.live.asked == [("retry", "a"), ("retry", "b")]
    assert reply.exit_code == 0
    reply = await ask(place, "tasks cancel", tasks=["nobody", "a"])
    assert reply.exit_code == 2
    assert place.live.asked[-1] == ("cancel", "a", "cancelled by the operator")


async def test_logs_follow_an_attempt_to_its_end(place: Place) -> None:
    add(place, "a", *WORKING, generation=1)
    folder = place.desk.layout.attempt("a", 1)
    folder.mkdir(parents=True)
    log = folder / "agent.log"
    log.write_bytes(b"one\ntw")
    following = asyncio.create_task(stream(place, "logs", task="a", follow=True))
    await asyncio.sleep(0)
    with log.open("ab") as file:
        file.write(b"o\nthr\xc3")
        file.flush()
        file.write(b"\xa9e")
    place.ledger.move("a", TaskState.FAILED, "because")
    lines = [item["line"] for item in await asyncio.wait_for(following, 5)]
    assert lines == ["one", "two", "thrée"]
    assert [item["line"] for item in await stream(place, "logs", task="a", lines=1)] == ["two", "thrée"][-1:]


async def test_logs_that_are_not_there_or_not_a_file_say_why(place: Place) -> None:
    add(place, "a", *WORKING, generation=1)
    with pytest.raises(PermanentError, match="has not been attempted yet"):
        await stream(place, "logs", task="a")
    folder = place.desk.layout.attempt("a", 1)
    folder.mkdir(parents=True)
    (folder / "agent.log").symlink_to("/etc/passwd")
    with pytest.raises(PermanentError, match="left no output"):
        await stream(place, "logs", task="a")


async def test_past_events_need_no_daemon_and_following_does(place: Place) -> None:
    place.ledger._bus.tap(
        lambda published: place.ledger._store.execute(
            "journal_add",
            at=published.at.isoformat(),
            kind=published.event.kind,
            task=getattr(published.event, "task", None),
            data=json.dumps(published.event.to_json()),
        )
    )
    add(place, "a", TaskState.HELD, reason=LONG)
    items = await stream(place, "events", live=False)
    assert [(item["kind"], item["new"]) for item in items] == [("task_changed", "pending"), ("task_changed", "held")]
    for item in items:
        for line in VERBS["events"].show(item, 60):
            assert view.width_of("".join(span.text for span in line)) <= 60
    with pytest.raises(DaemonUnreachable):
        await stream(place, "events", live=False, follow=True)


async def test_a_race_is_run_and_bad_numbers_are_refused(place: Place) -> None:
    reply = await ask(place, "race", processes=2, tasks=4)
    assert (reply.data["passed"], reply.data["claimed"], reply.data["doubles"]) == (True, 4, 0)
    with pytest.raises(BadInput, match="--processes"):
        await ask(place, "race", processes=0)


async def test_tests_that_do_not_run_are_told_by_status_and_doctor(place: Place) -> None:
    root = place.desk.root
    assert "the project has no tests" in shown(place, "status", await ask(place, "status"))
    (root / "test_a.py").write_text("import numpy\n")
    assert "no tests" not in shown(place, "status", await ask(place, "status"))
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").touch()
    (root / ".venv" / "lib" / "python3.12" / "site-packages").mkdir(parents=True)
    reply = await ask(place, "status")
    assert [one["check"] for one in reply.data["gate"]["untested"]] == ["pytest"]
    text = " ".join(shown(place, "status", reply).split())
    assert "tests cannot be run (pytest: pytest is not installed" in text
    assert "only autofix lands" in text
    told = await ask(place, "doctor")
    (row,) = [row for row in told.data["checks"] if row["check"] == "tests"]
    assert row["status"] == "warn"
    assert row["remedy"].endswith("pip install pytest")


async def test_what_the_gate_found_out_by_running_the_tests_is_told_later(place: Place) -> None:
    (place.desk.root / "test_a.py").write_text("import numpy\n")
    record = [
        {"check": "pytest", "reason": "no test ran: no numpy", "remedy": "install"},
        {"check": "gone", "reason": "", "remedy": ""},
    ]
    place.ledger.fact("gate:untested", record)
    assert [one["reason"] for one in (await ask(place, "status")).data["gate"]["untested"]] == ["no test ran: no numpy"]
    for garbage in (None, 3, {}, [1], [{}]):
        place.ledger.fact("gate:untested", garbage)
        assert (await ask(place, "status")).data["gate"]["untested"] == []


async def test_the_gates_last_word_is_part_of_the_story(place: Place) -> None:
    add(place, "a", *WORKING, TaskState.VALIDATING)
    rows = [
        {"tasks": ["a"], "verdict": "passed", "reason": "", "took_s": 1, "notes": [], "untested": ""},
        {"tasks": ["b", "a"], "verdict": "broken", "reason": "the tests cannot be run", "took_s": 1, "notes": ["n"]},
        {"tasks": ["b"], "verdict": "failed", "reason": "x", "took_s": 1},
    ]
    for row in rows:
        data = json.dumps(row)
        place.ledger._store.execute(
            "journal_add", at="2026-01-01T00:00:00+00:00", kind="gate_judged", task=None, data=data
        )
    reply = await ask(place, "explain", task="a")
    assert "the gate could not judge it, the tests cannot be run." in reply.data["sentence"]
    text = shown(place, "explain", reply)
    assert "Gate: broken: the tests cannot be run" in text
    assert "- n" in text


async def test_check_names_tasks_that_nobody_here_could_do(place: Place) -> None:
    tasks = place.desk.root / "tasks"
    tasks.joinpath("n.toml").write_text('[[tasks]]\nid = "n"\nrole = "cluade"\nprompt = "New."\n')
    tasks.joinpath("m.toml").write_text('[[tasks]]\nid = "m"\nrole = "autofix"\nprompt = "New."\n')
    reply = await ask(place, "tasks check", live=False)
    assert list(reply.data["blocked"]) == ["n"]
    assert "role cluade has no card" in reply.data["blocked"]["n"]
    assert reply.exit_code == 0
