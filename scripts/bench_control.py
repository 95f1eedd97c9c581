"""scripts/bench control: the product's controllers in worlds whose truth is known, on a virtual clock, against rivals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scripts.control_router import router
from scripts.control_scaler import scaler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

PARTS: Final[Mapping[str, Callable[[Path, bool], Iterator[tuple[str, str, str]]]]] = {
    "router": router,
    "scaler": scaler,
}
