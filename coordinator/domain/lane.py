"""The four lanes in which callers wait."""

from __future__ import annotations

import enum


class Lane(enum.IntEnum):
    """How urgent a call is; lanes are served in this order, and waiting makes up for it (``kit.stage``)."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3
