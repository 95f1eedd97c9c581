"""Settings and role cards: all faults at once, each with line and key; nothing is used when one is wrong."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.card import RoleCard
from coordinator.domain.config import card_from, settings_from
from coordinator.domain.errors import BadInput
from coordinator.domain.settings import NotifyHook, Settings


def read(text: str) -> Settings:
    return settings_from(tomllib.loads(text), text, "coordinator.toml")


def faults(text: str) -> list[tuple[int, str]]:
    with pytest.raises(BadInput) as caught:
        read(text)
    return [(problem.line, problem.key) for problem in caught.value.problems]


def test_nothing_written_means_the_defaults() -> None:
    assert read("") == Settings()
    assert read("[fleet]\n[gate]\n") == Settings()


def test_every_setting_can_be_written_with_its_default() -> None:
    lines = []
    for section in fields(Settings):
        tree = getattr(Settings(), section.name)
        if section.name == "notify":
            continue
        lines.append(f"[{section.name}]")
        for field in fields(tree):
            value = getattr(tree, field.name)
            written = list(value) if isinstance(value, tuple) else value
            if isinstance(value, dict):
                lines += [f"{field.name}.{key} = {one!r}" for key, one in value.items()]
                continue
            lines.append(f"{field.name} = {str(written).lower() if isinstance(value, bool) else repr(written)}")
    text = "\n".join(lines).replace("''", '""')
    assert read(text) == Settings()


def test_values_are_taken_over() -> None:
    got = read('[fleet]\nagents = 8\nbackoff_s = "1m"\nmin_free_bytes = "2GB"\n[gate]\ncommands = ["make test"]\n')
    fleet = replace(Settings().fleet, agents=8, backoff_s=60.0, min_free_bytes=2 * 1024**3)
    assert got == Settings(fleet=fleet, gate=replace(Settings().gate, commands=("make test",)))


def test_each_hook_says_whom_to_tell_and_when() -> None:
    got = read('[[notify]]\ncommand = ["say"]\non = ["task_landed"]\n[[notify]]\nurl = "https://x.example/y"\n')
    assert [hook.on for hook in got.notify] == [("task_landed",), NotifyHook().on]
    assert [hook.url for hook in got.notify] == ["", "https://x.example/y"]


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("[[notify]]\n", 1, "notify[0]"),
        ('[[notify]]\nurl = "ftp://x"\n', 2, "notify[0].url"),
        ('[[notify]]\nurl = "http://x"\nurl_env = "X"\n', 3, "notify[0].url_env"),
        ('[[notify]]\nurl_env = "X"\n[[notify]]\ncommand = ["a"]\non = ["task_landed", "tea"]\n', 5, "notify[1].on[1]"),
        ('[[notify]]\nurl_env = "X"\nretry = 2\n', 3, "notify[0].retry"),
        ("notify = 3\n", 1, "notify"),
        ("notify = [3]\n", 1, "notify[0]"),
    ],
)
def test_a_hook_that_tells_nobody_is_no_hook(text: str, line: int, key: str) -> None:
    assert (line, key) in faults(text)


def test_all_faults_are_told_at_once_with_line_and_key() -> None:
    text = """\
