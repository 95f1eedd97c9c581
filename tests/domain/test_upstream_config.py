"""Upstreams as they are written: defaults by kind, all faults at once, and no secret in any message."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.price import FREE, Price, TokenRates
from coordinator.domain.toml_position import TomlDocument
from coordinator.domain.toml_table import TomlTable
from coordinator.domain.upstream import UpstreamKind, UpstreamSettings, usual_upstream
from coordinator.domain.upstream_config import upstreams_from

if TYPE_CHECKING:
    from coordinator.domain.problem import Problem


def parse(text: str) -> tuple[tuple[UpstreamSettings, ...], list[Problem]]:
    """As below ``[gateway]`` of a configuration."""
    problems: list[Problem] = []
    data = tomllib.loads(text)
    top = TomlTable(TomlDocument(data, text, "coordinator.toml"), data, problems)
    gateway = top.table("gateway")
    assert gateway is not None
    return upstreams_from(gateway), sorted(problems)


def read(text: str) -> tuple[UpstreamSettings, ...]:
    found, problems = parse(text)
    assert problems == []
    return found


def faults(text: str) -> list[tuple[int, str]]:
    return [(problem.line, problem.key) for problem in parse(text)[1]]


def entry(*lines: str, kind: str = "vllm") -> str:
    return "\n".join(["[[gateway.upstreams]]", 'name = "one"', f'kind = "{kind}"', *lines]) + "\n"


def test_none_written_is_none() -> None:
    assert read("[gateway]\nport = 0\n") == ()
    assert read("[gateway]\nupstreams = []\n") == ()


@pytest.mark.parametrize("kind", list(UpstreamKind))
def test_name_and_kind_are_enough(kind: UpstreamKind) -> None:
    assert read(entry(kind=kind.value)) == (usual_upstream(kind, "one"),)


def test_a_kind_knows_its_environment_address_and_price() -> None:
    named = {kind: usual_upstream(kind, "x") for kind in UpstreamKind}
    assert {kind.value: (one.key_env, one.url_env, one.address({})) for kind, one in named.items()} == {
        "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "https://api.anthropic.com"),
        "echo": ("", "", ""),
        "google": ("GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL", "https://generativelanguage.googleapis.com"),
        "llama_cpp": ("", "LLAMA_CPP_URL", "http://localhost:8080"),
        "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL", "https://api.openai.com/v1"),
        "vllm": ("", "VLLM_URL", "http://localhost:8000"),
    }
    assert {kind.value for kind, one in named.items() if one.prices == (FREE,)} == {"echo", "llama_cpp", "vllm"}
    assert all(one.models for one in named.values())


def test_the_settings_say_where_it_is_before_the_environment_and_the_environment_before_the_kind() -> None:
    environment = {"VLLM_URL": " http://gpu:8000/ ", "OTHER": "http://other:1"}
    assert read(entry('url = "http://here:9/"'))[0].address(environment) == "http://here:9"
    assert read(entry())[0].address(environment) == "http://gpu:8000"
    assert read(entry('url_env = "OTHER"'))[0].address(environment) == "http://other:1"
    assert read(entry('url_env = ""'))[0].address(environment) == "http://localhost:8000"
    assert read(entry())[0].address({"VLLM_URL": " "}) == "http://localhost:8000"


def test_all_values_are_taken_over() -> None:
    text = entry(
        "affinity = false",
        'connect_s = "2s"',
        'first_byte_s = "15m"',
        'key_env = "TEAM_KEY"',
        "max_concurrency = 12",
        'models = ["qwen-*", "llama"]',
        'owner = "team-a"',
        "requests_per_s = 1.5",
        "silence_s = 60",
        'url = "https://gpu.example/api"',
        'url_env = ""',
        "weight = 0.5",
        "[[gateway.upstreams.prices]]",
        'models = ["qwen-*"]',
        "input = 1",
        "output = 2",
    )
    rates = TokenRates(cache_read_usd=1.0, cache_write_1h_usd=1.0, cache_write_usd=1.0, input_usd=1.0, output_usd=2.0)
    assert read(text) == (
        UpstreamSettings(
            affinity=False,
            connect_s=2.0,
            first_byte_s=900.0,
            key_env="TEAM_KEY",
            kind=UpstreamKind.VLLM,
            max_concurrency=12,
            models=("qwen-*", "llama"),
            name="one",
            owner="team-a",
            prices=(Price(models=("qwen-*",), rates=rates), FREE),
            requests_per_s=1.5,
            silence_s=60.0,
            url="https://gpu.example/api",
            weight=0.5,
        ),
    )


def test_every_setting_can_be_written_with_its_default() -> None:
    usual = usual_upstream(UpstreamKind.OPENAI, "one")
    lines = {field.name: getattr(usual, field.name) for field in fields(usual) if field.name != "prices"}
    text = tomlkit.dumps({"gateway": {"upstreams": [{**lines, "kind": "openai", "models": list(usual.models)}]}})
    assert read(text) == (usual,)


def test_all_faults_are_told_at_once_with_line_and_key() -> None:
    text = """\
