"""The prompt lane: a prompt of our own passes five doors, RAG → assemble → inference → post-process → stream, in one task.

Owns one invariant: an accepted prompt is one call, told of once and paid for once, however it ends; and whoever leaves, is
late or is cut gives back at once every chair it has, here and at its upstream. Doors are ``kit.stage``'s; carrying a call up is
the ``courier``'s, as for any other call. What agents send in their own protocols never comes here (``relay``).
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from coordinator.domain.errors import BadInput, Shed, ShedReason
from coordinator.domain.meter import Meter, MeterKind
from coordinator.gateway import fast_json
from coordinator.gateway.calls import NO_USAGE, CallEnding
from coordinator.gateway.dialect import Denial, Denied, Dialect, not_called
from coordinator.gateway.doorkeeper import CallAddress
from coordinator.gateway.endings import ending_of, why_cut
from coordinator.gateway.meters import Histogram
from coordinator.gateway.prompt import question_of, read_prompt
from coordinator.gateway.prompt_course import PromptCourse, refuse, refuse_input
from coordinator.gateway.prompt_delivery import PromptAnswer, PromptDelivery, UpstreamRefused
from coordinator.gateway.prompt_sharing import CACHED, SharedPrompt
from coordinator.kit.http import BODY_BYTES, BodyTooLarge, BodyUnreadable
from coordinator.kit.stage import Stage
from coordinator.kit.wire import AnswerCut
from coordinator.policy.complexity import complexity, tier_of
from coordinator.policy.quality import quality

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping

    from coordinator.domain.settings import GatewaySettings
    from coordinator.gateway.aftermath import Aftermath
    from coordinator.gateway.books import Books
    from coordinator.gateway.calls import Call, Calls
    from coordinator.gateway.courier import Courier
    from coordinator.gateway.dials import Dials
    from coordinator.gateway.doorkeeper import Doorkeeper
    from coordinator.gateway.meters import Meters
    from coordinator.gateway.pacing import Pacing
    from coordinator.gateway.prices import Prices
    from coordinator.gateway.prompt_routes import Leg, PromptRoutes
    from coordinator.gateway.prompt_sharing import PromptSharing
    from coordinator.gateway.retrieval import Retrieval
    from coordinator.kit.clock import Clock
    from coordinator.kit.http import PageExchange

INFER: Final = b"/v1/infer"
DEADLINE_S: Final = 600.0
"""Of a prompt that names none: as long as an answer that is not streamed may take."""
RAG_S: Final = 5.0
"""What retrieval may take; after that a prompt goes on without."""

DOORS: Final = ("rag", "assemble", "post", "stream")
"""Each has two knobs (``dials``). At ``rag`` searching threads are what there is little of, at ``stream`` room for who is slow
to read; at the two others nobody pauses. The doors of inference are the stations'."""

_FAREWELL_S: Final = 1.0
"""What a client has to take a refusal, before which it has to take all that was given to it so far."""
_FRAME_BYTES: Final = 256
"""Of a request around its texts."""
_SCORED_CHARS: Final = 64 * 1024
"""Of a prompt; what stands beyond does not make it harder."""
_STAGE_S: Final = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOLD: Final[Mapping[ShedReason, Denial]] = {
    ShedReason.CLOSED: Denial.STOPPING,
    ShedReason.FULL: Denial.OVERLOADED,
    ShedReason.LATE: Denial.TOO_LATE,
}


