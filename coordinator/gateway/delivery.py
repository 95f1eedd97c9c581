"""How an answer reaches the client that asked: as it comes where both ends speak one protocol, translated where they do not.

Owns one invariant: where nothing is translated, body and protocol fields go up and bytes come down as they are, but for the
key, and for the one word of an alias. What passes is followed for its usage; nothing is kept of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from coordinator.domain.upstream import UpstreamKind
from coordinator.domain.usage import TokenUsage
from coordinator.gateway.books import LOOK_BYTES
from coordinator.gateway.calls import NO_USAGE, CallEnding
from coordinator.gateway.courier import Delivery, UpRequest
from coordinator.gateway.dialect import Denial, Denied
from coordinator.gateway.envelope import read_envelope
from coordinator.gateway.google_call import google_body, google_target
from coordinator.gateway.routing import spoken
from coordinator.gateway.seat import AnswerHead
from coordinator.gateway.translation import Translation
from coordinator.gateway.upstream_error import told_pause
from coordinator.gateway.usage_reader import usage_reader
from coordinator.kit.wire import field

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.gateway.books import Books, Hold
    from coordinator.gateway.calls import Call
    from coordinator.gateway.courier import Failure
    from coordinator.gateway.deduplicator import Asked
    from coordinator.gateway.echo import EchoAnswer
    from coordinator.gateway.flight import Flight
    from coordinator.gateway.station import Station
    from coordinator.gateway.usage_reader import UsageReader
    from coordinator.kit.clock import Clock
    from coordinator.kit.wire import RawHeaders
    from coordinator.kit.wire_client import Answer, RequestLines
    from coordinator.kit.wire_exchange import Exchange

_JSON: Final = b"application/json"
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")
_MARKS: Final = re.compile(rb'[{}\[\]]|"(?:[^"\\]|\\.)*"', re.DOTALL)
"""What counts of a JSON text's shape; a string is one mark."""
_WHEN_AGAIN: Final = frozenset({b"retry-after", b"retry-after-ms", b"x-should-retry"})
"""What clients of both protocols obey alike: it comes through a translation as well."""
_BYTES_PER_TOKEN: Final = 4
"""Of a request, about: what is assumed where the upstream does not tell."""


