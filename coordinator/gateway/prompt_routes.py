"""Which models a prompt is asked of, one after the other until one answers: the one it names, or those that suit it.

Owns one invariant: each station stands in one leg, under one model, and a leg's stations all answer for that model. How hard a
prompt looks is ``policy.complexity``'s; which station of several comes first may be somebody else's to say (``Preference``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.domain.upstream import UpstreamKind
from coordinator.gateway.dialect import Denial, Denied, Dialect
from coordinator.gateway.routing import spoken
from coordinator.policy.complexity import Tier
from coordinator.policy.rendezvous import ranked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from coordinator.gateway.calls import Call
    from coordinator.gateway.routing import Preference, Routes
    from coordinator.gateway.station import Station

LOCAL: Final = frozenset({UpstreamKind.ECHO, UpstreamKind.LLAMA_CPP, UpstreamKind.VLLM})
"""Kinds that run on machines of one's own; what they answer costs nothing per token."""

USUAL_MODELS: Final[Mapping[UpstreamKind, str]] = {UpstreamKind.LLAMA_CPP: "default"}
"""What to ask for where settings name no model: llama-server has one loaded, and answers with it whatever it is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One model, and the stations to ask it of, best first."""

    model: str
    stations: tuple[Station, ...]


class PromptRoutes:
    """``models`` are asked of stations whose settings name none but by globs, by kind."""

    def __init__(
        self,
        stations: Iterable[Station],
        routes: Routes,
        *,
        models: Mapping[UpstreamKind, str] = USUAL_MODELS,
        preference: Preference | None = None,
    ) -> None:
        able = [one for one in stations if spoken(one.upstream.kind, Dialect.OPENAI_CHAT) is not None]
        named = [(station, _own_model(station) or models.get(station.upstream.kind, "")) for station in able]
        self._models = {station.name: model for station, model in named if model}
        self._preference = preference
        self._routes = routes
        self._stations = tuple(station for station, model in named if model)

    def legs(self, call: Call, asked: str, tier: Tier, session: bytes) -> tuple[Leg, ...]:
        """Of the model that is ``asked`` for; empty: of whichever suits ``tier``. Raises ``Denied`` when there is none."""
        asked = self._routes.wanted(call) or asked
        if asked:
            call.model = self._routes.model(asked, call)
            stations = self._routes.candidates(call, session)
            if not stations:
                raise self._routes.obstacle(call)
            return (Leg(model=call.model, stations=tuple(stations)),)
        only = self._routes.only(call)
        able = [one for one in self._stations if not only or one.name == only]
        local = self._ordered(call, [one for one in able if one.upstream.kind in LOCAL], session)
        cloud = self._ordered(call, [one for one in able if one.upstream.kind not in LOCAL], session)
        suited: Sequence[Station] = [*local, *cloud]
        if tier is not Tier.EITHER:
            suited = (local or cloud) if tier is Tier.LOCAL else (cloud or local)
        if not suited:
            said = "the prompt names no model, and no upstream has one by its own name ([[gateway.upstreams]] models)"
            raise Denied(Denial.NOT_FOUND, said)
        return self._by_model(suited)

    def _by_model(self, stations: Iterable[Station]) -> tuple[Leg, ...]:
        legs: dict[str, list[Station]] = {}
        for station in stations:
            legs.setdefault(self._models[station.name], []).append(station)
        return tuple(Leg(model=model, stations=tuple(group)) for model, group in legs.items())

    def _ordered(self, call: Call, group: Sequence[Station], session: bytes) -> Sequence[Station]:
        """By rendezvous, so that a session stays where it was; who has no weight comes last."""
        if len(group) < 2:
            return group
        if self._preference is not None:
            return self._preference.prefer(call, group)
        names = ranked(session, [(one.name, one.upstream.settings.weight) for one in group])
        by_name = {one.name: one for one in group}
        return [*(by_name[name] for name in names), *(one for one in group if one.name not in names)]


def _own_model(station: Station) -> str:
    """The first that its settings name as it is."""
    return next((name for name in station.upstream.settings.models if not set("*?[") & set(name)), "")
