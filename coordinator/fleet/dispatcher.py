"""Offers tasks to agents: as many as there are hands, the most urgent first, and none that may not start now.

Owns one invariant: a task that is ready in the ledger has an offer on the board or is put back; one that cannot be
offered holds up no other. Which ones is ``policy.dispatch``'s decision, whether a role is well ``policy.breaker``'s.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final, Protocol

from coordinator.domain.errors import CoordinatorError
from coordinator.domain.event import Noticed
from coordinator.domain.model_choice import ModelQuestion
from coordinator.domain.task import ACTIVE, OWNED, TaskState
from coordinator.fleet.admission import GROWING_S, Admission, start_bytes
from coordinator.fleet.gate import UNTESTED_FACT
from coordinator.fleet.ready import Dispatch
from coordinator.fleet.roles import RoleWatch
from coordinator.policy import dispatch
from coordinator.policy.routing import VIA
from coordinator.policy.verdict import SAFE_ROLES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from coordinator.domain.attempt import Ending
    from coordinator.domain.card import RoleCard
    from coordinator.domain.settings import Settings
    from coordinator.domain.vitals import Vitals
    from coordinator.fleet.intake import Intake
    from coordinator.fleet.lander import Lander
    from coordinator.fleet.ledger import Ledger, LedgerEntry
    from coordinator.fleet.ready import ReadyBoard
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.git import Git
    from coordinator.sdk.layout import Layout

_log = logging.getLogger(__name__)

_AGAIN_S: Final = 5.0
"""Pause of a task that could not be offered (full disk, a ref that git could not set)."""

_SPARE: Final = 2
"""Offers beyond the free hands: an agent that ends finds the next task at once, and little is offered on an old base."""

_REFUSED_S: Final = 5.0
"""Pause between two looks at what stands in the way of any start at all: nobody tells when memory or disk are free again."""


def _key(entry: LedgerEntry) -> tuple[str, int]:
    return entry.task.id, entry.generation


class Sizer(Protocol):
    """Who says how many agent processes there may and should be."""

    @property
    def ahead_s(self) -> float: ...
    @property
    def cap(self) -> int: ...
    def want(self, busy: int, queued: int, coming: int) -> int: ...


async def _no_choice(asked: ModelQuestion) -> str:
    return ""


class Dispatcher:
    """Used by the steward, once a turn. ``wake_at`` (epoch seconds) is when the next pause ends, None when none runs.

    ``choose_model`` names the model of an attempt that is about to be offered; empty: its task or its card does.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        *,
        board: ReadyBoard,
        choose_model: Callable[[ModelQuestion], Awaitable[str]] = _no_choice,
        git: Git,
        intake: Intake,
        lander: Lander,
        layout: Layout,
        ledger: Ledger,
        settings: Settings,
        sizer: Sizer,
    ) -> None:
        self._admission = Admission(layout.state, settings.fleet)
        self._board = board
        self._bus = bus
        self._choose_model = choose_model
        self._clock = clock
        self._git = git
        self._intake = intake
        self._lander = lander
        self._ledger = ledger
        self._roles = RoleWatch(bus, clock, ledger)
        self._settings = settings
        self._sizer = sizer
        self._started: dict[tuple[str, int], float] = {}
        self.refusal = ""
        ledger.fact("refusal", "")
        self.wake_at: float | None = None

    async def turn(self) -> None:
        """Offer what may start; take an offer back for something more urgent."""
        room = self._room()
        pressing = self._less_urgent_offer() if room <= 0 else None
        if room <= 0 and pressing is None and not self.refusal and not self._intake.external_roles():
            return
        choice = dispatch.choose(
            (self._intake.waiting(entry) for entry in self._ledger.in_state(TaskState.PENDING)),
            [self._intake.waiting(entry) for entry in self._ledger.in_state(*ACTIVE)],
            now=self._clock.now().timestamp(),
            refusal=self._refuse(),
            role_refusals=self._role_refusals(),
            role_slots=self._role_slots(),
            room=max(room, 1 if pressing is not None else 0),
            roomless=self._intake.external_roles(),
        )
        self.wake_at = self._wake_at(choice.wake_at)
        for task_id, cause in choice.causes:
            self._ledger.note(task_id, reason=cause)
        if pressing is not None and not self._makes_way(pressing, choice.ready):
            return
        await self._offer(choice.ready)

    def withdraw(self, entry: LedgerEntry, reason: str) -> bool:
        """Take an offer back and put the task to pending; False when it was claimed."""
        if not self._board.withdraw(entry.task.id, entry.generation):
            return False
        self._put_back(entry, reason)
        return True

    def mend(self, entry: LedgerEntry) -> None:
        """A ready task whose offer is not on the board (any more) and was not taken is put back."""
        if not self._board.offers(entry.task.id):
            self.withdraw(entry, "its offer was gone; it is offered anew")

    def hands_wanted(self) -> int:
        """Agent processes of ours that there should be."""
        busy, queued = self._own(*OWNED), self._own(TaskState.READY)
        return self._sizer.want(len(busy), len(queued), self._coming())

    def _own(self, *states: TaskState) -> list[LedgerEntry]:
        """Without those that only agents from outside can take."""
        return [entry for entry in self._ledger.in_state(*states) if not self._intake.external(entry)]

    def _coming(self) -> int:
        """Tasks that are known to be ready soon: their pause or schedule is about to end, or their last dependency to land."""
        ahead_s = self._sizer.ahead_s
        if not ahead_s or self.refusal:
            return 0
        now = self._clock.now().timestamp()
        due = sum(now < entry.not_before <= now + ahead_s for entry in self._own(TaskState.PENDING))
        return due + sum(self._intake.about_to_be_free(entry) for entry in self._own(TaskState.BLOCKED))

    # -- the health of roles -------------------------------------------------------------------------------------------

    def note_ending(self, entry: LedgerEntry, ending: Ending, reason: str, retry_at: float = 0.0) -> Ending:
        """Fold how an attempt ended into its role's health; while the role is probed, nothing is charged to the task."""
        role = self._intake.role_of(entry.task)
        return self._roles.note_ending(role, _key(entry), ending, reason, retry_at=retry_at)

    def note_success(self, entry: LedgerEntry) -> None:
        """It left something to judge: whatever was wrong with its role is over."""
        self._roles.note_success(self._intake.role_of(entry.task), _key(entry))

    def note_vitals(self, entry: LedgerEntry, vitals: Vitals | None) -> None:
        """It is seen at work."""
        if vitals is not None:
            self._roles.note_vitals(self._intake.role_of(entry.task), _key(entry), vitals)

    def is_hopeless(self, entry: LedgerEntry) -> bool:
        """Whether waiting for this task's role has become pointless for a run that is to end by itself."""
        return self._roles.is_hopeless(self._intake.role_of(entry.task))

    def _role_refusals(self) -> dict[str, str]:
        return self._roles.refusals() | self._untested_refusals()

    def _untested_refusals(self) -> dict[str, str]:
        """While somebody is parked because the project's tests cannot be run, more of the same would only cost money."""
        if self._settings.gate.untested == "land" or not self._lander.parked():
            return {}
        missing = self._ledger.read_fact(UNTESTED_FACT) or []
        if not missing:
            return {}
        what = f"the project's tests cannot be run ({missing[0]['check']}: {missing[0]['reason']})"
        return dict.fromkeys(self._intake.roles() - SAFE_ROLES, f"{what}; {missing[0]['remedy']}")

    def _role_slots(self) -> dict[str, int]:
        """The cards' caps; one probe at a time for a role that is not well."""
        return {**self._intake.role_slots(), **self._roles.slots()}

    # -- offers --------------------------------------------------------------------------------------------------------

    def _room(self) -> int:
        return self._sizer.cap + _SPARE - len(self._own(TaskState.READY, *OWNED))

    def _less_urgent_offer(self) -> LedgerEntry | None:
        """The least urgent of our offers, when something more urgent is pending."""
        offers = [entry for entry in self._ledger.in_state(TaskState.READY) if not self._intake.external(entry)]
        most_urgent = self._ledger.highest_priority(TaskState.PENDING)
        if offers and most_urgent is not None and most_urgent < offers[-1].task.priority:
            return offers[-1]
        return None

    def _makes_way(self, offer: LedgerEntry, chosen: tuple[str, ...]) -> bool:
        if not chosen or self._ledger.get(chosen[0]).task.priority >= offer.task.priority:
            return False
        return self.withdraw(offer, f"made way for {chosen[0]}, which is more urgent")

    async def _offer(self, task_ids: tuple[str, ...]) -> None:
        base = await self._git.resolve(f"refs/heads/{self._settings.land.target}") if task_ids else ""
        if base is None:
            self._bus.publish(Noticed(subject="target", message=f"branch {self._settings.land.target} is gone"))
            return
        for number, task_id in enumerate(task_ids):
            if number and self._refuse():
                return  # each start takes its share; the next turn says why the rest waits
            entry = self._ledger.get(task_id)
            generation = self._intake.next_generation(entry)
            reason = "waits for an agent to claim it"
            if self._intake.external(entry):
                reason = f"waits for an agent of role {self._intake.role_of(entry.task)} from outside to claim it"
            entry = self._ledger.move(task_id, TaskState.READY, reason, generation=generation, tries=entry.tries + 1)
            self._ledger.record(task_id, generation, base=base, role=self._intake.role_of(entry.task))
            self._roles.offered(self._intake.role_of(entry.task), _key(entry))
            await self._put_on_board(entry, base)

    async def _put_on_board(self, entry: LedgerEntry, base: str) -> None:
        card = self._intake.card_of(entry.task)
        try:
            offer = Dispatch(
                task=entry.task,
                card=card,
                generation=entry.generation,
                base=base,
                feedback=entry.feedback,
                model=await self._model_for(entry, card),
                resume=entry.resume,
            )
            await self._board.publish(offer)
        except (CoordinatorError, OSError) as error:
            extra = {"action": "offer_failed", "task": entry.task.id}
            _log.warning("%s could not be offered: %s", entry.task.id, error, extra=extra)
            self._board.clear(entry.task.id)
            self._put_back(entry, f"could not be offered: {error}", pause_s=_AGAIN_S)

    async def _model_for(self, entry: LedgerEntry, card: RoleCard) -> str:
        asked = ModelQuestion(
            attempt=entry.attempts,
            attempts=entry.task.max_attempts or self._settings.fleet.max_attempts,
            generation=entry.generation,
            models=card.models,
            role=card.role,
            task=entry.task,
        )
        return (await self._choose_model(asked)).partition(VIA)[0]

    def _put_back(self, entry: LedgerEntry, reason: str, *, pause_s: float = 0.0) -> None:
        changes: dict[str, float] = {"generation": entry.generation - 1, "tries": max(entry.tries - 1, 0)}
        if pause_s:
            changes["not_before"] = self._clock.now().timestamp() + pause_s
        self._ledger.move(entry.task.id, TaskState.PENDING, reason, **changes)

    def _refuse(self) -> str:
        """Why nothing may be started now; said once when it begins and once when it ends."""
        broken, before = self._lander.broken(), self.refusal
        refusal = f"the gate is broken: {broken}" if broken else self._admission.refusal(self._promised_bytes())
        if _less_numbers(refusal) != _less_numbers(before):
            self._bus.publish(Noticed(subject="dispatch", message=refusal or "dispatch goes on"))
            self._ledger.fact("refusal", refusal)
        self.refusal = refusal
        return refusal

    def _promised_bytes(self) -> int:
        """Memory that agents will take which have just started, or start as soon as they find their offer."""
        now = self._clock.monotonic()
        owned = [entry for entry in self._ledger.in_state(*OWNED) if not self._intake.external(entry)]
        offers = [entry for entry in self._ledger.in_state(TaskState.READY) if not self._intake.external(entry)]
        self._started = {_key(entry): self._started.get(_key(entry), now) for entry in owned}
        growing = [entry for entry in owned if now - self._started[_key(entry)] < GROWING_S]
        growing += offers[: max(self._sizer.cap - len(owned), 0)]
        return sum(start_bytes(self._intake.find_card(entry.task)) for entry in growing)

    def _wake_at(self, due: float | None) -> float | None:
        """The next moment at which a turn may find something new to start (epoch seconds)."""
        now, role_s = self._clock.now().timestamp(), self._roles.wake_in_s()
        moments = [due, None if role_s is None else now + role_s, now + _REFUSED_S if self.refusal else None]
        return min((moment for moment in moments if moment is not None), default=None)


def _less_numbers(refusal: str) -> str:
    """A refusal is the same news however many MiB it is about at the moment."""
    return re.sub(r"[0-9]+", "", refusal)
