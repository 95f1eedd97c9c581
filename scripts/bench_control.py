"""scripts/bench control: the product's detectors and controllers in worlds of known truth, on a virtual clock, against rivals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scripts.control_detect import cost, detection, incidents, replayed
from scripts.control_router import router
from scripts.control_scaler import scaler
from scripts.control_tuning import tuning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

PARTS: Final[Mapping[str, Callable[[Path, bool], Iterator[tuple[str, str, str]]]]] = {
    "incidents": incidents,
    "detection": detection,
    "cost": cost,
    "replay": replayed,
    "router": router,
    "scaler": scaler,
    "tuning": tuning,
}
