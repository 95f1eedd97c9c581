"""KnobBoard: all knobs of the daemon in one list, who turned them and why, what is pinned, and whether the loop may turn any.

Owns one invariant: no knob is turned without a record of it, and what is frozen, pinned or a person's alone is turned by nobody
else. Values outlive the daemon, except those that are on trial when it ends; a default that was changed in the settings since
is the newer word.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.errors import BadInput
from coordinator.domain.knob import ChangeAuthor, ChangeVerdict, KnobKind
from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.control.knob_panel import KnobPanel
    from coordinator.domain.knob import KnobReading
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store

_FACT: Final = "knobs"
_KEPT: Final = timedelta(days=365)


class KnobBoard:
    """``begin`` before anything runs."""

    def __init__(self, store: Store, clock: Clock, panels: Sequence[KnobPanel]) -> None:
        self._clock = clock
        self._panels = panels
        self._store = store
        rows = store.query("fact_get", key=_FACT)
        kept: Mapping[str, Any] = json.loads(rows[0]["value"]) if rows else {}
        self._values: dict[str, tuple[float, float | None]] = {
            name: (value, usual) for name, (value, usual) in kept.get("values", {}).items()
        }
        self.frozen: bool = kept.get("frozen", False)
        """Whether the loop turns nothing; a person still may."""
        self.pinned: set[str] = set(kept.get("pinned", ()))
        self.on_trial: set[int] = set()
        """Numbers of changes that are not judged yet."""

    def begin(self) -> None:
        """Turn what was turned before; trials of an earlier daemon are over."""
        now = self._clock.now()
        self._store.execute("knob_changes_abandon", at=now.isoformat())
        self._store.execute("knob_changes_trim", before=(now - _KEPT).isoformat())
        for panel in self._panels:
            panel.begin_with(self._values)

    # -- what is asked -------------------------------------------------------------------------------------------------

    async def readings(self) -> dict[str, KnobReading]:
        """By name, in their order; without those of what does not run."""
        found = [one for panel in self._panels for one in await panel.knobs()]
        return {one.knob.name: one for one in sorted(found, key=lambda one: one.knob.name)}

    async def reading(self, name: str) -> KnobReading:
        """Raises ``BadInput``."""
        known = await self.readings()
        if name not in known:
            raise BadInput([Problem(file=name, message="is no knob", expected=f"one of {', '.join(known)}")])
        return known[name]

    async def list(self) -> list[dict[str, Any]]:
        return [self.describe(one) for one in (await self.readings()).values()]

    def describe(self, one: KnobReading) -> dict[str, Any]:
        return {**one.to_json(), "pinned": one.knob.name in self.pinned}

    def may_turn(self, reading: KnobReading) -> bool:
        """Whether the loop may."""
        name = reading.knob.name
        return not self.frozen and name not in self.pinned and reading.knob.kind is not KnobKind.FIXED

    # -- what a person does --------------------------------------------------------------------------------------------

    async def set(self, name: str, value: float | None, reason: str) -> float:
        """By a person; None: back to its default. Returns the value. Raises ``BadInput`` and ``DaemonUnreachable``."""
        reading = await self.reading(name)
        new = reading.default if value is None else value
        await self._turn(reading, new, ChangeAuthor.PERSON, reason)
        self._record(reading, new, ChangeAuthor.PERSON, reason, verdict=ChangeVerdict.KEPT)
        self._remember(reading, new)
        return new

    async def pin(self, name: str, pinned: bool) -> None:
        """Raises ``BadInput``."""
        await self.reading(name)
        (self.pinned.add if pinned else self.pinned.discard)(name)
        self._keep()

    def freeze(self, frozen: bool) -> None:
        self.frozen = frozen
        self._keep()

    # -- what the loop does --------------------------------------------------------------------------------------------

    async def turn(
        self, name: str, value: float, author: ChangeAuthor, why: str, *, trial: str = "", dry: bool = False
    ) -> int | None:
        """Turn a knob to the allowed value next to ``value``; the number of the change, None: it is not to be turned, or is
        there. With a ``trial`` the change stays open until ``settle``. ``dry``: it is recorded and not made."""
        reading = (await self.readings()).get(name)
        if reading is None or not self.may_turn(reading):
            return None
        new = reading.knob.nearest(value)
        if new == reading.value:
            return None
        if dry:
            return self._record(reading, new, author, why, trial=trial, verdict=ChangeVerdict.DRY)
        await self._turn(reading, new, author, why)
        verdict = ChangeVerdict.TRIED if trial else ChangeVerdict.KEPT
        number = self._record(reading, new, author, why, trial=trial, verdict=verdict)
        if trial:
            self.on_trial.add(number)
        else:
            self._remember(reading, new)
        return number

    async def alternate(self, name: str, value: float, reason: str) -> None:
        """Within a trial, from one of its values to the other; this is no change of its own."""
        reading = await self.reading(name)
        if reading.value != value:
            await self._turn(reading, value, ChangeAuthor.BLOCK, reason)

    async def settle(
        self, number: int, name: str, verdict: ChangeVerdict, outcome: str, *, back_to: float, author: ChangeAuthor
    ) -> None:
        """The trial of a change is over. Reverted or aborted, the knob goes back: also when the loop was frozen meanwhile."""
        reading = (await self.readings()).get(name)
        if reading is not None and verdict is ChangeVerdict.KEPT:
            self._remember(reading, reading.value)
        elif reading is not None and reading.value != back_to:
            await self._turn(reading, back_to, author, f"change {number} is {verdict}: {outcome}")
        self.note_outcome(number, verdict, outcome)

    def note_outcome(self, number: int, verdict: ChangeVerdict, outcome: str) -> None:
        self.on_trial.discard(number)
        at = self._clock.now().isoformat()
        self._store.execute("knob_change_settle", at=at, number=number, outcome=outcome, verdict=verdict.value)

    def note(self, name: str, old: float, new: float, author: ChangeAuthor, why: str) -> None:
        """Something changed by itself, and stays so until it changes itself again."""
        self._add(name, old, new, author, why, trial="", verdict=ChangeVerdict.KEPT)

    # -- kept ----------------------------------------------------------------------------------------------------------

    async def _turn(self, reading: KnobReading, value: float, author: ChangeAuthor, reason: str) -> None:
        name = reading.knob.name
        for panel in self._panels:
            if any(one.knob.name == name for one in await panel.knobs()):
                await panel.turn(name, value, author.value, reason)

    def _record(
        self,
        reading: KnobReading,
        new: float,
        author: ChangeAuthor,
        why: str,
        *,
        trial: str = "",
        verdict: ChangeVerdict,
    ) -> int:
        return self._add(reading.knob.name, reading.value, new, author, why, trial=trial, verdict=verdict)

    def _add(
        self, name: str, old: float, new: float, author: ChangeAuthor, why: str, *, trial: str, verdict: ChangeVerdict
    ) -> int:
        at = self._clock.now().isoformat()
        with self._store.transaction():
            self._store.execute(
                "knob_change_add",
                at=at,
                author=author.value,
                knob=name,
                new=new,
                old=old,
                outcome="",
                settled_at="" if verdict is ChangeVerdict.TRIED else at,
                trial=trial,
                verdict=verdict.value,
                why=why,
            )
            return int(self._store.query("knob_change_last")[0]["number"])

    def _remember(self, reading: KnobReading, value: float) -> None:
        name = reading.knob.name
        if value == reading.default:
            self._values.pop(name, None)
        else:
            self._values[name] = value, reading.default
        self._keep()

    def _keep(self) -> None:
        kept = {"frozen": self.frozen, "pinned": sorted(self.pinned), "values": self._values}
        self._store.execute("fact_put", key=_FACT, value=json.dumps(kept))
