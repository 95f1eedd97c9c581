"""One prompt on its way through the stages: what is known of it, how long each took, and how its asker hears of it.

Owns one invariant: an asker gets one answer, in the shape that was asked for: JSON once, or events of which the last is
``done`` or ``error``. Until the first word there is no answer yet, so what fails before has its true status.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from coordinator.gateway.dialect import refusal_reply
from coordinator.policy.complexity import Tier

if TYPE_CHECKING:
    from coordinator.domain.errors import BadInput
    from coordinator.gateway.calls import Call
    from coordinator.gateway.dialect import Denied
    from coordinator.gateway.prompt import Prompt
    from coordinator.gateway.prompt_delivery import PromptAnswer
    from coordinator.gateway.prompt_routes import Leg
    from coordinator.gateway.retrieval import Passage
    from coordinator.kit.clock import Clock
    from coordinator.kit.http import PageExchange

STAGES: Final = ("rag", "assemble", "inference", "post", "stream")
_DIGITS: Final = 6


class PromptCourse:
    """``until`` is a reading of the loop's clock. ``took`` is seconds by stage, without the waits at their doors."""

    def __init__(self, page: PageExchange, call: Call, prompt: Prompt, clock: Clock, until: float) -> None:
        self._clock = clock
        self.call = call
        self.collapsed = ""
        self.legs: tuple[Leg, ...] = ()
        self.page = page
        self.passages: tuple[Passage, ...] = ()
        self.prompt = prompt
        self.question = prompt.text
        self.score = 0.0
        self.session = prompt.session_id or f"{call.claim[0]}.{call.claim[1]}"
        self.tier = Tier.EITHER
        self.took = dict.fromkeys(STAGES, 0.0)
        self.trouble = ""
        """Why nothing was retrieved, when something should have been."""
        self.until = until
        self.waits_at = ""
        """The door it stands at; empty: none."""

    # -- an answer as events -------------------------------------------------------------------------------------------

    async def tell(self, text: str) -> None:
        """A piece of the answer's text."""
        began = self._clock.monotonic()
        if not self.page.started:
            await self._open()
        await self.page.send(_event("token", {"text": text}))
        self.took["stream"] += self._clock.monotonic() - began

    async def _open(self) -> None:
        call = self.call
        call.status = 200
        headers = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), _id(call))
        await self.page.start(200, headers)
        started = {"request_id": call.id, "session_id": self.session, "model": call.model, "upstream": call.upstream}
        await self.page.send(_event("start", {**started, "passages": [one.source for one in self.passages]}))

    async def conclude(self, answer: PromptAnswer, quality: float) -> None:
        """The whole of it: as the last event, or as all there is."""
        said = self._said(answer, quality)
        if not self.prompt.stream:
            self.call.status = 200
            await self.page.reply(200, ((b"content-type", b"application/json"), _id(self.call)), _json(said) + b"\n")
            return
        if self.collapsed and answer.text:
            await self.tell(answer.text)
        elif not self.page.started:
            await self._open()
        said["stages"] = self._stages()
        await self.page.send(_event("done", said))

    def _said(self, answer: PromptAnswer, quality: float) -> dict[str, Any]:
        usage = answer.usage
        said: dict[str, Any] = {
            "request_id": self.call.id,
            "session_id": self.session,
            "text": answer.text,
            "finish": answer.finish.value,
            "model": answer.model,
            "upstream": answer.upstream,
            "cached": self.collapsed == "cache",
            "collapsed": bool(self.collapsed),
            "usage": {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "cache_read_tokens": usage.cache_read_tokens,
                "cache_write_tokens": usage.cache_write_tokens + usage.cache_write_1h_tokens,
            },
            "cost_usd": round(self.call.cost_usd, 9),
            "complexity": self.score,
            "tier": self.tier.value,
            "passages": [one.source for one in self.passages],
            "stages": self._stages(),
            "quality": quality,
        }
        if self.prompt.metadata:
            said["metadata"] = dict(self.prompt.metadata)
        if self.trouble:
            said["retrieval"] = self.trouble
        return said

    def _stages(self) -> dict[str, float]:
        return {name: round(took, _DIGITS) for name, took in self.took.items()}


# -- an answer that is none ---------------------------------------------------------------------------------------------


async def refuse(page: PageExchange, denied: Denied, call: Call | None = None) -> None:
    """Say no: with a status, or in the middle of a stream as its last event."""
    status, headers, body = refusal_reply(None, denied)
    if page.started:
        await page.send(b"event: error\ndata: " + body + b"\n\n")
        return
    if call is not None:
        call.status = status
        call.retry_after_s = denied.retry_after_s
        headers = (*headers, _id(call))
    await page.reply(status, headers, body)


async def refuse_input(page: PageExchange, bad: BadInput, call: Call) -> None:
    """Say all that is wrong with a request."""
    problems = [{"key": one.key, "message": one.message, "expected": one.expected} for one in bad.problems]
    error = {"type": "invalid_request_error", "message": f"coordinator: {bad}", "code": "invalid_request"}
    call.status = bad.status
    headers = ((b"content-type", b"application/json"), (b"x-should-retry", b"false"), _id(call))
    await page.reply(bad.status, headers, _json({"type": "error", "error": {**error, "problems": problems}}))


def _id(call: Call) -> tuple[bytes, bytes]:
    return b"x-request-id", call.id.encode()


def _event(name: str, said: dict[str, Any]) -> bytes:
    return f"event: {name}\n".encode() + b"data: " + _json(said) + b"\n\n"


def _json(value: dict[str, Any]) -> bytes:
    """On one line, in ASCII."""
    return json.dumps(value, separators=(",", ":")).encode()
