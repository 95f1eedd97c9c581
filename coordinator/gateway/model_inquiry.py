"""Which models there are: asked of every upstream at once, and told as one list in the caller's protocol.

Owns one invariant: a model stands in the list once, as the upstream tells it that a call for it would go to, and in no list of a
protocol in which it could not be called. Where one upstream alone can answer, its answer passes byte for byte. An upstream that
fails, or takes longer than ``PATIENCE_S``, is left out; when none is left, the caller hears the error that came last.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote, unquote

from coordinator.domain.upstream import UpstreamKind
from coordinator.gateway.calls import Call
from coordinator.gateway.courier import Delivery, UpRequest
from coordinator.gateway.delivery import RelayDelivery
from coordinator.gateway.dialect import Denial, Denied, Dialect, Family
from coordinator.gateway.fast_json import encode
from coordinator.gateway.model_list import (
    MOST,
    caller_family,
    family_of,
    list_reply,
    name_of,
    read_list,
    read_model,
    shaped,
)
from coordinator.gateway.routing import closeness
from coordinator.gateway.translate_answer import error_to_anthropic, error_to_openai
from coordinator.gateway.upstream_error import told_pause

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from coordinator.gateway.books import Books
    from coordinator.gateway.courier import Courier, Failure
    from coordinator.gateway.echo import EchoAnswer
    from coordinator.gateway.model_list import ModelEntry
    from coordinator.gateway.pacing import Pacing
    from coordinator.gateway.routing import Routes
    from coordinator.gateway.station import Station
    from coordinator.kit.clock import Clock
    from coordinator.kit.wire_client import Answer
    from coordinator.kit.wire_exchange import Exchange

_T = TypeVar("_T")

PATIENCE_S: Final = 5.0
"""What all upstreams together get. A provider's list takes 0.3 s; who waits for a list wants to begin."""
SEVERAL: Final = "several"
"""What an answer's upstream is called that no single one gave."""

_LIST_BYTES: Final = 16 * 1024 * 1024
_PAGES: Final = 20
"""Of one upstream's list; no provider has half a page."""
_CALLED_IN: Final[Mapping[Family, tuple[Dialect, ...]]] = {
    Family.ANTHROPIC: (Dialect.ANTHROPIC_MESSAGES,),
    Family.GOOGLE: (Dialect.GOOGLE_GENERATE,),
    Family.OPENAI: (Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES, Dialect.OPENAI_EMBEDDINGS),
}
_CARRIED: Final[Mapping[bool, tuple[bytes, ...]]] = {
    False: (b"user-agent", b"x-goog-api-client"),
    True: (b"user-agent", b"anthropic-beta", b"anthropic-version"),
}
"""Of the caller's fields, what goes along: to Anthropic, and to others."""
_VERSION: Final = (b"anthropic-version", b"2023-06-01")
_TOLD: Final = frozenset(
    {b"content-encoding", b"content-type", b"request-id", b"retry-after", b"retry-after-ms", b"x-should-retry"}
)
"""Of an upstream's error, what the caller hears beside its body."""
_JSON: Final = (b"content-type", b"application/json")


class ListRefused(Exception):
    """An upstream answered with an error."""

    def __init__(self, station: Station, failure: Failure) -> None:
        super().__init__(failure.why)
        self.failure = failure
        self.station = station


