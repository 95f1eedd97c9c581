from __future__ import annotations

import re
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coordinator.api import diagnosis
from coordinator.api.diagnosis import Diagnosis, _tools, examine
from coordinator.api.verb import NoArguments
from coordinator.api.verbs_setup import init, settings_sheet
from coordinator.domain.config import settings_from
from coordinator.domain.settings import DiscoverySettings, Settings, ToolSettings, TraceSettings
from coordinator.kit.files import read_settings

if TYPE_CHECKING:
    from tests.api.conftest import Place


def test_the_settings_sheet_is_every_default_and_its_meaning() -> None:
    sheet = settings_sheet()
    assert all(line.startswith("#") or not line for line in sheet.splitlines())
    text = "\n".join(re.sub("^# (?! )", "", line) for line in sheet.splitlines())
    text = text.partition("\n")[2]
    data = tomllib.loads(text)
    assert settings_from(data, text, "coordinator.toml") == Settings()
    assert "The spool. Read recursively" in sheet


async def test_init_writes_what_is_missing_and_nothing_else(place: Place) -> None:
    mine = place.desk.root / "coordinator.toml"
    mine.write_text("[fleet]\nagents = 2\n")
    reply = await init(place.desk, NoArguments())
    assert reply.data["kept"] == ["coordinator.toml"]
    assert reply.data["written"] == ["tasks/README.md"]
    assert mine.read_text() == "[fleet]\nagents = 2\n"
    mine.unlink()
    assert (await init(place.desk, NoArguments())).data["written"] == ["coordinator.toml"]
    assert read_settings(place.desk.root) == Settings()


def _init(root: Path, branch: str) -> None:
    subprocess.run(["git", "init", "-q", "-b", branch, str(root)], check=True)


@pytest.mark.parametrize(
    ("host", "status", "said"),
    [
        ("127.0.0.1", [], ""),
        ("0.0.0.0", ["warn"], "other machines can reach it at 0.0.0.0"),
        ("203.0.113.254", ["fail"], "no address of this machine"),
    ],
)
async def test_the_doctor_says_who_can_reach_the_gateway(place: Place, host: str, status: list[str], said: str) -> None:
    gateway = replace(place.desk.settings.gateway, enabled="on", host=host, openai_url="http://127.0.0.1:1")
    desk = replace(place.offline, settings=replace(place.desk.settings, gateway=gateway))
    found = [one for one in await examine(desk) if one.check == "gateway" and "[gateway] host" in one.remedy]
    assert [one.status for one in found] == status
    assert all(said in one.detail for one in found)


@pytest.mark.parametrize(
    ("export", "environment", "status", "said"),
    [
        ("auto", {}, [], ""),
        ("on", {}, ["ok"], "go to http://localhost:4318"),
        ("auto", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://u:secret@c:1/x"}, ["ok"], "go to http://c:1"),
        ("on", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["warn"], "wants grpc"),
        ("on", {"missing": "1"}, ["warn"], "OpenTelemetry is not installed"),
        ("off", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1"}, [], ""),
    ],
)
async def test_the_doctor_says_where_spans_go(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    export: str,
    environment: dict[str, str],
    status: list[str],
    said: str,
) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "missing" in environment:
        monkeypatch.setattr(diagnosis, "LIBRARIES", ("opentelemetry.not_there.at_all", "opentelemetry.sdk.trace"))
    desk = replace(place.offline, settings=replace(place.desk.settings, traces=TraceSettings(export=export)))
    found = [one for one in await examine(desk) if one.check == "traces"]
    assert [one.status for one in found] == status
    assert all(said in one.detail for one in found)
    if "missing" in environment:
        assert found[0].remedy == "pip install 'agent-fleet-coordinator[otel]'"


async def test_the_doctor_names_each_thing_with_its_remedy(place: Place) -> None:
    root = place.desk.root
    found = {one.check: one for one in await examine(place.offline)}
    assert found["repository"].status == "fail"
    _init(root, "coordinator/main")
    (root / "coordinator.toml").write_text("[fleet]\nagnts = 2\n[gate]\nbatch = 0\n")
    (root / "agents").mkdir()
    (root / "agents" / "bad.toml").write_text("command = 3\n")
    everything = await examine(place.offline)
    faults = {one.check for one in everything if one.status == "fail"}
    assert faults >= {"commits", "target", "settings", "role card"}
    assert sum(one.check == "settings" for one in everything) == 2
    assert all(one.remedy for one in everything if one.status == "fail")
    assert not list(root.rglob(".coordinator-doctor-*"))


async def test_the_doctor_tells_where_each_tool_is_that_the_project_calls_for(place: Place) -> None:
    def tools(settings: Settings) -> dict[str, Diagnosis]:
        return {one.check: one for one in _tools(replace(place.desk, settings=settings))}

    assert tools(Settings()) == {}
    (place.desk.root / "a.py").write_text("x = 1\n")
    found = tools(Settings())
    assert (list(found), found["ruff"].status) == (["ruff"], "ok")
    assert Path(found["ruff"].detail).is_file()
    named = Settings(discovery=DiscoverySettings(tools=("ruff-format",)))
    assert list(tools(named)) == ["ruff-format"]
    elsewhere = DiscoverySettings(tool=(ToolSettings(name="ruff", path="tools/ruff"),))
    (missing,) = tools(Settings(discovery=elsewhere)).values()
    assert (missing.status, missing.remedy) == ("warn", "name a program, or take path out")
    assert "tools/ruff" in missing.detail
    assert "it does not scan" in missing.detail