class PromptLane:
    """``retrieval`` None: there is nothing to retrieve from."""

    def __init__(
        self,
        settings: GatewaySettings,
        clock: Clock,
        *,
        aftermath: Aftermath,
        books: Books,
        calls: Calls,
        courier: Courier,
        dials: Dials,
        doorkeeper: Doorkeeper,
        meters: Meters,
        pacing: Pacing,
        prices: Prices,
        retrieval: Retrieval | None,
        routes: PromptRoutes,
        sharing: PromptSharing,
    ) -> None:
        self._aftermath = aftermath
        self._books = books
        self._calls = calls
        self._clock = clock
        self._courier = courier
        self._doorkeeper = doorkeeper
        self._dials = dials
        self._meters = meters
        self._doors = {name: _door(name, dials) for name in DOORS}
        self._pacing = pacing
        self._prices = prices
        self._retrieval = retrieval
        self._routes = routes
        self._settings = settings
        self.sharing = sharing
        self._took = {name: Histogram(_STAGE_S) for name in (*DOORS, "inference")}

    # -- what metrics and knobs ask -------------------------------------------------------------------------------------

    def stages(self) -> Iterable[tuple[str, Stage]]:
        """The doors, but for those of inference, which are not this lane's alone."""
        return self._doors.items()

    def turned(self) -> None:
        """A knob was turned."""
        dials = self._dials
        for name, door in self._doors.items():
            width, room = _size(name, dials)
            door.resize(width=width, room=room, promote_s=dials.promote_s)
        self.sharing.turned(
            cache_bytes=int(dials.cache_bytes), cache_ttl_s=dials.cache_ttl_s, wait_s=dials.dedup_wait_s
        )

    def meters(self) -> Iterable[Meter]:
        """How long prompts stay inside of each stage, and what is kept of their answers."""
        yield from self.sharing.meters()
        samples = tuple(((name,), taken.spread()) for name, taken in self._took.items())
        yield Meter(
            about="Seconds inside of a stage, without the wait at its door.",
            kind=MeterKind.HISTOGRAM,
            labels=("stage",),
            name="orchestrator_stage_duration_seconds",
            samples=tuple((labels, spread) for labels, spread in samples if spread.count),
        )

    # -- one prompt ----------------------------------------------------------------------------------------------------

    async def serve(self, page: PageExchange) -> None:
        try:
            call, body = self._admitted(page), await _body_of(page)
        except Denied as denied:
            await refuse(page, denied)
            return
        call.bytes_up = len(body)
        call.task = asyncio.current_task()
        self._calls.begin(call)
        try:
            await self._end_well(page, call, body)
        except ConnectionError:
            call.ending = CallEnding.LEFT
            raise
        except asyncio.CancelledError:
            if call.cut_for is None or call.task is None:
                call.ending = CallEnding.LEFT
                raise
            call.task.uncancel()
            call.ending = call.cut_for
            await _say(refuse(page, why_cut(call), call))
        finally:
            call.bytes_down = page.sent_bytes
            self._calls.end(call)
            self._aftermath.add(call)

    async def _end_well(self, page: PageExchange, call: Call, body: bytes) -> None:
        """With an answer, or with a word why there is none."""
        try:
            await self._within_deadline(page, call, body)
            call.ending = CallEnding.SERVED
        except BadInput as bad:
            call.ending = CallEnding.REFUSED
            await _say(refuse_input(page, bad, call))
        except UpstreamRefused as refused:
            call.ending = CallEnding.SERVED  # with what the upstream had to say
            await _say(refuse(page, refused, call))
        except Denied as denied:
            call.ending = ending_of(denied)
            await _say(refuse(page, denied, call))
        except AnswerCut as cut:
            call.ending = CallEnding.BROKEN
            broken = Denied(Denial.UNREACHED, f"{call.upstream} broke off in its answer: {cut}")
            await _say(refuse(page, broken, call))

    def _admitted(self, page: PageExchange) -> Call:
        """Whose key it is. Raises ``Denied``."""
        named = self._doorkeeper.address(b"POST", page.target)
        if named.path != INFER:
            raise not_called(b"POST", named.rest)
        address = CallAddress(named.claim, named.key, Dialect.OPENAI_CHAT, named.path, named.rest)
        return self._doorkeeper.admit(address, self._doorkeeper.claim(address, page), page)

    async def _within_deadline(self, page: PageExchange, call: Call, body: bytes) -> None:
        """Raises ``BadInput``, and ``Denied`` when the time is up."""
        call.lane = call.who.lane
        prompt = read_prompt(body)
        call.lane = call.who.lane if prompt.lane is None else prompt.lane
        call.stream = prompt.stream
        self._doorkeeper.check_share(call)
        deadline_s = prompt.deadline_s or DEADLINE_S
        until = asyncio.get_running_loop().time() + deadline_s
        course = PromptCourse(page, call, prompt, self._clock, until)
        limit = asyncio.timeout_at(until)
        try:
            async with limit:
                await self._pass(course)
        except TimeoutError as error:
            if not limit.expired():
                raise
            if course.waits_at or not call.tries:
                self._meters.note_expired(course.waits_at or "inference")
            raise Denied(Denial.TOO_LATE, f"the prompt was not answered within {deadline_s:g} s") from error
        finally:
            for name, taken in self._took.items():
                if course.took[name]:
                    taken.add(course.took[name])

    async def _pass(self, course: PromptCourse) -> None:
        """Through all stages. Who wants a stream has its chair at the last door before anything is paid for."""
        await self._retrieve(course)
        async with self._inside("assemble", course):
            self._assemble(course)
        if course.prompt.stream:
            async with self._inside("stream", course, timed=False):
                answer, score = await self._answered(course)
                await course.conclude(answer, score)
        else:
            answer, score = await self._answered(course)
            async with self._inside("stream", course):
                await course.conclude(answer, score)

    @asynccontextmanager
    async def _inside(self, name: str, course: PromptCourse, *, timed: bool = True) -> AsyncIterator[None]:
        """With a chair. Raises ``Denied`` when there is none in time."""
        door = self._doors[name]
        course.waits_at = name
        try:
            await door.take(course.call.lane, course.until)
        except Shed as shed:
            if shed.why is ShedReason.LATE:
                self._meters.note_expired(name)
            said = f"no room for this prompt at the stage {name}: {shed.why}"
            raise Denied(_TOLD[shed.why], said, retry_after_s=shed.after_s) from shed
        course.waits_at = ""
        began = self._clock.monotonic()
        try:
            yield
        finally:
            door.leave()
            if timed:
                course.took[name] = self._clock.monotonic() - began

    # -- the stages ----------------------------------------------------------------------------------------------------

    async def _retrieve(self, course: PromptCourse) -> None:
        if self._retrieval is None or not course.prompt.retrieve:
            return
        async with self._inside("rag", course):
            try:
                async with asyncio.timeout(RAG_S):
                    course.passages = await self._retrieval.find(course.prompt.text)
                course.trouble = self._retrieval.trouble
            except TimeoutError:
                course.trouble = f"nothing was found within {RAG_S:g} s"

    def _assemble(self, course: PromptCourse) -> None:
        prompt = course.prompt
        course.question = question_of(prompt.text, course.passages)
        course.score = complexity(prompt.text[:_SCORED_CHARS])
        course.tier = tier_of(course.score)
        course.legs = self._routes.legs(course.call, prompt.model, course.tier, course.session.encode())

    async def _answered(self, course: PromptCourse) -> tuple[PromptAnswer, float]:
        """Inference, and what is to be said of its answer."""
        began, told = self._clock.monotonic(), course.took["stream"]
        try:
            answer = await self._infer(course)
        finally:
            course.took["inference"] = self._clock.monotonic() - began - (course.took["stream"] - told)
        async with self._inside("post", course):
            usage, most = answer.usage, course.prompt.max_tokens
            score = quality(answer.text, finish=answer.finish, output_tokens=usage.output_tokens, max_tokens=most)
        return answer, score

    async def _infer(self, course: PromptCourse) -> PromptAnswer:
        call, prompt = course.call, course.prompt
        models = "\n".join(leg.model for leg in course.legs)
        owners = {station.upstream.settings.owner for leg in course.legs for station in leg.stations}
        same = SharedPrompt(
            claim=call.claim,
            form=fast_json.encode([models, prompt.system, course.question, prompt.temperature, prompt.max_tokens]),
            owner="" if self._settings.dedup_across_owners else "\n".join(sorted(owners)),
            settled=prompt.temperature == 0,
        )
        answer, course.collapsed = await self.sharing.answer(same, lambda: self._ask(course))
        if course.collapsed:
            call.collapsed = course.collapsed
            call.first_at = self._clock.monotonic()
            call.model = answer.model
            call.priced = True
            call.saved_usd = answer.cost_usd
            if course.collapsed == CACHED:
                self.sharing.saved(answer.cost_usd)
        return answer

    async def _ask(self, course: PromptCourse) -> PromptAnswer:
        """One leg after the other, until one has answered or a word was told."""
        await self._pacing.wait(course.call)
        last = course.legs[-1]
        for leg in course.legs[:-1]:
            now = self._clock.monotonic()
            if not any(station.stands_open(leg.model, now) for station in leg.stations):
                continue
            try:
                return await self._ask_one(course, leg)
            except Denied as denied:
                if course.page.started or denied.denial is Denial.STOPPING:
                    raise
        return await self._ask_one(course, last)

    async def _ask_one(self, course: PromptCourse, leg: Leg) -> PromptAnswer:
        call, prompt, books = course.call, course.prompt, self._books
        usage = call.usage  # of the legs before
        call.model, call.usage = leg.model, NO_USAGE
        price = self._prices.dearest(leg.stations, leg.model)
        tell = course.tell if prompt.stream else None
        delivery = PromptDelivery(prompt, course.question, books=books, call=call, clock=self._clock, tell=tell)
        size = _FRAME_BYTES + sum(len(text.encode("utf-8", "replace")) for text in (prompt.system, course.question))
        delivery.hold = await books.held(call, price, size, prompt.max_tokens, self._dials.hold_s)
        try:
            await self._courier.carry(call, leg.stations, delivery)
        finally:
            delivery.account()
            if delivery.station is not None:
                price = self._prices.of(delivery.station, leg.model)
            books.settle(call, delivery.hold, price, call.usage, size)
            call.usage = call.usage + usage
        return PromptAnswer(
            cost_usd=call.cost_usd,
            finish=delivery.finish,
            model=leg.model,
            text=delivery.text,
            upstream=call.upstream,
            usage=call.usage,
        )


def _door(name: str, dials: Dials) -> Stage:
    width, room = _size(name, dials)
    return Stage(name, width=width, room=room, promote_s=dials.promote_s)


def _size(name: str, dials: Dials) -> tuple[int, int]:
    """How many may be inside of a door, and how many may wait."""
    return int(dials.value(f"{name}_width")), int(dials.value(f"{name}_room"))


async def _body_of(page: PageExchange) -> bytes:
    """Raises ``Denied``."""
    try:
        return await page.body()
    except BodyTooLarge as error:
        raise Denied(Denial.TOO_LARGE, f"a prompt has {BODY_BYTES // 2**20} MiB at most") from error
    except BodyUnreadable as error:
        raise Denied(Denial.BAD_REQUEST, f"the body cannot be read: {error}") from error
    except TimeoutError as error:
        raise Denied(Denial.TOO_LATE, "the request's body did not come in time") from error


async def _say(refusal: Coroutine[None, None, None]) -> None:
    """To a client that may have stopped reading. Raises ``TimeoutError``: it is hung up on then."""
    async with asyncio.timeout(_FAREWELL_S):
        await refusal