[fleet]
agents = 0
agent = 3
silence_s = "3s"
grace_s = nan
[paths]
tasks = ".coordinator/inbox"
agents = "../x"
[land]
target = "a..b"
author_name = "x <y>"
hooks = "no"
[log]
format = "xml"
[gate]
commands = "make"
env = ["A B"]
[discovery]
tools = ["ruff", "magic"]
select = ["f401"]
[tele]
"""
    assert faults(text) == [
        (2, "fleet.agents"),
        (3, "fleet.agent"),
        (4, "fleet.silence_s"),
        (5, "fleet.grace_s"),
        (7, "paths.tasks"),
        (8, "paths.agents"),
        (10, "land.target"),
        (11, "land.author_name"),
        (12, "land.hooks"),
        (14, "log.format"),
        (16, "gate.commands"),
        (17, "gate.env[0]"),
        (19, "discovery.tools[1]"),
        (20, "discovery.select[0]"),
        (21, "tele"),
    ]


def test_a_section_that_is_no_table_is_a_fault() -> None:
    assert faults("fleet = 3\n") == [(1, "fleet")]


def test_lines_are_those_of_pyproject() -> None:
    text = '[project]\nname = "x"\n[tool.coordinator.fleet]\nagents = 101\n'
    with pytest.raises(BadInput, match=r"pyproject\.toml:4: tool\.coordinator\.fleet\.agents: 101 is out of range"):
        settings_from(tomllib.loads(text)["tool"]["coordinator"], text, "pyproject.toml", at=("tool", "coordinator"))


@pytest.mark.parametrize("target", ["main", "coordinator/main", "release-1.2/x_y", "a.b"])
def test_branches(target: str) -> None:
    assert read(f'[land]\ntarget = "{target}"\n').land.target == target


@pytest.mark.parametrize(
    "target",
    ["", "-x", "a/", "/a", "a//b", "a.lock", "a.lock/b", ".a", "a/.b", "a b", "a~1", "a@{1}", "refs/heads/x", "a."],
)
def test_no_branches(target: str) -> None:
    assert faults(f'[land]\ntarget = "{target}"\n') == [(2, "land.target")]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "box.lan"])
def test_hosts(host: str) -> None:
    got = read(f'[gateway]\nhost = "{host}"\nallowed_hosts = ["{host}"]\n').gateway
    assert (got.host, got.allowed_hosts) == (host, (host,))


@pytest.mark.parametrize("host", ["", "a b", "http://x", "x:80/", "[::1]", "*"])
def test_no_hosts(host: str) -> None:
    text = f'[gateway]\nhost = "{host}"\nallowed_hosts = ["box", "{host}"]\n'
    assert faults(text) == [(2, "gateway.host"), (3, "gateway.allowed_hosts[1]")]


@pytest.mark.parametrize("folder", ["", "/abs", "..", "../x", "a/../b", "a/..", ".", "./a", "a/"])
def test_a_folder_outside_the_repository_is_refused(folder: str) -> None:
    assert faults(f'[paths]\ntasks = "{folder}"\n') == [(2, "paths.tasks")]


def outcome(text: str) -> Settings | BadInput:
    try:
        return read(text)
    except BadInput as error:
        return error


values = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text("ab/. \n", max_size=4), st.lists(st.integers(), max_size=2)
)
names = [
    (section.name, field.name)
    for section in fields(Settings)
    if section.name != "notify"
    for field in fields(getattr(Settings(), section.name))
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(names), values)
def test_any_value_is_either_used_or_told(name: tuple[str, str], value: object) -> None:
    import tomlkit

    section, key = name
    text = tomlkit.dumps({section: {key: value}})
    got = outcome(text)
    if isinstance(got, BadInput):
        told = {problem.line for problem in got.problems}
        assert told == {2}
        return
    used = getattr(getattr(got, section), key)
    assert used == (tuple(value) if isinstance(value, list) else value)


def test_a_card_is_read() -> None:
    text = """\
command = ["{python}", "agent.py"]
timeout = "2m"
concurrency = 2
env = ["API_KEY"]
paths = ["src/**"]
memory_bytes = "1GB"
budget_usd = 2
network = false
model = "m"
description = "d"
"""
    assert card_from(text, "agents/x.toml", "x", "brief") == RoleCard(
        role="x",
        budget_usd=2.0,
        command=("{python}", "agent.py"),
        concurrency=2,
        description="d",
        env=("API_KEY",),
        file="agents/x.toml",
        memory_bytes=1024**3,
        model="m",
        network=False,
        paths=("src/**",),
        standing_brief="brief",
        timeout_s=120.0,
    )


@pytest.mark.parametrize(
    ("text", "role", "key"),
    [
        ("", "x", "command"),
        ('command = "sh run"', "x", "command"),
        ('external = true\ncommand = ["x"]', "x", "command"),
        ('comand = ["x"]\nexternal = true', "x", "comand"),
        ("command = [", "x", ""),
        ("command = []", "../x", ""),
        ("command = ['x']\nenv = ['A=B']", "x", "env[0]"),
        ("command = ['x']\npaths = ['../y']", "x", "paths[0]"),
    ],
)
def test_no_card(text: str, role: str, key: str) -> None:
    with pytest.raises(BadInput) as caught:
        card_from(text, "agents/x.toml", role)
    assert [problem.key for problem in caught.value.problems] == [key]


def test_a_command_may_be_left_empty_on_purpose() -> None:
    assert card_from("command = []", "agents/x.toml", "x").command == ()
    assert card_from("external = true", "agents/x.toml", "x").external


def test_each_tool_of_discovery_has_its_own_pace_limits_and_place() -> None:
    got = read("""
