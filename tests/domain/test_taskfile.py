"""One task file: what is accepted, what is refused, and that all of it is said at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.cron import cron_fault
from coordinator.domain.task import TASK_ID
from coordinator.domain.taskfile import TASK_KEYS, ParsedFile, digest_of, parse

FULL = """\
# what a person may write
[[tasks]]
id = "fix-login"
title = "Fix the login"
prompt = '''
Make the login work.
'''
priority = 3
depends_on = ["other", "other"]
role = "reviewer"
model = "sonnet"
timeout = "1h30m"
max_attempts = 2
budget_usd = 1.5
accept = ["pytest -q tests/test_login.py"]
paths = ["src/login/**", "tests/test_login.py"]
labels = ["bug"]
schedule = "30 4 * * mon-fri"
status = "completed"
claimed_by = "somebody"
failure_reason = 7
[tasks.env]
MODE = "strict"
"""
SMALL = '[[tasks]]\nid = "a"\nprompt = "p"\n'


def problems(text: str) -> list[tuple[int, str]]:
    return [(problem.line, problem.key) for problem in parse(text, "tasks/f.toml").problems]


def test_every_key_of_the_format_is_read() -> None:
    parsed = parse(FULL, "tasks/f.toml")
    assert parsed.problems == ()
    (task,) = parsed.tasks
    assert (task.id, task.title, task.prompt) == ("fix-login", "Fix the login", "Make the login work.\n")
    assert (task.priority, task.timeout_s, task.max_attempts, task.budget_usd) == (3, 5400.0, 2, 1.5)
    assert (task.depends_on, task.role, task.model) == (("other",), "reviewer", "sonnet")
    assert task.accept == ("pytest -q tests/test_login.py",)
    assert task.paths == ("src/login/**", "tests/test_login.py")
    assert (task.labels, task.schedule, task.env) == (("bug",), "30 4 * * mon-fri", (("MODE", "strict"),))
    assert (task.file, task.line) == ("tasks/f.toml", 2)
    assert parsed.needs_lines == {"fix-login": 9}


@pytest.mark.parametrize(
    "text", ["\ufeff" + SMALL, SMALL.replace("\n", "\r\n"), "\ufeff" + SMALL.replace("\n", "\r\n")]
)
def test_byte_order_mark_and_crlf_change_nothing(text: str) -> None:
    assert parse(text, "f") == parse(SMALL, "f")


@pytest.mark.parametrize("text", ["", "\n# nothing yet\n", "tasks = []\n"])
def test_a_file_without_anything_is_fine(text: str) -> None:
    assert parse(text, "f") == ParsedFile(file="f")


def test_all_problems_are_told_at_once_and_good_neighbours_stay() -> None:
    text = """\
[[tasks]]
id = "../../x"
prompt = "p"
[[tasks]]
id = "good"
prompt = "p"
[[tasks]]
id = "bad"
prompt = "  "
priority = "high"
timout = 3
depends_on = ["ok",
  "not ok"]
