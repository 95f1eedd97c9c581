"""``[control]``, ``[router]`` and ``[scale]`` as a person writes them, turned into the settings of these names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from coordinator.domain.control_settings import ControlSettings, RouterSettings, ScaleSettings
from coordinator.domain.task import TASK_ID

if TYPE_CHECKING:
    from coordinator.domain.toml_table import TomlTable

ARM: Final = re.compile(r"[^\s\"\\]{1,200}( via [^\s\"\\]{1,100})?")
_MEASURED: Final = re.compile(r"attempt_s|call_s|cost_usd|first_token_s|gate_s|token_s")
ARM_RULE: Final = 'a model, or "MODEL via UPSTREAM"'


def arms_from(table: TomlTable, key: str) -> tuple[str, ...]:
    """The list of arms under ``key``; the same one twice is reported."""
    arms = table.texts(key, expected=ARM_RULE, longest=320, pattern=ARM)
    for index, arm in enumerate(arms):
        if arm in arms[:index]:
            table.wrong(key, f'"{arm}" stands twice', "each once", inside=(index,))
    return arms


def control_from(table: TomlTable) -> ControlSettings:
    usual = ControlSettings()
    table.check_keys(ControlSettings.__dataclass_fields__)
    return ControlSettings(
        max_error_rate=table.number("max_error_rate", usual.max_error_rate, 0.0, 1.0),
        max_wait_s=table.seconds("max_wait_s", usual.max_wait_s, 1.0, 3600.0),
        objective=table.choice("objective", usual.objective, ("value", "landed")),
        record=table.text("record", usual.record, expected="the path of a file", longest=4096),
        robust_z=table.texts(
            "robust_z", usual.robust_z, expected="a metric that is measured, e.g. token_s", pattern=_MEASURED
        ),
        tuning=table.choice("tuning", usual.tuning, ("auto", "dry-run", "off", "on")),
    )


def router_from(table: TomlTable) -> RouterSettings:
    usual = RouterSettings()
    table.check_keys(RouterSettings.__dataclass_fields__)
    return RouterSettings(
        drift=table.number("drift", usual.drift, 0.0, 1.0),
        floor=table.number("floor", usual.floor, 0.0, 0.5),
        hour_usd=table.number("hour_usd", usual.hour_usd, 0.0, 1e6),
        max_attempt_usd=table.number("max_attempt_usd", usual.max_attempt_usd, 0.0, 1e6),
        models=_models(table),
        policy=table.choice("policy", usual.policy, ("thompson", "linucb", "epsilon_greedy", "first")),
        values_usd=_values(table, usual),
    )


def _models(router: TomlTable) -> dict[str, tuple[str, ...]]:
    table = router.table("models")
    if table is None:
        return {}
    for role in table.data:
        if TASK_ID.fullmatch(role) is None:
            table.wrong(role, "is no name for a role", "the name of a role card")
    return {role: arms_from(table, role) for role in table.data}


def _values(router: TomlTable, usual: RouterSettings) -> dict[str, float]:
    table = router.table("values_usd")
    values = dict(usual.values_usd)
    if table is not None:
        table.check_keys(values)
        values = {kind: table.number(kind, value, 0.0, 1e6) for kind, value in values.items()}
    return values


def scale_from(table: TomlTable) -> ScaleSettings:
    usual = ScaleSettings()
    table.check_keys(ScaleSettings.__dataclass_fields__)
    return ScaleSettings(
        ahead_s=table.seconds("ahead_s", usual.ahead_s, 0.0, 3600.0),
        enabled=table.choice("enabled", usual.enabled, ("auto", "off", "on")),
        least=table.integer("least", usual.least, 0, 100),
        linger_s=table.seconds("linger_s", usual.linger_s, 0.0, 86_400.0),
        spare=table.integer("spare", usual.spare, 0, 100),
    )