[discovery]
role = "claude"
model_severity = "high"
max_open_per_tool = 3

[[discovery.tool]]
name = "ruff"
cron = "30  4 * * mon"
path = ".venv/bin/ruff"
arguments = ["--preview"]
env = ["INDEX_URL"]
timeout_s = "2m"
memory_bytes = "1GB"
max_open = 0
inside = true

[[discovery.tool]]
name = "ruff-format"
interval_s = "24h"
""").discovery
    assert (got.role, got.model_severity, got.max_open_per_tool) == ("claude", "high", 3)
    ruff = got.of_tool("ruff")
    assert (ruff.cron, ruff.path, ruff.arguments, ruff.env) == (
        *("30 4 * * mon", ".venv/bin/ruff"),
        *(("--preview",), ("INDEX_URL",)),
    )
    assert (ruff.timeout_s, ruff.memory_bytes, ruff.max_open, ruff.inside) == (120.0, 1024**3, 0, True)
    assert (got.of_tool("ruff-format").interval_s, got.of_tool("ruff-format").max_open) == (86400.0, None)
    assert got.of_tool("another").interval_s is None


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('name = "sonar"', "discovery.tool[0].name"),
        ("inside = true", "discovery.tool[0].name"),
        ('name = "ruff"\ncron = "soon"', "discovery.tool[0].cron"),
        ('name = "ruff"\ncolour = "red"', "discovery.tool[0].colour"),
        ('name = "ruff"\ninterval_s = 0', "discovery.tool[0].interval_s"),
        ('name = "ruff"\n[[discovery.tool]]\nname = "ruff"', "discovery.tool[1].name"),
        ('name = "ruff"\ncommands = ["x"]', "discovery.tool[0].commands"),
        ('name = "sarif"\nfiles = ["x.sarif"]', "discovery.tool[0].files"),
    ],
)
def test_a_tool_s_table_that_cannot_be_is_named(line: str, key: str) -> None:
    assert [name for _, name in faults(f"[[discovery.tool]]\n{line}\n")] == [key]


def test_what_a_project_lives_with_has_a_reason_and_may_have_an_end() -> None:
    got = read("""
[discovery]
extra_tools = ["mypy"]
without_tools = ["npm-audit"]

[[discovery.dismissed]]
rule = "CVE-2024-1"
reason = "not reachable"
until = "2027-01-31"

[[discovery.dismissed]]
tool = "ruff"
rule = "S101"
path = "tests/**"
reason = "tests assert"
""").discovery
    assert [(one.rule, one.reason, one.until, one.tool, one.path) for one in got.dismissed] == [
        ("CVE-2024-1", "not reachable", "2027-01-31", "", ""),
        ("S101", "tests assert", "", "ruff", "tests/**"),
    ]
    assert (got.extra_tools, got.without_tools) == (("mypy",), ("npm-audit",))


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ('rule = "F401"', "reason"),
        ('reason = "so"', "rule"),
        ('rule = "F401"\nreason = "so"\nuntil = "2027-02-30"', "until"),
        ('rule = "F401"\nreason = "so"\nuntil = "soon"', "until"),
        ('rule = "F401"\nreason = "so"\ntool = "sonar"', "tool"),
        ('rule = "F401"\nreason = "so"\ncolour = "red"', "colour"),
    ],
)
def test_a_dismissal_that_cannot_be_is_named(lines: str, key: str) -> None:
    assert [name for _, name in faults(f"[[discovery.dismissed]]\n{lines}\n")] == [f"discovery.dismissed[0].{key}"]


def test_what_discovery_does_not_know_is_named() -> None:
    text = '[discovery]\ntools = ["ruff", "sonar"]\nmodel_severity = "bad"\nrole = "No Role"\n'
    assert [key for _, key in faults(text)] == ["discovery.tools[1]", "discovery.model_severity", "discovery.role"]
