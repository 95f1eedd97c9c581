"""One model call from the agent's socket to the upstream's and back, in one task.

Owns one invariant: an accepted call ends in exactly one ``RequestServed``, however it ends, and nothing of a call
outlives it: who hangs up, is revoked or is cut off ends the upstream's part with it. What passes is not looked at.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from coordinator.domain.event import Noticed, RequestServed
from coordinator.gateway import refusal
from coordinator.gateway.calls import CallEnding
from coordinator.gateway.keys import split_path
from coordinator.gateway.refusal import Refused
from coordinator.gateway.upstream import down, retry_after_s
from coordinator.kit.http import AnswerCut, NotReached

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.gateway.calls import Call, Calls
    from coordinator.gateway.keys import Claim, ClaimKeys
    from coordinator.gateway.upstream import Upstream, Upstreams
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.http import Answer, Caller, HttpClient

BODY_BYTES: Final = 64 * 1024 * 1024
"""The largest request body. What agents send is 0.01 to 2 MB; images and documents make it more."""
HELD_BYTES: Final = 512 * 1024 * 1024
"""All request bodies held at one time."""
CALLS_PER_CLAIM: Final = 64
"""Calls of one claim at one time. An agent with ten subagents makes a dozen."""

END: Final = "/end"
"""Below an attempt's address: its own key is to be good for nothing any more."""

_LOCAL: Final = re.compile(r"(127\.0\.0\.1|\[::1\]|localhost)(:[0-9]{1,5})?", re.IGNORECASE)
"""A browser that was led here under another name (DNS rebinding) says that name."""


