"""``[[gateway.upstreams]]`` as a person writes them, turned into ``UpstreamSettings``.

Owns one invariant: what stands where a name of a variable or an address should stand is never repeated in a message, for
it may be a key. Defaults are those of ``domain.upstream``; every problem is reported to the table, none is raised.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from coordinator.domain.price import prices_from
from coordinator.domain.toml_table import ENV_NAME, kind_of
from coordinator.domain.upstream import UpstreamKind, UpstreamSettings, usual_upstream

if TYPE_CHECKING:
    from coordinator.domain.toml_table import TomlTable

_ADDRESS: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?")
_ADDRESS_RULE: Final = "an address such as http://127.0.0.1:8080, without user, password and query"
_DAY_S: Final = 86_400.0
_ENV_RULE: Final = "the name of an environment variable"
_LONGEST_URL: Final = 2048
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,49}")
_ONE_WORD: Final = re.compile(r"\S+")
_PERSON: Final = re.compile(r"[^\s\"\\]{0,50}")
_VERSION: Final = re.compile(r"(/v1(?:beta|alpha)?)/*$")
_HIDDEN: Final = " (it is not shown here, for it may hold a secret)"


def upstreams_from(table: TomlTable) -> tuple[UpstreamSettings, ...]:
    """The array ``upstreams`` of the table ``gateway``. What is wrong is reported there."""
    found: list[UpstreamSettings] = []
    for entry in table.tables("upstreams"):
        upstream = _upstream(entry)
        if upstream.name and any(upstream.name == other.name for other in found):
            entry.wrong("name", f'there is another "{upstream.name}"', "a name of its own")
        found.append(upstream)
    return tuple(found)


def _upstream(table: TomlTable) -> UpstreamSettings:
    table.check_keys(UpstreamSettings.__dataclass_fields__)
    kinds = [kind.value for kind in UpstreamKind]
    if "kind" not in table:
        table.wrong("kind", "is missing", "one of " + ", ".join(kinds))
    kind = UpstreamKind(table.choice("kind", UpstreamKind.ECHO, kinds) if "kind" in table else UpstreamKind.ECHO)
    usual = usual_upstream(kind, _name(table))
    prices = prices_from(table)
    if kind is UpstreamKind.ECHO and "kind" in table:
        for key in ("key_env", "url", "url_env"):
            if key in table:
                table.wrong(key, "has no meaning for echo, which calls nobody", "no such key")
    return UpstreamSettings(
        affinity=table.flag("affinity", usual.affinity),
        connect_s=table.seconds("connect_s", usual.connect_s, 0.1, 600.0),
        first_byte_s=table.seconds("first_byte_s", usual.first_byte_s, 0.1, _DAY_S),
        key_env=_variable(table, "key_env", usual.key_env),
        kind=kind,
        max_concurrency=table.integer("max_concurrency", usual.max_concurrency, 0, 1_000_000),
        models=_models(table, usual.models),
        name=usual.name,
        owner=table.text("owner", usual.owner, expected="a name without spaces", pattern=_PERSON),
        prices=(*prices, *usual.prices),
        requests_per_s=table.number("requests_per_s", usual.requests_per_s, 0.0, 1e6),
        silence_s=table.seconds("silence_s", usual.silence_s, 0.1, _DAY_S),
        url=_url(table, kind),
        url_env=_variable(table, "url_env", usual.url_env),
        weight=table.number("weight", usual.weight, 0.0, 1000.0),
    )


def _name(table: TomlTable) -> str:
    expected = "a short name in small letters, e.g. anthropic-team"
    if "name" not in table:
        table.wrong("name", "is missing", expected)
    return table.text("name", expected=expected, pattern=_NAME)


def _models(table: TomlTable, usual: tuple[str, ...]) -> tuple[str, ...]:
    expected = "ids of models or globs of them, e.g. claude-*"
    models = table.texts("models", usual, expected=expected, pattern=_ONE_WORD)
    if table.data.get("models") == []:
        table.wrong("models", "answers for no model", expected)
    return models


def _variable(table: TomlTable, key: str, usual: str) -> str:
    """The name of an environment variable, or empty to say that there is none. Whoever pastes a key here does not find it
    in the log."""
    value = table.data.get(key, usual)
    if isinstance(value, str) and (not value or (len(value) <= 200 and ENV_NAME.fullmatch(value))):
        return value
    fault = "is no such name" + _HIDDEN if isinstance(value, str) else f"is {kind_of(value)}"
    table.wrong(key, fault, _ENV_RULE)
    return usual


def _url(table: TomlTable, kind: UpstreamKind) -> str:
    """Empty: the environment or the kind says it. A password in it is not repeated either."""
    value = table.data.get("url", "")
    if not isinstance(value, str):
        table.wrong("url", f"is {kind_of(value)}", _ADDRESS_RULE)
    elif value and (len(value) > _LONGEST_URL or not _ADDRESS.fullmatch(value) or not value.isprintable()):
        table.wrong("url", "is no such address" + _HIDDEN, _ADDRESS_RULE)
    elif kind is not UpstreamKind.OPENAI and (version := _VERSION.search(value)) is not None:
        told = version[1]
        table.wrong("url", f"ends with {told}, which the path of each call begins with", f"the address without {told}")
    else:
        return value
    return ""