[[gateway.upstreams]]
kind = "vllm"
[[gateway.upstreams]]
name = "Big One"
[[gateway.upstreams]]
name = "two"
kind = "gpt"
weigth = 1
weight = -1
max_concurrency = 1.5
models = []
requests_per_s = nan
first_byte_s = "soon"
affinity = "yes"
owner = "me too"
[[gateway.upstreams.prices]]
models = ["m"]
input = 1
[[gateway.upstreams]]
name = "two"
kind = "openai"
models = ["gpt 4"]
"""
    assert faults(text) == [
        (1, "gateway.upstreams[0].name"),
        (3, "gateway.upstreams[1].kind"),
        (4, "gateway.upstreams[1].name"),
        (7, "gateway.upstreams[2].kind"),
        (8, "gateway.upstreams[2].weigth"),
        (9, "gateway.upstreams[2].weight"),
        (10, "gateway.upstreams[2].max_concurrency"),
        (11, "gateway.upstreams[2].models"),
        (12, "gateway.upstreams[2].requests_per_s"),
        (13, "gateway.upstreams[2].first_byte_s"),
        (14, "gateway.upstreams[2].affinity"),
        (15, "gateway.upstreams[2].owner"),
        (16, "gateway.upstreams[2].prices[0].output"),
        (20, "gateway.upstreams[3].name"),
        (22, "gateway.upstreams[3].models[0]"),
    ]


@pytest.mark.parametrize("written", ["upstreams = 3", "upstreams = [3]"])
def test_what_is_no_array_of_tables_is_told(written: str) -> None:
    assert [line for line, _ in faults(f"[gateway]\n{written}\n")] == [2]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('key_env = "sk-ant-SECRET"', "key_env"),
        ('key_env = "SECRET KEY"', "key_env"),
        ("key_env = 'SECRET\n'", "key_env"),
        ('url_env = "http://SECRET@x"', "url_env"),
        ('url = "http://user:SECRET@host"', "url"),
        ('url = "http://host/?key=SECRET"', "url"),
        ('url = "SECRET"', "url"),
        ('url = "http://SECRET\u200bx"', "url"),
    ],
)
def test_what_may_be_a_secret_is_told_and_not_shown(line: str, key: str) -> None:
    if "\n" in line:
        line = line.replace("'", "'''")
    found, problems = parse(entry(line))
    assert [problem.key for problem in problems] == [f"gateway.upstreams[0].{key}"]
    assert "SECRET" not in str(problems)
    assert "SECRET" not in str(found)


def test_an_address_that_would_say_v1_twice_is_told() -> None:
    assert faults(entry('url = "http://gpu:8000/v1"')) == [(4, "gateway.upstreams[0].url")]
    assert faults(entry('url = "http://gpu:8000/v1/"', kind="anthropic")) == [(4, "gateway.upstreams[0].url")]
    for version in ("v1", "v1beta", "v1beta/"):
        (found,) = parse(entry(f'url = "http://proxy:8000/{version}"', kind="google"))[1]
        assert (found.key, found.expected) == (
            "gateway.upstreams[0].url",
            f"the address without /{version.rstrip('/')}",
        )
    assert read(entry('url = "https://proxy.example/v1"', kind="openai"))[0].url == "https://proxy.example/v1"


def test_echo_calls_nobody() -> None:
    text = entry('url = "http://x"', 'url_env = "X"', 'key_env = "X"', kind="echo")
    assert faults(text) == [
        (line, f"gateway.upstreams[0].{key}") for line, key in ((4, "url"), (5, "url_env"), (6, "key_env"))
    ]


def test_an_upstream_of_no_kind_is_asked_for_its_kind_and_for_nothing_else() -> None:
    assert faults('[[gateway.upstreams]]\nname = "one"\nurl = "http://x"\n') == [(1, "gateway.upstreams[0].kind")]


values = st.one_of(
    st.booleans(),
    st.integers(-(10**7), 10**7),
    st.floats(),
    st.text("aA/*:. \n", max_size=6),
    st.lists(st.sampled_from(["a", "a b", "", "c*"]), max_size=2),
)
names = [field.name for field in fields(UpstreamSettings) if field.name != "prices"]


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(list(UpstreamKind)), st.sampled_from(names), values)
def test_any_value_is_either_used_or_told(kind: UpstreamKind, name: str, value: object) -> None:
    written = {"kind": kind.value, "name": "one", name: value}
    found, problems = parse(tomlkit.dumps({"gateway": {"upstreams": [written]}}))
    if problems:
        assert {problem.key.partition("[0].")[2].partition("[")[0] for problem in problems} == {name}
        return
    used = tuple(value) if isinstance(value, list) else value
    assert found == (replace(usual_upstream(kind, "one"), **{name: used}),)
