"""Which alarms belong together, and what they point at.

Owns one invariant: while an incident is open, an alarm that begins within ``JOIN_S`` of its last news, of a metric or an
upstream that it has already, or on the side of the house (model calls, or the line from attempt to landing) where it still
goes on, is part of it and opens no other. It judges by what alarmed, in which order, and what was
changed shortly before; it proves no cause.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.incident import AlarmLevel, AlarmRecord, AlarmStep, Incident

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.domain.incident import Alarm

JOIN_S: Final = 600.0
_CHANGED_S: Final = 900.0
"""A change so long before an incident may be its cause."""

_FAMILIES: Final[Mapping[str, str]] = {
    "attempt_s": "attempts take longer",
    "cache": "the cache answers less",
    "call_s": "calls take longer",
    "calls": "busy agents make fewer calls",
    "cost_usd": "calls cost more",
    "dedup": "fewer calls share an answer",
    "depth": "calls queue up",
    "fault": "calls fail",
    "first_token_s": "first tokens come late",
    "gate": "the gate passes less",
    "gate_s": "the gate takes longer",
    "landing": "fewer attempts land",
    "late": "calls time out",
    "limited": "calls are limited",
    "prompt_cache": "the upstream's own cache of prompts serves less",
    "shed": "calls are turned away",
    "token_s": "tokens come slowly",
    "wait": "calls are held back",
}
_OF_UPSTREAMS: Final = frozenset({"call_s", "fault", "first_token_s", "late", "limited", "prompt_cache", "token_s"})
_OF_LINE: Final = frozenset({"attempt_s", "gate", "gate_s", "landing"})
_OF_STAGES: Final = frozenset({"calls", "depth", "shed", "wait"})


class IncidentBook:
    """``take`` alarms as they come, ``close_quiet`` at each look; both return what became of incidents."""

    def __init__(self, first: int = 1) -> None:
        self._next = first
        self._open: list[Incident] = []
        self._news_s: dict[int, float] = {}
        self._change: tuple[float, str] | None = None

    @property
    def open(self) -> tuple[Incident, ...]:
        return tuple(self._open)

    def note_change(self, at_s: float, what: str) -> None:
        self._change = at_s, what

    def take(self, alarms: Sequence[Alarm], at_s: float) -> list[Incident]:
        """Incidents that are new or changed, as they are after all of ``alarms``."""
        changed = {self._fold(alarm, at_s) for alarm in alarms}
        return [one for one in self._open if one.number in changed]

    def _fold(self, alarm: Alarm, at_s: float) -> int | None:
        incident = self._one_for(alarm, at_s)
        if incident is None:
            if alarm.step is AlarmStep.ENDED:
                return None
            incident = self._begin(alarm, at_s)
        else:
            self._open[self._open.index(incident)] = _with(incident, alarm, at_s)
            self._news_s[incident.number] = at_s
        return incident.number

    def _begin(self, alarm: Alarm, at_s: float) -> Incident:
        change = self._change[1] if self._change is not None and at_s - self._change[0] <= _CHANGED_S else ""
        first = _record(alarm, at_s)
        incident = Incident(
            alarms=(first,),
            began_s=at_s,
            cause=likely_cause((first,), change),
            change=change,
            level=alarm.level,
            number=self._next,
        )
        self._next += 1
        self._open.append(incident)
        self._news_s[incident.number] = at_s
        return incident

    def _one_for(self, alarm: Alarm, at_s: float) -> Incident | None:
        going = [one for one in self._open if any(_same(record, alarm) for record in one.alarms)]
        if going or alarm.step is not AlarmStep.BEGAN:
            return going[-1] if going else None
        for one in reversed(self._open):
            scopes = {record.scope for record in one.alarms if record.scope}
            soon = at_s - self._news_s[one.number] <= JOIN_S
            if soon or (alarm.scope and alarm.scope in scopes) or _still_there(one, alarm):
                return one
        return None

    def close_quiet(self, at_s: float) -> list[Incident]:
        """Incidents that are over: all their alarms are, and for ``JOIN_S`` there was no other."""
        over = [
            one
            for one in self._open
            if all(record.ended_s is not None for record in one.alarms) and at_s - self._news_s[one.number] > JOIN_S
        ]
        ended = []
        for one in over:
            self._open.remove(one)
            del self._news_s[one.number]
            ended.append(replace(one, ended_s=max(record.ended_s or 0.0 for record in one.alarms)))
        return ended


def _same(record: AlarmRecord, alarm: Alarm) -> bool:
    return record.metric == alarm.metric and record.scope == alarm.scope


def _still_there(incident: Incident, alarm: Alarm) -> bool:
    """Whether the incident goes on on the side of the house that the alarm is of."""
    side = alarm.metric in _OF_LINE
    return any(one.ended_s is None and (one.metric in _OF_LINE) is side for one in incident.alarms)


def _record(alarm: Alarm, at_s: float) -> AlarmRecord:
    return AlarmRecord(
        began_s=at_s, level=alarm.level, metric=alarm.metric, role=alarm.role, scope=alarm.scope, size=alarm.size
    )


def _with(incident: Incident, alarm: Alarm, at_s: float) -> Incident:
    """The incident after one more step. The size is that of the worst moment: an alarm that ends has none left."""
    records = list(incident.alarms)
    found = next((at for at, one in enumerate(records) if _same(one, alarm)), None)
    if found is None:
        records.append(_record(alarm, at_s))
    elif alarm.step is AlarmStep.ENDED:
        records[found] = replace(records[found], ended_s=at_s)
    else:
        level = AlarmLevel.CRITICAL if AlarmLevel.CRITICAL in (alarm.level, records[found].level) else alarm.level
        size, role = alarm.size or records[found].size, alarm.role or records[found].role
        records[found] = replace(records[found], ended_s=None, level=level, role=role, size=size)
    critical = any(one.level is AlarmLevel.CRITICAL for one in records)
    return replace(
        incident,
        alarms=tuple(records),
        cause=likely_cause(records, incident.change),
        level=AlarmLevel.CRITICAL if critical else AlarmLevel.WARNING,
    )


def likely_cause(alarms: Sequence[AlarmRecord], change: str) -> str:
    """One sentence: what happens, and whose it seems to be."""
    what = _FAMILIES[alarms[0].metric]
    scopes = [one.scope for one in alarms if one.scope]
    roles = {one.role for one in alarms if one.role}
    metrics = {one.metric for one in alarms}
    if change:
        where = f"since a change: {change}"
    elif len(set(scopes)) == 1:
        where = f"upstream {scopes[0]}"
    elif len(set(scopes)) > 1 or (metrics & _OF_UPSTREAMS and not roles):
        where = "all upstreams" if len(set(scopes)) > 1 else "upstreams"
    elif metrics & {"gate", "gate_s"}:
        where = "the gate"
    elif metrics <= _OF_STAGES:
        where = "the gateway's own stages"
    else:
        where = ""
    if len(roles) == 1 and not change:
        where = f"{where}, role {next(iter(roles))}".removeprefix(", ")
    return f"{what} ({where})" if where else what
