"""Where calls go and with whose key: from the settings and the environment, and from no caller."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.api import diagnosis, verbs_status
from coordinator.domain.settings import GatewaySettings, Settings
from coordinator.gateway import place
from coordinator.gateway.refusal import Refused
from coordinator.gateway.upstream import upstreams_of
from coordinator.sdk.layout import Layout
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
        ("off", KEY, False),
        ("on", {}, True),
    ],
)
def test_it_runs_when_there_is_something_to_call(enabled: str, environment: Mapping[str, str], wanted: bool) -> None:
    assert upstreams_of(GatewaySettings(enabled=enabled), environment).wanted is wanted


def test_settings_come_before_the_environment() -> None:
    environment = {**KEY, "ANTHROPIC_BASE_URL": "http://env:1/", "OPENAI_BASE_URL": "http://env:2/v1"}
    found = upstreams_of(GatewaySettings(anthropic_url="http://set:1/prefix/"), environment)
    assert found.way("POST", "/v1/messages?beta=true", openai=False)[1] == "http://set:1/prefix/v1/messages?beta=true"
    assert found.way("POST", "/v1/responses", openai=False)[1] == "http://env:2/v1/responses"
    usual = upstreams_of(GatewaySettings(), {**KEY, "OPENAI_API_KEY": "o"})
    assert usual.way("POST", "/v1/messages", openai=False)[1] == "https://api.anthropic.com/v1/messages"
    assert usual.way("POST", "/v1/embeddings", openai=False)[1] == "https://api.openai.com/v1/embeddings"


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
    fault = upstreams_of(GatewaySettings(enabled="on"), environment).anthropic.fault
    assert said in fault
    assert bool(said) == bool(fault)
    assert "pw" not in fault


def test_both_kinds_of_key_are_sent_and_none_is_printed() -> None:
    both = upstreams_of(GatewaySettings(), {"ANTHROPIC_API_KEY": "key-1", "ANTHROPIC_AUTH_TOKEN": "token-1"})
    sent = both.anthropic.up((("X-Api-Key", "cck"), ("AUTHORIZATION", "Bearer cck"), ("anthropic-beta", "b")))
    assert sent == (("anthropic-beta", "b"), ("x-api-key", "key-1"), ("Authorization", "Bearer token-1"))
    assert "key-1" not in repr(both)
    assert "token-1" not in repr(both)


def test_a_path_is_chosen_from_a_list() -> None:
    found = upstreams_of(GatewaySettings(), KEY)
    for path in ("/v1/messages/", "/v1/messagesx", "/v1/models/a/b", "/v1/models/a%2fb", "/v1//messages", ""):
        with pytest.raises(Refused):
            found.way("POST", path, openai=False)


async def test_no_key_is_said_in_a_way_that_ends_the_client(tmp_path: Path) -> None:
    async with House(tmp_path, "https://api.anthropic.com", environment={}) as house:
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
            is_live=lambda *_: True,
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
    assert doctor()[1].endswith("go to https://api.anthropic.com, with the key of this environment")
    assert verbs_status._gateway(desk) == {"url": "", "upstreams": []}
    place.write(tmp_path, 20_123, b"s" * 32, pid=os.getpid())
    found = verbs_status._gateway(desk)
    assert found == {"url": "http://127.0.0.1:20123", "upstreams": ["https://api.anthropic.com"]}
    place.write(tmp_path, 20_123, b"s" * 32, pid=0)
    assert verbs_status._gateway(desk)["url"] == ""
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "https://api.anthropic.com")
    assert doctor()[0] == "fail"


def test_the_library_is_loaded_by_who_serves_only() -> None:
    """0.2 s that a daemon without a gateway, a verb and an agent do not pay."""
    program = "import sys, coordinator.gateway.gateway, coordinator.api.verbs_status; print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
