"""A caller whose client reads as it is told to, and the events of an answer in Anthropic's protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from coordinator.gateway.flight import Flight
    from coordinator.gateway.seat import Seat

HEAD = ((b"content-type", b"text/event-stream"),)


class Host:
    """Where nothing is set aside for a call, and nobody is too poor to pay for it."""

    def __init__(
        self, abandon: Callable[[], object] = bool, changed: Callable[[Flight], object] = lambda _: None
    ) -> None:
        self.abandon = abandon
        self.changed = changed

    def given_up(self) -> None: ...

    def heir(self, seats: Sequence[Seat]) -> Seat | None:
        return seats[0] if seats else None


class Reader:
    """An exchange whose client takes what it is told to take. ``room``: bytes that wait before it is full."""

    def __init__(self, room: int = 10**9) -> None:
        self.cuts = 0
        self.finished = False
        self.gone = False
        self.got = b""
        self.head: tuple[int, tuple[tuple[bytes, bytes], ...], int | None] | None = None
        self.room = room
        self.waiting = b""
        self.was_full = False
        self._hooks: tuple[Callable[[], None], Callable[[], None]] | None = None

    @property
    def full(self) -> bool:
        return not self.gone and len(self.waiting) > self.room

    @property
    def given(self) -> bytes:
        return self.got + self.waiting

    def start(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], *, reason: bytes = b"", length: int | None
    ) -> None:
        assert self.head is None
        self.head = (status, tuple(headers), length)

    def send(self, data: bytes) -> None:
        assert self.head is not None
        assert not self.finished
        if self.gone:
            raise ConnectionResetError
        self.waiting += data
        self._look()

    def finish(self) -> None:
        assert self.head is not None
        assert not self.finished
        self.finished = True

    def cut(self) -> None:
        self.cuts += 1
        self.gone = True

    def on_room(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._hooks = pause, resume

    def take(self, size: int) -> None:
        self.got, self.waiting = self.got + self.waiting[:size], self.waiting[size:]
        self._look()

    def _look(self) -> None:
        if self.full is not self.was_full:
            self.was_full = self.full
            if self._hooks is not None:
                self._hooks[0 if self.full else 1]()


def event(kind: str, **more: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()


START = event("message_start", message={"id": "msg_1", "content": []})
TEXT = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
THINKING = event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""})
STOP = event("content_block_stop", index=0)


def delta(said: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": said})