class ModelInquiry:
    """``aliases`` are names that may be asked for and the models that are meant."""

    def __init__(
        self,
        clock: Clock,
        *,
        aliases: Mapping[str, str],
        books: Books,
        courier: Courier,
        pacing: Pacing,
        routes: Routes,
    ) -> None:
        self._aliases = dict(aliases)
        self._books = books
        self._clock = clock
        self._courier = courier
        self._pacing = pacing
        self._routes = routes

    async def carry(self, exchange: Exchange, call: Call, rest: bytes) -> None:
        """The whole of a call that wants a list, or one model of it. Raises ``Denied``, and what the courier raises."""
        path, _, query = rest.partition(b"?")
        version, _, name = path.partition(b"/models")
        asked = unquote(name.removeprefix(b"/").decode("ascii"))
        meant = self._aliases.get(asked, asked)
        family = caller_family(
            call.dialect,
            anthropic=bool(exchange.header(b"anthropic-version")),
            google=bool(exchange.header(b"x-goog-api-client") or exchange.header(b"x-goog-api-key")),
        )
        stations = self._stations(call, family)
        if self._pacing.paces:
            await self._pacing.wait(call)
        if len(stations) == 1 and meant == asked:
            delivery = RelayDelivery(exchange, call, rest, b"", self._clock, self._books, b"")
            await self._courier.carry(call, stations, delivery)
            delivery.account()
            return
        inquiry = _Inquiry(exchange, call, family, version, stations, self._courier, self._routes, self._aliases)
        try:
            body = await inquiry.model(asked, meant) if asked else await inquiry.models(query)
        except ListRefused as refused:
            _refuse(exchange, call, family, refused)
            return
        call.first_at, call.status = self._clock.monotonic(), 200
        exchange.reply(200, (_JSON, (b"x-request-id", call.id.encode())), body)

    def _stations(self, call: Call, family: Family) -> Sequence[Station]:
        """Those whose models the caller can call, or at least those that answer. Raises ``Denied``."""
        found = self._routes.speakers(call.dialect)
        google = family is Family.GOOGLE
        found = tuple(one for one in found if (one.upstream.kind is UpstreamKind.GOOGLE) is google) or found
        if not found:
            raise self._routes.obstacle(call)
        return found


