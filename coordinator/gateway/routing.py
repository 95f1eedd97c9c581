"""Which upstreams a call can go to, best first: by the model it names, the protocol it speaks and where it was before.

Owns one invariant: a call goes to no upstream that was not told to answer for its model, and from one to another only among
those whose settings name that model equally closely. It judges no outcome: that door is the learned router's, ``prefer``.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Protocol

from coordinator.domain.upstream import USUAL_URLS, UpstreamKind
from coordinator.gateway.dialect import Denial, Denied, Dialect
from coordinator.policy.rendezvous import ranked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from coordinator.domain.role_route import RoleRoute
    from coordinator.gateway.calls import Call
    from coordinator.gateway.station import Station
    from coordinator.gateway.upstream import Upstream

_KNOWN: Final = 1000
_ANTHROPIC: Final = frozenset({Dialect.ANTHROPIC_MESSAGES, Dialect.ANTHROPIC_COUNT, Dialect.MODELS})
_OPENAI: Final = frozenset({Dialect.OPENAI_CHAT, Dialect.OPENAI_EMBEDDINGS, Dialect.OPENAI_RESPONSES, Dialect.MODELS})
_GOOGLE: Final = frozenset(
    {
        Dialect.GOOGLE_COUNT,
        Dialect.GOOGLE_EMBEDDINGS,
        Dialect.GOOGLE_GENERATE,
        Dialect.GOOGLE_MODELS,
        Dialect.MODELS,
    }
)
_SPOKEN: Final[Mapping[UpstreamKind, frozenset[Dialect]]] = {
    UpstreamKind.ANTHROPIC: _ANTHROPIC,
    UpstreamKind.ECHO: _ANTHROPIC | _OPENAI - {Dialect.OPENAI_EMBEDDINGS},
    UpstreamKind.GOOGLE: _GOOGLE,
    UpstreamKind.LLAMA_CPP: _ANTHROPIC | _OPENAI,
    UpstreamKind.OPENAI: _OPENAI,
    UpstreamKind.VLLM: _OPENAI,
}
_EMBEDDINGS: Final = frozenset({Dialect.GOOGLE_EMBEDDINGS, Dialect.OPENAI_EMBEDDINGS})
"""Asked of models of their own: one that talks cannot stand in."""
_TRANSLATED: Final[Mapping[Dialect, Dialect]] = {
    Dialect.ANTHROPIC_MESSAGES: Dialect.OPENAI_CHAT,
    Dialect.OPENAI_CHAT: Dialect.ANTHROPIC_MESSAGES,
}


def spoken(kind: UpstreamKind, dialect: Dialect) -> Dialect | None:
    """The dialect in which an upstream of ``kind`` gets a call in ``dialect``: the same one, one that it is translated into,
    or none at all."""
    if dialect in _SPOKEN[kind]:
        return dialect
    other = _TRANSLATED.get(dialect)
    return other if other is not None and other in _SPOKEN[kind] else None


class Preference(Protocol):
    """Who knows better than weights which of several upstreams a call should try first."""

    def prefer(self, call: Call, stations: Sequence[Station]) -> Sequence[Station]: ...


class Routes:
    """``aliases`` are names and the models that are meant by them."""

    def __init__(
        self,
        stations: Sequence[Station],
        aliases: Mapping[str, str],
        faulty: Sequence[Upstream] = (),
        preference: Preference | None = None,
        roles: Mapping[str, RoleRoute] | None = None,
    ) -> None:
        self._faulty = tuple(faulty)
        self._stations = tuple(stations)
        self._aliases = dict(aliases)
        self._preference = preference
        self._roles = dict(roles or {})
        self._tiers: dict[tuple[Dialect, str, str], tuple[Station, ...]] = {}

    def model(self, asked: str, call: Call) -> str:
        """What is meant: by the rule for the caller's role, else by an alias, else as it says."""
        if self._roles and asked:
            asked = self.wanted(call) or asked
        return self._aliases.get(asked, asked) if self._aliases else asked

    def wanted(self, call: Call) -> str:
        """The model, or an alias of it, that all calls of the role are for; empty: whatever they ask for."""
        rule = self._roles.get(call.who.role)
        return rule.model if rule is not None and call.dialect not in _EMBEDDINGS else ""

    def only(self, call: Call) -> str:
        """The upstream that calls of the role go to; empty: any."""
        rule = self._roles.get(call.who.role)
        return rule.upstream if rule is not None else ""

    def candidates(self, call: Call, session: bytes) -> Sequence[Station]:
        """Those that may get the call, the one to try first in front. ``session``: what is to stay together."""
        key = call.dialect, call.model, self.only(call) if self._roles else ""
        tier = self._tiers.get(key)
        if tier is None:
            if len(self._tiers) >= _KNOWN:
                self._tiers.clear()
            tier = self._tiers[key] = self._tier(*key)
        if len(tier) < 2:
            return tier
        ordered = self._ordered(call, tier, session or call.id.encode())
        wanted = call.who.upstream
        return sorted(ordered, key=lambda station: station.name != wanted) if wanted else ordered

    def speakers(self, dialect: Dialect) -> tuple[Station, ...]:
        """All that speak it themselves, whatever models they have, in the order of the settings."""
        return tuple(one for one in self._stations if spoken(one.upstream.kind, dialect) is dialect)

    def goes_to(self, station: Station, model: str, dialects: Iterable[Dialect]) -> bool:
        """Whether a call for that model, in one of these protocols, may go there."""
        return any(station in self._tier(dialect, model) for dialect in dialects)

    def obstacle(self, call: Call) -> Denied:
        """Why there is no candidate."""
        for upstream in self._faulty:
            if (
                spoken(upstream.kind, call.dialect) is call.dialect
                and closeness(upstream.settings.models, call.model) >= 0
            ):
                return Denied(Denial.NO_KEY, upstream.fault)
        model = call.model or "(none is named)"
        if only := self.only(call):
            said = f"calls of the role {call.who.role} go to {only} alone, which is not told to answer for the model {model}"
            return Denied(Denial.NOT_FOUND, said)
        return Denied(Denial.NOT_FOUND, f"no upstream is told to answer for the model {model}")

    def _tier(self, dialect: Dialect, model: str, only: str = "") -> tuple[Station, ...]:
        """Whoever names the model most closely: those that speak the protocol themselves, or else those that need a
        translation."""
        closest, found = -1, list[tuple["Station", bool]]()
        for station in self._stations:
            way = spoken(station.upstream.kind, dialect)
            barred = way is None or (only and station.name != only)
            close = -1 if barred else closeness(station.upstream.settings.models, model)
            if close < 0 or close < closest or (way is not dialect and not close and _is_providers(station.upstream)):
                continue
            if close > closest:
                closest, found = close, []
            found.append((station, way is dialect))
        native = tuple(station for station, itself in found if itself)
        return native or tuple(station for station, _ in found)

    def _ordered(self, call: Call, group: tuple[Station, ...], session: bytes) -> Sequence[Station]:
        """By rendezvous, weighted; who has no weight comes last. One without affinity draws anew for each call."""
        if self._preference is not None:
            return self._preference.prefer(call, group)
        if not all(station.upstream.settings.affinity for station in group):
            session = call.id.encode()
        names = ranked(session, [(station.name, station.upstream.settings.weight) for station in group])
        by_name = {station.name: station for station in group}
        rest = [station for station in group if station.name not in names]
        return [*(by_name[name] for name in names), *rest]


def _is_providers(upstream: Upstream) -> bool:
    """A provider has no model of another's; "*" in its settings does not mean that it had."""
    return bool(USUAL_URLS[upstream.kind]) and upstream.url == USUAL_URLS[upstream.kind]


def closeness(patterns: Sequence[str], model: str) -> int:
    """0: by ``*`` alone, else by how many characters of the pattern are no wildcard, 1000 when it is the name; -1: not named.
    A call that names no model is anybody's."""
    best = -1
    for pattern in patterns:
        if pattern == model:
            return 1000
        if not model or fnmatchcase(model, pattern):
            best = max(best, min(999, len(pattern) - pattern.count("*") if model else 0))
    return best
