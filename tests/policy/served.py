"""Model calls that are over, for who folds them."""

from __future__ import annotations

from typing import Any, Final

from coordinator.domain.event import RequestServed

_USUAL: Final = {
    "agent": "t.1",
    "bytes_down": 1000,
    "bytes_up": 1000,
    "cost_usd": 0.02,
    "ending": "served",
    "first_byte_s": 1.0,
    "generation": 1,
    "input_tokens": 1000,
    "model": "m",
    "output_tokens": 100,
    "path": "/v1/messages",
    "priced": True,
    "role": "claude",
    "status": 200,
    "stream": True,
    "task": "t",
    "took_s": 6.0,
    "tries": 1,
    "upstream": "up",
}


def served(**changed: Any) -> RequestServed:
    return RequestServed(**{**_USUAL, **changed})
