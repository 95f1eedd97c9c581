"""Settings and role cards as a person writes them, turned into the frozen values of ``settings`` and ``card``.

Owns one invariant: either every key is known and within its bounds, or nothing is used and all problems are named at
once. Defaults are those of the dataclasses; no file is read here.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.card import DRIVERS, PERMISSION_MODES, RoleCard
from coordinator.domain.control_config import arms_from, control_from, router_from, scale_from
from coordinator.domain.discovery_config import discovery_from
from coordinator.domain.errors import BadInput
from coordinator.domain.price import prices_from
from coordinator.domain.problem import Problem
from coordinator.domain.role_route import role_routes_from
from coordinator.domain.settings import (
    OCCASIONS,
    FleetSettings,
    GateSettings,
    GatewaySettings,
    LandSettings,
    LogSettings,
    NotifyHook,
    PathSettings,
    RetentionSettings,
    Settings,
    TraceSettings,
)
from coordinator.domain.task import TASK_ID
from coordinator.domain.taskfile import GLOB, LONGEST_TIMEOUT_S
from coordinator.domain.toml_position import TomlDocument, read_document
from coordinator.domain.toml_table import ENV_NAME, TomlTable
from coordinator.domain.upstream_config import upstreams_from

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST_NAME: Final = re.compile(r"[0-9A-Za-z.:-]{1,253}")
HOST_RULE: Final = "an address of this machine, e.g. 127.0.0.1 or ::1"

_LONGEST_DAYS: Final = 36_500.0
_DAY_S: Final = 24 * 3600.0
_LARGEST_BYTES: Final = 1 << 50
_ADDRESS: Final = re.compile(r"(https?://[^\s/?#@]+(/[^\s?#@]*)?)?")
_BRANCH: Final = re.compile(
    r"(?!-)(?!refs/)(?!.*(?:\.\.|//|@\{|/\.|\.lock(?:/|$)))(?![./])[^\x00-\x20\x7f~^:?*\[\\]+(?<![./])"
)
_FOLDER: Final = re.compile(r"(?!/)(?!\.{1,2}(?:/|$))(?!.*(?:^|/)\.{1,2}(?:/|$))[^\\]*[^/\\]")
_MODEL: Final = re.compile(r"[^\s\"\\]{1,200}")
_PERSON: Final = re.compile(r"[^<>\n]*[^<>\s][^<>\n]*")
_URL: Final = re.compile(r"https?://[^\s]+")
_ENV_RULE: Final = "the name of an environment variable"
_CARD_TIMEOUT_S: Final = RoleCard(role="any").timeout_s
_CARD_KEYS: Final = frozenset(
    {
        "budget_usd",
        "command",
        "concurrency",
        "description",
        "driver",
        "env",
        "external",
        "max_turns",
        "memory_bytes",
        "model",
        "models",
        "network",
        "paths",
        "permission_mode",
        "retrieve",
        "stall",
        "timeout",
        "tools",
        "variables",
    }
)


def settings_from(data: Mapping[str, Any], text: str, file: str, *, at: tuple[str, ...] = ()) -> Settings:
    """The settings in the table ``data``, at ``at`` in the document ``text``. Raises ``BadInput`` with every problem found."""
    problems: list[Problem] = []
    document = TomlDocument(data, text.removeprefix("\ufeff").replace("\r\n", "\n"), file)
    top = TomlTable(document, data, problems, at=at, name=".".join(at))
    top.check_keys(Settings.__dataclass_fields__)
    settings = Settings(
        control=control_from(_table(top, "control", document, problems)),
        discovery=discovery_from(_table(top, "discovery", document, problems)),
        fleet=_fleet(_table(top, "fleet", document, problems)),
        gate=_gate(_table(top, "gate", document, problems)),
        gateway=_gateway(_table(top, "gateway", document, problems)),
        land=_land(_table(top, "land", document, problems)),
        log=_log(_table(top, "log", document, problems)),
        notify=tuple(map(_hook, top.tables("notify"))),
        paths=_paths(_table(top, "paths", document, problems)),
        retention=_retention(_table(top, "retention", document, problems)),
        router=router_from(_table(top, "router", document, problems)),
        scale=scale_from(_table(top, "scale", document, problems)),
        traces=_traces(_table(top, "traces", document, problems)),
    )
    if problems:
        raise BadInput(sorted(problems))
    return settings


def _table(top: TomlTable, key: str, document: TomlDocument, problems: list[Problem]) -> TomlTable:
    return top.table(key) or TomlTable(document, {}, problems)


def _fleet(table: TomlTable) -> FleetSettings:
    usual = FleetSettings()
    table.check_keys(FleetSettings.__dataclass_fields__)
    settings = FleetSettings(
        agents=table.integer("agents", usual.agents, 1, 100),
        crash_loop=table.integer("crash_loop", usual.crash_loop, 2, 100),
        finish_s=table.seconds("finish_s", usual.finish_s, 0.1, _DAY_S),
        loop_repeats=table.integer("loop_repeats", usual.loop_repeats, 3, 1000),
        quick_death_s=table.seconds("quick_death_s", usual.quick_death_s, 0.0, _DAY_S),
        ramp_s=table.seconds("ramp_s", usual.ramp_s, 0.0, 600.0),
        stall_s=table.seconds("stall_s", usual.stall_s, 0.1, _DAY_S),
        think_limit_s=table.seconds("think_limit_s", usual.think_limit_s, 0.1, _DAY_S),
        tool_limit_s=table.seconds("tool_limit_s", usual.tool_limit_s, 0.1, _DAY_S),
        backoff_s=table.seconds("backoff_s", usual.backoff_s, 0.0, 300.0),
        default_role=table.text(
            "default_role", usual.default_role, expected="the name of a role card", pattern=TASK_ID
        ),
        drain_s=table.seconds("drain_s", usual.drain_s, 0.0, 86_400.0),
        grace_s=table.seconds("grace_s", usual.grace_s, 0.0, 3600.0),
        heartbeat_s=table.seconds("heartbeat_s", usual.heartbeat_s, 0.05, 3600.0),
        idle_exit_s=table.seconds("idle_exit_s", usual.idle_exit_s, 0.0, _DAY_S),
        max_attempts=table.integer("max_attempts", usual.max_attempts, 1, 100),
        min_free_memory_bytes=table.size("min_free_memory_bytes", usual.min_free_memory_bytes, 0, _LARGEST_BYTES),
        min_free_bytes=table.size("min_free_bytes", usual.min_free_bytes, 0, _LARGEST_BYTES),
        rescan_s=table.seconds("rescan_s", usual.rescan_s, 0.1, 3600.0),
        silence_s=table.seconds("silence_s", usual.silence_s, 0.1, _DAY_S),
    )
    if settings.silence_s < 2 * settings.heartbeat_s:
        key = "silence_s" if "silence_s" in table else "heartbeat_s"
        table.wrong(key, "every attempt would be taken for dead", "silence_s of at least twice heartbeat_s")
    return settings


def _gate(table: TomlTable) -> GateSettings:
    usual = GateSettings()
    table.check_keys(GateSettings.__dataclass_fields__)
    return GateSettings(
        batch=table.integer("batch", usual.batch, 1, 100),
        commands=table.texts("commands", usual.commands, expected="a shell command line", lines=True, longest=20_000),
        env=table.texts("env", usual.env, expected=_ENV_RULE, pattern=ENV_NAME),
        memory_bytes=table.size("memory_bytes", usual.memory_bytes, 0, _LARGEST_BYTES),
        output_bytes=table.size("output_bytes", usual.output_bytes, 1024, _LARGEST_BYTES),
        python=table.text("python", usual.python, expected="the path of a Python interpreter", longest=4096),
        retry_s=table.seconds("retry_s", usual.retry_s, 0.1, _DAY_S),
        timeout_s=table.seconds("timeout_s", usual.timeout_s, 0.1, LONGEST_TIMEOUT_S),
        untested=table.choice("untested", usual.untested, ("land", "stop")),
    )


def _gateway(table: TomlTable) -> GatewaySettings:
    usual = GatewaySettings()
    table.check_keys(GatewaySettings.__dataclass_fields__)
    aliases, upstreams = _aliases(table), upstreams_from(table)
    address = "an address such as http://127.0.0.1:8080, without user, password and query"
    settings = GatewaySettings(
        agent_calls_per_s=table.number("agent_calls_per_s", usual.agent_calls_per_s, 0.0, 1e6),
        aliases=aliases,
        allowed_hosts=table.texts(
            "allowed_hosts", expected="a host's name or address, without a port", pattern=HOST_NAME
        ),
        anthropic_url=table.text(
            "anthropic_url", usual.anthropic_url, expected=address, longest=2048, pattern=_ADDRESS
        ),
        body_bytes=table.size("body_bytes", usual.body_bytes, 1024, 1 << 30),
        call_budget_usd=table.number("call_budget_usd", usual.call_budget_usd, 0.0, 1e6),
        calls_per_agent=table.integer("calls_per_agent", usual.calls_per_agent, 1, 100_000),
        day_budget_usd=table.number("day_budget_usd", usual.day_budget_usd, 0.0, 1e6),
        dedup=table.choice("dedup", usual.dedup, ("loose", "off", "strict")),
        dedup_across_owners=table.flag("dedup_across_owners", usual.dedup_across_owners),
        enabled=table.choice("enabled", usual.enabled, ("auto", "off", "on")),
        fleet_calls_per_s=table.number("fleet_calls_per_s", usual.fleet_calls_per_s, 0.0, 1e6),
        google_url=table.text("google_url", usual.google_url, expected=address, longest=2048, pattern=_ADDRESS),
        hold_s=table.seconds("hold_s", usual.hold_s, 0.0, 3600.0),
        host=table.text("host", usual.host, expected=HOST_RULE, pattern=HOST_NAME),
        openai_url=table.text("openai_url", usual.openai_url, expected=address, longest=2048, pattern=_ADDRESS),
        port=table.integer("port", usual.port, 0, 65_535),
        prices=prices_from(table),
        promote_s=table.seconds("promote_s", usual.promote_s, 0.1, 3600.0),
        roles=role_routes_from(table, upstreams, aliases),
        room=table.integer("room", usual.room, 0, 1_000_000),
        stall_s=table.seconds("stall_s", usual.stall_s, 0.1, _DAY_S),
        total_budget_usd=table.number("total_budget_usd", usual.total_budget_usd, 0.0, 1e9),
        upstreams=upstreams,
        width=table.integer("width", usual.width, 1, 100_000),
    )
    if 0 < settings.port < 1024:
        table.wrong("port", f"{settings.port} is the system's", "0, or a port from 1024 to 65535")
    return _failing(table, settings)


def _failing(table: TomlTable, usual: GatewaySettings) -> GatewaySettings:
    """With what is done about upstreams that fail."""
    return replace(
        usual,
        breaker_window=table.integer("breaker_window", usual.breaker_window, 0, 1000),
        close_rate=table.number("close_rate", usual.close_rate, 0.01, 1.0),
        failures_to_open=table.integer("failures_to_open", usual.failures_to_open, 1, 1000),
        longest_probe_s=table.seconds("longest_probe_s", usual.longest_probe_s, 0.1, _DAY_S),
        open_rate=table.number("open_rate", usual.open_rate, 0.01, 1.0),
        probe_every_s=table.seconds("probe_every_s", usual.probe_every_s, 0.05, 3600.0),
        probe_growth=table.number("probe_growth", usual.probe_growth, 1.0, 10.0),
        probes_to_close=table.integer("probes_to_close", usual.probes_to_close, 1, 100),
        retries=table.integer("retries", usual.retries, 0, 10),
        retry_share=table.number("retry_share", usual.retry_share, 0.0, 1.0),
    )


def _aliases(gateway: TomlTable) -> dict[str, str]:
    table = gateway.table("aliases")
    if table is None:
        return {}
    for name in table.data:
        if _MODEL.fullmatch(name) is None:
            table.wrong(name, "is no name of a model", "one word")
    said = {name: table.text(name, expected="the id of a model", longest=200, pattern=_MODEL) for name in table.data}
    for name, model in said.items():
        if model in said:
            table.wrong(name, f'"{model}" is an alias itself', "the id of a model")
    return said


def _land(table: TomlTable) -> LandSettings:
    usual = LandSettings()
    table.check_keys(LandSettings.__dataclass_fields__)
    person = "text without < and >"
    return LandSettings(
        author_email=table.text("author_email", usual.author_email, expected=person, pattern=_PERSON),
        author_name=table.text("author_name", usual.author_name, expected=person, pattern=_PERSON),
        hooks=table.flag("hooks", usual.hooks),
        target=table.text("target", usual.target, expected="a branch's name, e.g. coordinator/main", pattern=_BRANCH),
    )


def _log(table: TomlTable) -> LogSettings:
    usual = LogSettings()
    table.check_keys(LogSettings.__dataclass_fields__)
    return LogSettings(
        format=table.choice("format", usual.format, ("json", "text")),
        level=table.choice("level", usual.level, ("debug", "error", "info", "warning")),
    )


def _hook(table: TomlTable) -> NotifyHook:
    usual = NotifyHook()
    table.check_keys(NotifyHook.__dataclass_fields__)
    expected = "one of " + ", ".join(OCCASIONS)
    on = table.texts("on", usual.on, expected=expected)
    for index, occasion in enumerate(on):
        if occasion not in OCCASIONS:
            table.wrong("on", f'"{occasion}" is not known', expected, inside=(index,))
    ways = [key for key in ("command", "url", "url_env") if table.data.get(key)]
    if len(ways) != 1:
        table.wrong(
            ways[-1] if ways else "",
            "two ways to tell" if ways else "tells nobody",
            "exactly one of command, url and url_env",
        )
    return NotifyHook(
        command=table.texts("command", expected="the program and its arguments", lines=True, longest=100_000),
        on=on,
        retries=table.integer("retries", usual.retries, 0, 20),
        timeout_s=table.seconds("timeout_s", usual.timeout_s, 0.1, 600.0),
        url=table.text("url", expected="https://…", pattern=_URL, longest=4096),
        url_env=table.text("url_env", expected=_ENV_RULE, pattern=ENV_NAME),
    )


def _paths(table: TomlTable) -> PathSettings:
    usual = PathSettings()
    table.check_keys(PathSettings.__dataclass_fields__)
    rule = "a folder inside the repository, relative to its top"
    folders = {
        name: table.text(name, str(getattr(usual, name)), expected=rule, pattern=_FOLDER)
        for name in ("agents", "state", "tasks")
    }
    for name, other in (("tasks", "agents"), ("state", "agents"), ("state", "tasks")):
        one, two = folders[name] + "/", folders[other] + "/"
        if one.startswith(two) or two.startswith(one):
            key = name if name in table else other
            table.wrong(key, f"{name} and {other} would lie one in the other", "folders apart from each other")
    return PathSettings(**folders)


def _retention(table: TomlTable) -> RetentionSettings:
    usual = RetentionSettings()
    table.check_keys(RetentionSettings.__dataclass_fields__)
    return RetentionSettings(
        attempts_days=table.number("attempts_days", usual.attempts_days, 0.0, _LONGEST_DAYS),
        max_bytes=table.size("max_bytes", usual.max_bytes, 0, _LARGEST_BYTES),
        rescue_days=table.number("rescue_days", usual.rescue_days, 0.0, _LONGEST_DAYS),
    )


def _traces(table: TomlTable) -> TraceSettings:
    table.check_keys(TraceSettings.__dataclass_fields__)
    return TraceSettings(export=table.choice("export", TraceSettings().export, ("auto", "off", "on")))


def card_from(text: str, file: str, role: str, standing_brief: str = "") -> RoleCard:
    """The role card written in ``text``. Raises ``BadInput`` with every problem found.

    ``command`` must be given, unless the role is ``external``; an empty one says on purpose that somebody still has
    to set it.
    """
    document = read_document(text, file)
    if isinstance(document, Problem):
        raise BadInput([document])
    problems: list[Problem] = []
    if TASK_ID.fullmatch(role) is None:
        fault = f"{role!r} is no name for a role"
        problems.append(Problem(file=file, message=fault, expected="an id such as reviewer"))
    table = TomlTable(document, document.data, problems)
    table.check_keys(_CARD_KEYS)
    card = RoleCard(
        role=role,
        budget_usd=table.number("budget_usd", 0.0, 0.0, 1e6),
        command=table.texts("command", expected="the program and its arguments", lines=True, longest=100_000),
        concurrency=table.integer("concurrency", 0, 0, 100),
        description=table.text("description", expected="one line"),
        env=table.texts("env", expected=_ENV_RULE, pattern=ENV_NAME),
        external=table.flag("external", False),
        file=file,
        memory_bytes=table.size("memory_bytes", 0, 0, _LARGEST_BYTES),
        model=table.text("model", expected="a model's name"),
        network=table.flag("network", True),
        paths=table.texts("paths", expected='a glob inside the repository, e.g. "src/**"', longest=4096, pattern=GLOB),
        standing_brief=standing_brief,
        timeout_s=table.seconds("timeout", _CARD_TIMEOUT_S, 0.001, LONGEST_TIMEOUT_S),
        variables=table.variables("variables"),
    )
    card = _driven(card, table)
    if card.external and card.command:
        table.wrong("command", "agents of an external role start by themselves", "no command, or no external = true")
    elif not card.external and "command" not in table:
        table.wrong("command", "is missing", 'a program with arguments that reads the brief, e.g. ["./agent.sh"]')
    if problems:
        raise BadInput(sorted(problems))
    return card


def _driven(card: RoleCard, table: TomlTable) -> RoleCard:
    """What a card says about the program that does the work."""
    tool = 'a tool, e.g. "Edit" or "Bash(pytest *)"'
    card = replace(
        card,
        driver=table.choice("driver", "plain", DRIVERS),
        models=arms_from(table, "models"),
        max_turns=table.integer("max_turns", 0, 0, 100_000),
        retrieve=table.flag("retrieve", False),
        permission_mode=table.choice("permission_mode", "", PERMISSION_MODES) if "permission_mode" in table else "",
        stall_s=table.seconds("stall", 0.0, 0.1, LONGEST_TIMEOUT_S) if "stall" in table else 0.0,
        tools=table.texts("tools", expected=tool, lines=True, longest=4096),
    )
    if card.model and card.models:
        table.wrong("models", "model says which one already", "model or models")
    for key in ("max_turns", "permission_mode", "tools"):
        if card.driver != "claude" and key in table:
            table.wrong(key, f"has no meaning for driver {card.driver}", 'driver = "claude"')
    return card
