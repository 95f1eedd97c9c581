"""What a span is before anybody is told of it: something that is over, with its times, its name and its place in a trace.

Owns one invariant: the ids of an attempt are made of the attempt itself, so that whoever tells of a part of it, at whatever
time and in whichever process, tells of the same trace. What is told in one is ``policy.spans``'.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

Attributes = dict[str, str | int | float | bool | tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptIds:
    """The trace of an attempt, and the span in it that is the attempt itself."""

    span: int
    trace: int

    @classmethod
    def of(cls, house: str, task: str, generation: int) -> AttemptIds:
        """``house`` tells apart what is called alike elsewhere."""
        digest = hashlib.sha256(f"{house}\0{task}\0{generation}".encode()).digest()
        return cls(span=int.from_bytes(digest[16:24]) or 1, trace=int.from_bytes(digest[:16]) or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanSketch:
    """Times are seconds since 1970. ``failure`` is its error's class (empty: none). ``attempt`` None: it belongs to none.
    ``whole``: it is the attempt, else a part of it."""

    attempt: AttemptIds | None
    attributes: Attributes
    began: float
    ended: float
    failure: str
    name: str
    whole: bool = False