class _Inquiry:
    """One caller's. ``version`` is what its path begins with."""

    def __init__(
        self,
        exchange: Exchange,
        call: Call,
        family: Family,
        version: bytes,
        stations: Sequence[Station],
        courier: Courier,
        routes: Routes,
        aliases: Mapping[str, str],
    ) -> None:
        self._aliases = aliases
        self._call = call
        self._courier = courier
        self._exchange = exchange
        self._family = family
        self._routes = routes
        self._stations = stations
        self._version = version

    async def models(self, query: bytes) -> bytes:
        """The list, or the page of it that was asked for. Raises ``Denied`` and ``ListRefused``."""
        return list_reply(list((await self._found()).values()), self._family, query)

    async def model(self, asked: str, meant: str) -> bytes:
        """What the upstream that has it tells of it. Not all tell of one alone: then it may stand in a list. Raises the same."""
        family, name = self._family, quote(meant, safe="/:@+").encode()
        stations = [one for one in self._stations if self._is_for(one, meant)] or self._stations
        told, last = await self._all(stations, lambda station: self._get(station, b"/" + name))
        for station in stations:
            body = told.get(station.name, b"")
            entry = read_model(body)
            if entry is not None:
                self._call.upstream = station.name
                if family_of(station.upstream.kind) is family and asked == meant:
                    return body
                return encode(shaped(entry, family, asked, station.name))
        found = await self._found()
        if asked in found:
            return encode(found[asked])
        raise last or Denied(Denial.NOT_FOUND, f"no upstream tells of a model {meant[:200]}")

    async def _found(self) -> dict[str, ModelEntry]:
        """Every model once, by its name. Raises the last error when no upstream told anything."""
        told, last = await self._all(self._stations, self._listed)
        if not told and last is not None:
            raise last
        self._call.upstream = next(iter(told)) if len(told) == 1 else SEVERAL
        found: dict[str, ModelEntry] = {}
        for station in self._stations:
            for entry in told.get(station.name, ()):
                name = name_of(entry, family_of(station.upstream.kind))
                if name not in found and self._is_for(station, name):
                    found[name] = shaped(entry, self._family, name, station.name)
        for alias, meant in self._aliases.items():
            owner = next((one for one in self._stations if self._is_for(one, meant) and _names(one, meant)), None)
            if alias not in found and (meant in found or owner is not None):
                known = found.get(meant, {})
                found[alias] = shaped(known, self._family, alias, owner.name if owner is not None else "")
        return found

    def _is_for(self, station: Station, model: str) -> bool:
        return self._routes.goes_to(station, model, _CALLED_IN[self._family])

    async def _listed(self, station: Station) -> list[ModelEntry]:
        """All that one upstream has. Raises ``Denied`` and ``ListRefused``."""
        entries: list[ModelEntry] = []
        after = ""
        for _ in range(_PAGES):
            page = read_list(await self._get(station, b"", after), family_of(station.upstream.kind))
            if page is None:
                raise Denied(Denial.UNREACHED, f"{station.name} does not list its models in a way that is understood")
            entries += page.entries
            if page.after in ("", after):
                break
            after = page.after
        return entries

    async def _get(self, station: Station, name: bytes, after: str = "") -> bytes:
        """One answer, through the upstream's own door and limits. Raises ``Denied`` and ``ListRefused``."""
        call = self._call
        own = Call(call.claim, call.who, call.dialect, call.path, call.began)
        own.id = call.id
        kind = station.upstream.kind
        delivery = _Fetched(self._call, self._target(kind, name, after), self._fields(kind))
        try:
            await self._courier.carry(own, (station,), delivery)
        finally:
            call.tries = max(call.tries, own.tries)
        if delivery.failure is not None:
            raise ListRefused(station, delivery.failure)
        return delivery.body

    async def _all(
        self, stations: Sequence[Station], ask: Callable[[Station], Awaitable[_T]]
    ) -> tuple[dict[str, _T], Denied | ListRefused | None]:
        """What each told in time, by its name, and the error that came last."""
        told: dict[str, _T] = {}
        errors: list[Denied | ListRefused] = []

        async def one(station: Station) -> None:
            try:
                told[station.name] = await ask(station)
            except (Denied, ListRefused) as error:
                errors.append(error)

        tasks = [asyncio.create_task(one(station)) for station in stations]
        try:
            done, late = await asyncio.wait(tasks, timeout=PATIENCE_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()
        if late:
            errors.append(Denied(Denial.TOO_LATE, f"no list of models came within {PATIENCE_S:g} s"))
        return told, errors[-1] if errors else None

    def _target(self, kind: UpstreamKind, name: bytes, after: str) -> bytes:
        """Of one model, or of a page as long as it may be."""
        more = quote(after, safe="").encode()
        match kind:
            case UpstreamKind.ANTHROPIC:
                page = b"?limit=%d" % MOST + (b"&after_id=" + more if more else b"")
                return b"/v1/models" + (name or page)
            case UpstreamKind.GOOGLE:
                page = b"?pageSize=%d" % MOST + (b"&pageToken=" + more if more else b"")
                return self._version + b"/models" + (name or page)
            case UpstreamKind.OPENAI:
                return b"/models" + name
            case _:
                return b"/v1/models" + name

    def _fields(self, kind: UpstreamKind) -> list[tuple[bytes, bytes]]:
        said = self._exchange.header
        fields = [(b"accept", b"application/json"), (b"accept-encoding", b"identity")]
        fields += [(name, value) for name in _CARRIED[kind is UpstreamKind.ANTHROPIC] if (value := said(name))]
        if kind is UpstreamKind.ANTHROPIC and not said(_VERSION[0]):
            fields.append(_VERSION)
        return fields


class _Fetched(Delivery):
    """A delivery that keeps the answer. ``failure``: the upstream's own error."""

    def __init__(self, call: Call, target: bytes, fields: list[tuple[bytes, bytes]]) -> None:
        super().__init__(call)
        self._fields = fields
        self._target = target
        self.body = b""
        self.failure: Failure | None = None

    def request(self, station: Station) -> UpRequest:
        upstream = station.upstream
        head = station.source.head(b"GET", upstream.base + self._target, upstream.up(self._fields))
        return UpRequest(body=b"", head=head)

    async def take(self, station: Station, answer: Answer | EchoAnswer) -> None:
        self.body = await answer.read(_LIST_BYTES)

    async def take_error(self, station: Station, failure: Failure) -> None:
        self.failure = failure


def _names(station: Station, model: str) -> bool:
    """Whether its settings name the model by more than ``*``."""
    return closeness(station.upstream.settings.models, model) > 0


def _refuse(exchange: Exchange, call: Call, family: Family, refused: ListRefused) -> None:
    """The upstream's error: as it came where it is of the caller's protocol, else in the words of that."""
    failure, status = refused.failure, refused.failure.status
    headers, body = [pair for pair in failure.headers if pair[0].lower() in _TOLD], failure.body
    if family is not family_of(refused.station.upstream.kind) and family is not Family.GOOGLE:
        told = error_to_anthropic if family is Family.ANTHROPIC else error_to_openai
        headers = [_JSON, *(pair for pair in headers if not pair[0].lower().startswith(b"content-"))]
        body = told(status, body)
    headers = [*told_pause(tuple(headers), failure.after_s, final=failure.final)]
    call.retry_after_s, call.status, call.upstream = failure.after_s, status, refused.station.name
    exchange.reply(status, (*headers, (b"x-request-id", call.id.encode())), body)
