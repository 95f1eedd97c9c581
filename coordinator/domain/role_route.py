"""``[gateway.roles.NAME]``: where calls of a role go, whatever its agents ask for, and how a person writes it.

Owns one invariant: a rule names an upstream that there is, and a model that this upstream answers for, or it is reported.
Following it is the gateway's (``routing``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from coordinator.domain.task import TASK_ID
from coordinator.domain.upstream import UpstreamKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.domain.toml_table import TomlTable
    from coordinator.domain.upstream import UpstreamSettings

_MODEL: Final = re.compile(r"[^\s\"\\*?\[\]]{1,200}")
_USUAL: Final = tuple(kind.value for kind in UpstreamKind if kind is not UpstreamKind.ECHO)
"""What upstreams are called that no settings list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRoute:
    """At least one of the two is set."""

    model: str = ""
    """The model, or an alias of one, that a call gets in place of the one it names. Embeddings keep theirs. Empty: as asked."""
    upstream: str = ""
    """The one upstream that calls go to; another one is not tried. Empty: whichever answers for the model."""


def role_routes_from(
    gateway: TomlTable, upstreams: Sequence[UpstreamSettings], aliases: Mapping[str, str]
) -> dict[str, RoleRoute]:
    """The tables below ``roles``, by role. What is wrong is reported there."""
    roles = gateway.table("roles")
    found: dict[str, RoleRoute] = {}
    for role in roles.data if roles is not None else ():
        table = roles.table(role) if roles is not None else None
        if roles is not None and TASK_ID.fullmatch(role) is None:
            roles.wrong(role, "is no name for a role", "an id such as reviewer")
        if table is not None:
            found[role] = _rule(table, upstreams, aliases)
    return found


def _rule(table: TomlTable, upstreams: Sequence[UpstreamSettings], aliases: Mapping[str, str]) -> RoleRoute:
    table.check_keys(RoleRoute.__dataclass_fields__)
    rule = RoleRoute(
        model=table.text("model", expected="the id of a model, or an alias", pattern=_MODEL)
        if "model" in table
        else "",
        upstream=table.text("upstream", expected="the name of an upstream"),
    )
    names = [one.name for one in upstreams] or list(_USUAL)
    if "model" not in table and "upstream" not in table:
        table.wrong("", "says nothing", "a model, an upstream or both")
    elif "upstream" in table and rule.upstream not in names:
        table.wrong("upstream", f'"{rule.upstream}" is no upstream', "one of " + ", ".join(names))
    model = aliases.get(rule.model, rule.model)
    for one in upstreams:
        answers = any(fnmatchcase(model, pattern) for pattern in one.models)
        if one.name == rule.upstream and model and not answers:
            table.wrong("model", f'"{model}" is none that {one.name} answers for', "one of " + ", ".join(one.models))
    return rule