budget_usd = nan
max_attempts = true
paths = ["../outside", "/absolute", "fine/**"]
schedule = "0 0 31 2 *"
[tasks.env]
"A B" = "x"
GIT_DIR = "x"
N = 1
"""
    parsed = parse(text, "tasks/f.toml")
    assert [task.id for task in parsed.tasks] == ["good"]
    assert sorted(problems(text)) == [
        (2, "id"),
        (9, "prompt"),
        (10, "priority"),
        (11, "timout"),
        (13, "depends_on[1]"),
        (14, "budget_usd"),
        (15, "max_attempts"),
        (16, "paths[0]"),
        (16, "paths[1]"),
        (17, "schedule"),
        (19, "env.A B"),
        (20, "env.GIT_DIR"),
        (21, "env.N"),
    ]
    assert set(parsed.rejected) == {"bad"}
    told = "\n".join(str(problem) for problem in parsed.problems)
    assert 'tasks/f.toml:11: timout: unknown key, did you mean "timeout"?' in told
    assert "tasks/f.toml:10: priority: is text (expected an integer from 0 to 999999)" in told


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('id = "a"\nprompt = "p"\n', "id"),
        ('[tasks]\nid = "a"\n', "tasks"),
        ('[[task]]\nid = "a"\n', "task"),
        ("tasks = [1]\n", "tasks"),
        ("tasks = 'x'\n", "tasks"),
    ],
)
def test_tasks_written_in_the_wrong_place_are_explained(text: str, key: str) -> None:
    parsed = parse(text, "f")
    assert parsed.tasks == ()
    assert [problem.key for problem in parsed.problems] == [key]
    assert parsed.readable


def test_a_stray_key_at_the_top_is_told_and_takes_no_task() -> None:
    parsed = parse('version = 1\n[[tasks]]\nid = "a"\nprompt = "p"\n', "f")
    assert [task.id for task in parsed.tasks] == ["a"]
    assert [problem.key for problem in parsed.problems] == ["version"]


@pytest.mark.parametrize("task_id", ["../../x", "a/b", ".a", "", "A", "a" * 101, "a b", "a\\nb", "ä", "-a"])
def test_an_id_that_is_no_file_name_is_refused(task_id: str) -> None:
    parsed = parse(f'[[tasks]]\nid = "{task_id}"\nprompt = "p"\n', "f")
    assert parsed.tasks == ()
    assert [(problem.line, problem.key) for problem in parsed.problems] == [(2, "id")]
    assert parsed.rejected == {}


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90", 90), ("0.5", 0.5), ('"90s"', 90), ('"10m"', 600), ('"2h"', 7200), ('"1h30m5s"', 5405), ('"1.5m"', 90)],
)
def test_durations(written: str, seconds: float) -> None:
    (task,) = parse(SMALL + f"timeout = {written}\n", "f").tasks
    assert task.timeout_s == seconds


@pytest.mark.parametrize(
    "written", ["0", "-1", "inf", "nan", '""', '"10"', '"10 m"', '"5d"', "true", '"9999h"', "1e300"]
)
def test_no_durations(written: str) -> None:
    assert problems(SMALL + f"timeout = {written}\n") == [(4, "timeout")]


@pytest.mark.parametrize(
    "schedule", ["* * * * *", "*/5 0-6,22 1,15 jan-mar mon", "0 0 29 2 *", "5/15 * * * 7", "0 0 31 2 1"]
)
def test_schedules(schedule: str) -> None:
    assert cron_fault(schedule) == ""


@pytest.mark.parametrize(
    "schedule",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "5-1 * * * *",
        "*/0 * * * *",
        "a * * * *",
        "@daily",
        "0 0 30 2 *",
        "0 0 31 4,6 *",
        "1,,2 * * * *",
        "*/99999 * * * *",
        "٣ * * * *",
    ],
)
def test_no_schedules(schedule: str) -> None:
    assert cron_fault(schedule) != ""
    assert problems(SMALL + f'schedule = "{schedule}"\n') == [(4, "schedule")]


def test_a_nul_character_cannot_reach_a_command_line() -> None:
    assert problems(SMALL + 'accept = ["a\\u0000b"]\n') == [(4, "accept[0]")]
    assert problems('[[tasks]]\nid = "a"\nprompt = "x\\u0000"\n') == [(3, "prompt")]


def test_the_digest_follows_the_definition_and_not_its_place() -> None:
    (task,) = parse(SMALL, "f").tasks
    (moved,) = parse("# a comment\n\n" + SMALL + 'status = "failed"\n', "g").tasks
    assert moved.digest == task.digest
    assert moved.line == 3
    changes = {
        "accept": ("x",),
        "budget_usd": 1.0,
        "depends_on": ("x",),
        "env": (("A", "x"),),
        "id": "b",
        "labels": ("x",),
        "max_attempts": 9,
        "model": "x",
        "paths": ("x",),
        "priority": 9,
        "prompt": "x",
        "role": "x",
        "schedule": "x",
        "timeout_s": 9.0,
        "title": "x",
    }
    digests = {digest_of(replace(task, **{name: value})) for name, value in changes.items()}  # type: ignore[arg-type]
    assert len(digests | {task.digest}) == len(changes) + 1
    swapped = {digest_of(replace(task, **{name: ("x",)})) for name in ("accept", "depends_on", "labels", "paths")}  # type: ignore[arg-type]
    assert len(swapped) == 4


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_no_text_makes_the_reader_raise(text: str) -> None:
    parsed = parse(text, "f")
    lines = text.removeprefix("\ufeff").splitlines()
    assert parsed.problems or all(line.lstrip(" \t").startswith("#") or not line.strip() for line in lines)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(FULL)), st.integers(0, 30), st.text(max_size=5))
def test_a_file_cut_or_scribbled_on_gives_whole_tasks_or_problems(start: int, length: int, scribble: str) -> None:
    parsed = parse(FULL[:start] + scribble + FULL[start + length :], "f")
    for task in parsed.tasks:
        assert TASK_ID.fullmatch(task.id)
        assert task.prompt.strip()
        assert task.digest == digest_of(task)
    assert parsed.readable or (parsed.problems and not parsed.tasks)


anything = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(TASK_KEYS)), anything, max_size=6))
def test_wrong_types_are_problems_with_a_line(values: dict[str, object]) -> None:
    import tomlkit

    table = {key: value for key, value in values.items() if value is not None}
    parsed = parse(tomlkit.dumps({"tasks": [table]}), "f")
    assert len(parsed.tasks) + bool(parsed.problems) == 1
    assert all(problem.line >= 1 and problem.key for problem in parsed.problems)