class RelayDelivery(Delivery):
    """One call's; used for each try in turn. ``rest`` is the protocol's own path with its query, ``body`` the request's, plain.
    With a ``member`` others may find it, with a ``flight`` they hear it too. ``hold`` is what the one who pays has set aside,
    ``usage`` what all tries used, up to date after ``account``. ``stopped``: it was ended behind a whole event.
    """

    def __init__(
        self, exchange: Exchange, call: Call, rest: bytes, body: bytes, clock: Clock, books: Books, alias: bytes
    ) -> None:
        super().__init__(call)
        self._alias = alias
        self._answer: Answer | EchoAnswer | None = None
        self._body = body
        self._books = books
        self._call = call
        self._clock = clock
        self._exchange = exchange
        self._headers: RawHeaders = ()
        self._look_at = LOOK_BYTES
        self._reader: UsageReader | None = None
        self._rest = rest
        self._translation: Translation | None = None
        self.flight: Flight | None = None
        self.member: Asked | None = None
        self.hold: Hold | None = None
        self.stopped = False
        self.usage = NO_USAGE

    @property
    def body_bytes(self) -> int:
        return len(self._body)

    @property
    def heard_bytes(self) -> int:
        return self._reader.output_bytes if self._reader is not None else 0

    @property
    def held(self) -> bool:
        return self._exchange.full if self.flight is None else self.flight.full

    @property
    def tokens_so_far(self) -> int:
        """Of this try, about."""
        return self._reader.tokens_so_far if self._reader is not None else 0

    def request(self, station: Station) -> UpRequest:
        call, exchange, kind = self._call, self._exchange, station.upstream.kind
        way = spoken(kind, call.dialect)
        if way is None:
            raise Denied(Denial.NOT_FOUND, f"{station.name} does not speak this protocol")
        if way is not call.dialect:
            self._translation = Translation(exchange, call, way, self._body)
            return self._translation.request(station)
        self._translation = None
        head: RequestLines | None = exchange.notes.get(station)
        if head is None:
            upstream = station.upstream
            head = station.source.head(exchange.method, self._target(station), upstream.up(exchange.headers))
            exchange.notes[station] = head
        if not self._alias:
            return UpRequest(body=exchange.body, head=head)
        return UpRequest(body=self._renamed(kind), head=head)

    def _renamed(self, kind: UpstreamKind) -> bytes:
        """The body with the model that is meant in the place of the alias. Raises ``Denied`` where that cannot be done by one
        word."""
        body, meant = self._exchange.body, self._call.model
        if kind is UpstreamKind.GOOGLE:
            return google_body(body, self._alias, meant.encode())
        renamed = with_model(body, self._alias, meant.encode())
        envelope = read_envelope(self._call.dialect, self._rest, renamed)
        if envelope is None or envelope.model != meant:
            said = f"{self._alias.decode()!r} is an alias here, and could not be found in the body by that name"
            raise Denied(Denial.BAD_REQUEST, f"{said}: send it uncompressed, or name {meant} itself")
        return renamed

    def _target(self, station: Station) -> bytes:
        """As it is at this kind: what the address says already is left out, and what only we understand."""
        rest = self._rest
        match station.upstream.kind:
            case UpstreamKind.OPENAI:
                rest = rest.removeprefix(b"/v1")
            case UpstreamKind.GOOGLE:
                rest = google_target(rest, self._alias, self._call.model.encode())
        return station.upstream.base + rest

    async def take(self, station: Station, answer: Answer | EchoAnswer) -> None:
        call, translation = self._call, self._translation
        if self._reader is not None:
            self.account()
        kind = coding = b""
        headers = answer.headers
        named = False
        for name, value in headers:
            match len(name):
                case 12 if not (named and kind):
                    name = name.lower()
                    if name == b"content-type":
                        kind = kind or value
                    else:
                        named = named or name == b"x-request-id"
                case 16 if name.lower() == b"content-encoding":
                    coding = coding or value
        dialect = call.dialect if translation is None else translation.dialect
        self._reader = reader = usage_reader(dialect, content_type=kind, content_encoding=coding)
        call.first_at = self._clock.monotonic()
        tap = self._tap(reader, answer)
        if translation is not None:
            if call.stream:
                self.begun, call.status = True, 200
                await translation.stream(answer, tap)
            else:
                await translation.whole(answer, reader)
                self.begun, call.status = True, 200
            return
        self.begun, call.status = True, answer.status
        if not named:
            headers = (*headers, (b"x-request-id", call.id.encode()))
        self._answer, self._headers = answer, headers
        if self.flight is None:
            self._exchange.start(answer.status, headers, reason=answer.reason, length=answer.length)
            await answer.flow(self._exchange, tap)
        else:
            self.flight.head(answer.status, headers, reason=answer.reason, length=answer.length)
            await answer.flow(self.flight, tap)

    async def take_error(self, station: Station, failure: Failure) -> None:
        call, translation = self._call, self._translation
        call.status = failure.status
        call.retry_after_s = failure.after_s
        headers, body = failure.headers, failure.body
        if not field(headers, b"x-request-id"):
            headers = (*headers, (b"x-request-id", call.id.encode()))
        if translation is not None:
            told = tuple(pair for pair in headers if pair[0].lower() in _WHEN_AGAIN)
            headers, body = (*translation.headers(_JSON), *told), translation.error(failure.status, body)
        headers = told_pause(headers, failure.after_s, final=failure.final)
        self.begun = True
        if self.flight is None:
            self._exchange.reply(failure.status, headers, body)
        else:
            self.flight.head(failure.status, headers, length=len(body))
            self.flight.data(body)
            self.flight.end()

    def account(self) -> None:
        """Whatever the last try used is added up; nothing, when that was done."""
        reader, self._reader = self._reader, None
        if reader is None:
            return
        call = self._call
        if call.stream:
            call.between_events = self.stopped or reader.between_events
        call.whole = reader.finished
        reader.end()
        usage = reader.usage
        call.answer_model = reader.model
        if reader.estimated:
            call.estimated = True
            if not usage.prompt_tokens:
                usage = usage + TokenUsage(input_tokens=len(self._body) // _BYTES_PER_TOKEN)
        self.usage = usage if self.usage is NO_USAGE else self.usage + usage

    @property
    def answered(self) -> AnswerHead | None:
        """The head that was passed on; None: there is none yet."""
        answer = self._answer
        return AnswerHead(answer.status, self._headers, answer.reason, answer.length) if answer is not None else None

    def fly(self, flight: Flight) -> None:
        """Others want to hear it too: from here on it goes by way of ``flight``."""
        self.flight = flight
        if self._answer is not None:
            self._answer.divert(flight)

    def _tap(self, reader: UsageReader, answer: Answer | EchoAnswer) -> Callable[[bytes], None]:
        watched = self._call.stream and (self.hold is not None or self.member is not None)
        feed = self._watched(reader, answer) if watched else reader.feed
        if self.member is None:
            return feed
        keep = self.member.keep

        def both(data: bytes) -> None:
            feed(data)
            keep(data)

        return both

    def _watched(self, reader: UsageReader, answer: Answer | EchoAnswer) -> Callable[[bytes], None]:
        """A stream that is cut when nothing is left to pay for it."""

        def feed(data: bytes) -> None:
            reader.feed(data)
            if reader.output_bytes >= self._look_at:
                self._look_at = reader.output_bytes + LOOK_BYTES
                if self.hold is not None and not self._books.goes_on(self.hold, reader.tokens_so_far):
                    self._unpaid(data, answer)

        return feed

    def _unpaid(self, data: bytes, answer: Answer | EchoAnswer) -> None:
        """Nothing more can be set aside by the one who pays."""
        if self.flight is None:
            self._call.cut(CallEnding.BUDGET)
            self._stop(data, answer)
        elif not self.flight.hand_on():
            self._stop(data, answer)

    def _stop(self, data: bytes, answer: Answer | EchoAnswer) -> None:
        """Of what came last only whole events are passed on, so that a word why can follow them."""
        ends = [at + len(mark) for mark in _EVENT_ENDS if (at := data.rfind(mark)) >= 0]
        plain = field(answer.headers, b"content-encoding") in (b"", b"identity")
        if self._translation is not None:  # gives whole events alone
            self.stopped = True
        elif plain and ends and max(ends) < len(data) and (self.flight is not None or not self._call.over):
            self.stopped = True
            (self.flight or self._exchange).send(data[: max(ends)])
            answer.close()


def with_model(body: bytes, asked: bytes, meant: bytes) -> bytes:
    """The body with the value of its own ``"model"`` replaced, if it is ``asked``; everything else stays as it is."""
    for found in re.finditer(rb'"model"\s*:\s*"(%b)"' % re.escape(asked), body):
        if _depth(body, found.start()) == 1:
            return body[: found.start(1)] + meant + body[found.end(1) :]
    return body


def _depth(body: bytes, at: int) -> int:
    """How many objects and lists of a JSON text are open at a place outside of its strings; -1: it is inside of one."""
    depth = 0
    for mark in _MARKS.finditer(body):
        if mark.start() >= at:
            return depth
        if mark.end() > at:
            return -1
        if mark[0] in (b"{", b"["):
            depth += 1
        elif mark[0] in (b"}", b"]"):
            depth -= 1
    return depth