class Relay:
    """``serve`` is called for each request that comes in."""

    def __init__(
        self,
        keys: ClaimKeys,
        calls: Calls,
        upstreams: Upstreams,
        client: HttpClient,
        bus: Bus,
        clock: Clock,
        *,
        is_live: Callable[[str, int], bool],
        revoke: Callable[[str, int], None],
    ) -> None:
        self._keys = keys
        self._calls = calls
        self._upstreams = upstreams
        self._client = client
        self._bus = bus
        self._clock = clock
        self._is_live = is_live
        self._revoke = revoke
        self._held_bytes = 0
        self._trouble: dict[str, tuple[str, float]] = {}

    async def serve(self, caller: Caller) -> None:
        """Raises ``ConnectionError`` and ``CancelledError`` when the caller has hung up."""
        try:
            claim, rest = self._admit(caller)
            if rest == END and caller.method == "POST":
                self._revoke(*claim)  # who has the key may give it up; its agent process does before it stops the agent
                await caller.start(204, "No Content", ())
                return
            upstream, url = self._upstreams.way(
                caller.method, rest, openai=not caller.header("anthropic-version") and not self._upstreams.openai.fault
            )
        except Refused as refused:
            await refusal.answer(caller, refused)
            return
        await self._accepted(caller, claim, upstream, url)

    # -- who is calling ----------------------------------------------------------------------------------------------

    def _admit(self, caller: Caller) -> tuple[Claim, str]:
        """The claim that calls, and what it asks for. Raises ``Refused``."""
        if _LOCAL.fullmatch(caller.header("host")) is None:
            raise Refused(403, "permission_error", "this address is for programs of this machine only")
        named = split_path(caller.target)
        if named is None:
            raise Refused(404, "not_found_error", "the base URL of an agent is /agents/TASK/GENERATION")
        claim, rest = named
        shown = self._claim_of(caller)
        if shown is None:
            raise Refused(401, "authentication_error", "this is no key of an agent; the one it was started with is")
        if shown != claim:
            raise Refused(403, "permission_error", "the key is another agent's than the address")
        self._check(claim)
        return claim, rest

    def _claim_of(self, caller: Caller) -> Claim | None:
        scheme, _, token = caller.header("authorization").partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else ""
        found = (self._keys.claim_of(key) for key in (caller.header("x-api-key"), bearer) if key)
        return next((claim for claim in found if claim is not None), None)

    def _check(self, claim: Claim) -> None:
        task, generation = claim
        if self._calls.is_revoked(claim):
            raise Refused(403, "permission_error", _revoked(claim))
        if not self._is_live(task, generation):
            raise Refused(403, "permission_error", f"attempt {generation} at {task} is over or was never begun")
        if self._calls.closing:
            raise Refused(503, "api_error", "the gateway restarts; try again", again=True)
        if self._calls.under_way(claim)[0] >= CALLS_PER_CLAIM:
            said = f"{CALLS_PER_CLAIM} calls of this agent are under way already"
            raise Refused(429, "rate_limit_error", said, again=True, more=(("Retry-After", "1"),))

    # -- one accepted call -------------------------------------------------------------------------------------------

    async def _accepted(self, caller: Caller, claim: Claim, upstream: Upstream, url: str) -> None:
        leash = asyncio.timeout(None)
        call = self._calls.begin(claim, leash)
        try:
            async with leash:
                call.ending = await self._carry(caller, call, upstream, url)
        except TimeoutError:
            await self._cut(caller, call)
        except (asyncio.CancelledError, ConnectionError):
            call.ending = CallEnding.LEFT
            raise
        finally:
            self._calls.end(call)
            self._tell(caller, call, upstream)

    async def _carry(self, caller: Caller, call: Call, upstream: Upstream, url: str) -> CallEnding:
        try:
            body = await self._body(caller, call)
            async with self._client.send(caller.method, url, upstream.up(caller.headers), body) as answer:
                del body
                self._heard(upstream, answer.status)
                await self._pass_on(caller, call, answer)
        except Refused as refused:
            call.status = refused.status
            await refusal.answer(caller, refused)
            return CallEnding.REFUSED
        except NotReached as error:
            call.status = 502
            self._lost(upstream, f"cannot be reached: {error}")
            said = f"{upstream.url} cannot be reached from here: {error}; it is worth trying again"
            await refusal.answer(caller, Refused(502, "api_error", said, again=True))
            return CallEnding.UNREACHED
        except AnswerCut:
            caller.cut()
            return CallEnding.BROKEN
        finally:
            self._held_bytes -= call.bytes_up
        return CallEnding.SERVED

    async def _body(self, caller: Caller, call: Call) -> bytes:
        """Whole, because a connection that turns out to be stale is replaced by sending it again."""
        parts: list[bytes] = []
        async for part in caller.body():
            parts.append(part)
            call.bytes_up += len(part)
            self._held_bytes += len(part)
            if call.bytes_up > BODY_BYTES:
                raise Refused(413, "request_too_large", f"a request has {BODY_BYTES // 2**20} MB at most")
            if self._held_bytes > HELD_BYTES:
                raise Refused(529, "overloaded_error", "too many large requests at one time; try again", again=True)
        return b"".join(parts)

    async def _pass_on(self, caller: Caller, call: Call, answer: Answer) -> None:
        """Bytes as they come, no sooner than the caller takes them."""
        headers = down(answer.headers)
        if answer.status == 401:
            headers = (*headers, refusal.NO_RETRY)  # the key is ours: no agent can mend it
        call.status = answer.status
        call.retry_after_s = retry_after_s(headers)
        await caller.start(answer.status, answer.reason, headers)
        async for chunk in answer.body:
            call.first_byte_s = call.first_byte_s or self._clock.monotonic() - call.began
            call.bytes_down += len(chunk)
            await caller.send(chunk)

    async def _cut(self, caller: Caller, call: Call) -> None:
        """It was ended from outside. Who has no answer yet gets one; who has half of one sees it break off."""
        if caller.started:
            caller.cut()
            return
        refused = Refused(403, "permission_error", _revoked(call.claim))
        if call.ending is CallEnding.STOPPED:
            refused = Refused(503, "api_error", "the gateway restarts; try again", again=True)
        call.status = refused.status
        await refusal.answer(caller, refused)

    def _tell(self, caller: Caller, call: Call, upstream: Upstream) -> None:
        task, generation = call.claim
        self._bus.publish(
            RequestServed(
                bytes_down=call.bytes_down,
                bytes_up=call.bytes_up,
                ending=call.ending.value,
                first_byte_s=round(call.first_byte_s, 4),
                generation=generation,
                path=caller.target.partition("?")[0].removeprefix(f"/agents/{task}/{generation}"),
                status=call.status,
                task=task,
                took_s=round(self._clock.monotonic() - call.began, 4),
                upstream=upstream.name,
            )
        )

    # -- the upstream's health, told when it changes -----------------------------------------------------------------

    def _lost(self, upstream: Upstream, why: str) -> None:
        if self._trouble.get(upstream.name, ("", 0.0))[0] == why:
            return
        self._trouble[upstream.name] = (why, self._clock.monotonic())
        self._bus.publish(Noticed(subject="gateway", message=f"{upstream.url} {why}"))

    def _heard(self, upstream: Upstream, status: int) -> None:
        if status in (401, 403):
            self._lost(upstream, f"refuses the coordinator's key ({status})")
        elif upstream.name in self._trouble:
            why, since = self._trouble.pop(upstream.name)
            took_s = self._clock.monotonic() - since
            message = f"{upstream.url} answers again after {took_s:.0f} s (it was: {why})"
            self._bus.publish(Noticed(subject="gateway", message=message))


def _revoked(claim: Claim) -> str:
    task, generation = claim
    return f"the key of attempt {generation} at {task} was revoked: the attempt was stopped or is over"
