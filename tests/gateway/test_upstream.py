"""Where calls go and with whose key: from the settings and the environment, and from no caller."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.api import diagnosis, verbs_status
from coordinator.domain.settings import GatewaySettings, Settings
from coordinator.domain.upstream import UpstreamKind, usual_upstream
from coordinator.gateway import place
from coordinator.gateway.claimant import Claimant
from coordinator.gateway.upstream import Upstream as Known
from coordinator.gateway.upstream import upstreams_of
from coordinator.sdk.layout import Layout
from coordinator.surface.metrics import exposition
from tests.gateway.rig import House, Upstream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KEY = {"ANTHROPIC_API_KEY": "k"}


@pytest.mark.parametrize(
    ("enabled", "environment", "wanted"),
    [
        ("auto", {}, False),
        ("auto", KEY, True),
        ("auto", {"ANTHROPIC_API_KEY": "  "}, False),
        ("auto", {"ANTHROPIC_AUTH_TOKEN": "t"}, True),
        ("auto", {"OPENAI_API_KEY": "o"}, True),
        ("auto", {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8080"}, True),
        ("auto", {"GEMINI_API_KEY": "g"}, True),
        ("auto", {"GOOGLE_API_KEY": "g"}, True),
        ("auto", {"GEMINI_API_KEY": "g", "CLAUDE_CODE_OAUTH_TOKEN": "s"}, False),
        ("auto", {**KEY, "GEMINI_API_KEY": "g", "CLAUDE_CODE_OAUTH_TOKEN": "s"}, True),
        ("on", {"GEMINI_API_KEY": "g", "CLAUDE_CODE_OAUTH_TOKEN": "s"}, True),
        ("off", KEY, False),
        ("on", {}, True),
    ],
)
def test_it_runs_when_there_is_something_to_call(enabled: str, environment: Mapping[str, str], wanted: bool) -> None:
    assert upstreams_of(GatewaySettings(enabled=enabled), environment).wanted is wanted


def known(environment: Mapping[str, str], **settings: Any) -> dict[str, Known]:
    return {one.name: one for one in upstreams_of(GatewaySettings(**settings), environment).known}


def test_settings_come_before_the_environment() -> None:
    environment = {**KEY, "ANTHROPIC_BASE_URL": "http://env:1/", "OPENAI_BASE_URL": "http://env:2/v1"}
    environment["GOOGLE_GEMINI_BASE_URL"] = "http://env:3/gemini/"
    found = known(environment, anthropic_url="http://set:1/prefix/")
    assert (found["anthropic"].url, found["anthropic"].base) == ("http://set:1/prefix", b"/prefix")
    assert (found["openai"].url, found["openai"].base) == ("http://env:2/v1", b"/v1")
    assert (found["google"].url, found["google"].base) == ("http://env:3/gemini", b"/gemini")
    assert known(environment, google_url="http://set:3")["google"].url == "http://set:3"
    usual = known({**KEY, "OPENAI_API_KEY": "o"})
    assert [one.url for one in usual.values()] == [
        "https://api.anthropic.com",
        "https://api.openai.com/v1",
        "https://generativelanguage.googleapis.com",
    ]


def test_a_server_of_ones_own_takes_the_models_that_no_provider_has() -> None:
    found = known({**KEY, "LLAMA_CPP_URL": "http://127.0.0.1:8080"})
    assert list(found) == ["anthropic", "openai", "google", "llama_cpp"]
    assert [one.settings.models for one in found.values() if "*" in one.settings.models] == [("*",)]
    assert found["llama_cpp"].url == "http://127.0.0.1:8080"
    assert "*" in known(KEY)["anthropic"].settings.models


def test_listed_upstreams_are_all_there_are() -> None:
    local = usual_upstream(UpstreamKind.VLLM, "big")
    found = known({**KEY, "VLLM_URL": "http://gpu:8000"}, upstreams=(local,))
    assert [(one.name, one.url, one.given, one.fault) for one in found.values()] == [
        ("big", "http://gpu:8000", True, "")
    ]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "has no ANTHROPIC_API_KEY"),
        ({"ANTHROPIC_API_KEY": "a\nb"}, "has signs"),
        ({**KEY, "ANTHROPIC_BASE_URL": "ftp://x"}, "no plain http"),
        ({**KEY, "ANTHROPIC_BASE_URL": "https://user:pw@x"}, "no plain http"),
        ({**KEY, "ANTHROPIC_BASE_URL": "https://[x"}, "no plain http"),
        ({**KEY, "ANTHROPIC_BASE_URL": "https://x:99999"}, "no plain http"),
        ({**KEY, "ANTHROPIC_BASE_URL": "https://api.anthropic.com"}, ""),
        ({"ANTHROPIC_BASE_URL": "https://api.anthropic.com/"}, "has no ANTHROPIC_API_KEY"),
        ({"ANTHROPIC_BASE_URL": "http://127.0.0.1:8080"}, ""),
    ],
)
def test_what_stands_in_the_way_is_named(environment: Mapping[str, str], said: str) -> None:
    fault = known(environment, enabled="on")["anthropic"].fault
    assert said in fault
    assert bool(said) == bool(fault)
    assert "pw" not in fault


def test_both_kinds_of_key_are_sent_and_none_is_printed() -> None:
    both = known({"ANTHROPIC_API_KEY": "key-1", "ANTHROPIC_AUTH_TOKEN": "token-1"})["anthropic"]
    sent = both.up(((b"X-Api-Key", b"cck"), (b"AUTHORIZATION", b"Bearer cck"), (b"anthropic-beta", b"b")))
    assert sent == [(b"anthropic-beta", b"b"), (b"x-api-key", b"key-1"), (b"Authorization", b"Bearer token-1")]
    assert "key-1" not in repr(both)
    assert "token-1" not in repr(both)


def test_google_gets_one_key_the_second_where_there_is_no_first() -> None:
    first, second = {"GEMINI_API_KEY": "key-1"}, {"GOOGLE_API_KEY": "key-2"}
    for environment, key in (({**first, **second}, b"key-1"), (first, b"key-1"), (second, b"key-2")):
        google = known(environment)["google"]
        sent = google.up(((b"X-Goog-Api-Key", b"cck"), (b"authorization", b"Bearer cck"), (b"x-goog-x", b"y")))
        assert sent == [(b"x-goog-x", b"y"), (b"x-goog-api-key", key)]
        assert "key-" not in repr(google)
    odd = known({"GEMINI_API_KEY": "a\nb", **second}, enabled="on")["google"]
    assert (odd.fault, odd.credentials) == ("the coordinator's GEMINI_API_KEY has signs in it that cannot be sent", ())


def test_googles_second_key_is_no_substitute_for_one_of_ones_own() -> None:
    usual = usual_upstream(UpstreamKind.GOOGLE, "team")
    for key_env, sent in (("TEAM_KEY", ()), ("", ()), ("GEMINI_API_KEY", ((b"x-goog-api-key", b"key-2"),))):
        described = replace(usual, key_env=key_env, url="http://127.0.0.1:1")
        found = known({"GOOGLE_API_KEY": "key-2"}, upstreams=(described,))["team"]
        assert (found.credentials, found.fault) == (sent, "")


def test_a_listed_upstream_of_googles_is_meant_whatever_else_there_is() -> None:
    described = usual_upstream(UpstreamKind.GOOGLE, "team")
    environment = {"GEMINI_API_KEY": "g", "CLAUDE_CODE_OAUTH_TOKEN": "s"}
    assert upstreams_of(GatewaySettings(upstreams=(described,)), environment).wanted


async def test_no_key_is_said_in_a_way_that_ends_the_client(tmp_path: Path) -> None:
    async with House(tmp_path, "https://api.anthropic.com", environment={}, openai_url="") as house:
        got = await house.reply()
        assert (got.status, got.headers["x-should-retry"]) == (401, "false")
        assert got.error["type"] == "authentication_error"
        assert "the coordinator has no ANTHROPIC_API_KEY" in got.error["message"]


async def test_where_it_is_off_it_has_nothing_to_tell(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        house = House(tmp_path, upstream.url)
        off = type(house.gateway)(
            tmp_path,
            GatewaySettings(enabled="off"),
            KEY,
            house.bus,
            house.gateway._clock,
            origins={},
            render=exposition,
            who=lambda *_: Claimant(),
        )
        off.open()
        stopping = asyncio.Event()
        running = asyncio.create_task(off.run(stopping))
        assert (off.on, off.url, off.credentials("t", 1), off.calls("t", 1)) == (False, "", ("", ""), None)
        off.revoke("t", 1)
        off.conclude("t", 1)
        stopping.set()
        await asyncio.wait_for(running, 1)
        off.close()
        assert list(tmp_path.iterdir()) == []


def test_doctor_and_status_say_where_calls_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_BASE_URL",
        "GEMINI_API_KEY",
        "GOOGLE_API_KEY",
        "GOOGLE_GEMINI_BASE_URL",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    layout = Layout(tmp_path, tmp_path)
    desk: Any = SimpleNamespace(settings=Settings(), layout=layout, live=object())

    def doctor() -> tuple[str, str]:
        (found,) = diagnosis._gateway(desk)
        return found.status, found.detail

    assert doctor() == ("ok", "is off: no provider's key or URL is set here; agents reach models by themselves")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret-key")
    assert (
        doctor()[1]
        == "anthropic at https://api.anthropic.com answers for claude-*, *, with the key of this environment"
    )
    assert verbs_status._gateway(desk) == {"url": "", "upstreams": []}
    place.write(tmp_path, "127.0.0.1", 20_123, b"s" * 32, pid=os.getpid())
    found = verbs_status._gateway(desk)
    assert found == {"url": "http://127.0.0.1:20123", "upstreams": ["https://api.anthropic.com"]}
    place.write(tmp_path, "127.0.0.1", 20_123, b"s" * 32, pid=0)
    assert verbs_status._gateway(desk)["url"] == ""
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "https://api.anthropic.com")
    assert doctor()[0] == "fail"


def test_the_library_is_loaded_by_who_serves_only() -> None:
    """0.2 s that a daemon without a gateway, a verb and an agent do not pay."""
    names = {"aiohttp", "cachebox", "httptools", "msgspec", "prometheus_client", "uvloop", "xxhash"}
    program = (
        f"import sys, coordinator.gateway.gateway, coordinator.api.verbs_status; print({names} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
