"""AnomalyDetector: the bank of all detectors, one step for each event, and the alarms that come of it.

Owns one invariant: an alarm begins once and ends once: when its sum has stayed below half its threshold for ``CALM_LOOKS``
looks, or when it is older than ``LONGEST_S`` (then what is usual is learnt anew). The constants are from simulation; the
bench measures them again. Which alarms belong together is ``incident_book``'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.incident import Alarm, AlarmLevel, AlarmStep
from coordinator.policy.cusum import CAP, Shift
from coordinator.policy.log_histogram import bin_of, value_of
from coordinator.policy.sentry import CountSentry, DetectorMethod, DetectorPlan, RankSentry, ShareSentry, ZSentry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from coordinator.policy.sentry import Sentry

CALM_LOOKS: Final = 24
LONGEST_S: Final = 6 * 3600.0
_SCOPES: Final = 20
_Z_THRESHOLD: Final = 3.5

_RISING: Final = Shift(odds=11.0)
_FAULT: Final = DetectorPlan(method=DetectorMethod.BERNOULLI, shift=_RISING, threshold=8.0)


def _rank(allowance: float, threshold: float) -> DetectorPlan:
    return DetectorPlan(method=DetectorMethod.RANK, allowance=allowance, threshold=threshold)


PLANS: Final[Mapping[str, DetectorPlan]] = {
    "attempt_s": _rank(0.5, 13.0),
    "cache": DetectorPlan(method=DetectorMethod.BERNOULLI, shift=Shift(drop=0.05), threshold=12.0),
    "call_s": _rank(0.75, 10.0),
    "calls": DetectorPlan(method=DetectorMethod.POISSON, threshold=17.0),
    "cost_usd": _rank(1.0, 9.0),
    "dedup": DetectorPlan(method=DetectorMethod.BERNOULLI, shift=Shift(drop=0.04), threshold=12.0),
    "depth": DetectorPlan(
        method=DetectorMethod.BERNOULLI, floor=0.02, shift=Shift(odds=49.0), threshold=9.7, usual=0.02
    ),
    "fault": _FAULT,
    "first_token_s": _rank(0.7, 9.0),
    "first_token_s@": _rank(0.75, 12.0),
    "gate": DetectorPlan(
        least=50, memory=300.0, method=DetectorMethod.BERNOULLI, shift=Shift(odds=0.2), threshold=8.5, usual=0.9
    ),
    "gate_s": _rank(0.5, 13.0),
    "landing": DetectorPlan(
        least=50, memory=300.0, method=DetectorMethod.BERNOULLI, shift=Shift(odds=0.25), threshold=8.4, usual=0.83
    ),
    "late": _FAULT,
    "limited": _FAULT,
    "prompt_cache": DetectorPlan(method=DetectorMethod.BERNOULLI, shift=Shift(drop=0.05), threshold=12.0),
    "shed": replace(_FAULT, threshold=4.5),
    "token_s": _rank(1.25, 9.0),
    "wait": _FAULT,
}
"""By metric; with @ for single upstreams, where these have a plan of their own: with fewer calls it wanders more. ``shed``
alarms at the second refusal where there never was one."""


@dataclass(slots=True, kw_only=True)
class _Watched:
    """``began_s`` is None while there is no alarm."""

    began_s: float | None = None
    calm_looks: int = 0
    critical: bool = False
    metric: str
    scope: str
    sentry: Sentry


class AnomalyDetector:
    """``measure``, ``judge`` and ``count`` feed it; ``look`` tells what changed. ``robust_z`` names metrics (of those that
    are measured) that are judged by a Z-score instead of their usual method."""

    def __init__(self, robust_z: Sequence[str] = ()) -> None:
        self._plans = {
            name: DetectorPlan(method=DetectorMethod.ROBUST_Z, threshold=_Z_THRESHOLD)
            if name.rstrip("@") in robust_z
            else plan
            for name, plan in PLANS.items()
        }
        self._pairs: dict[tuple[str, str], tuple[Sentry, ...]] = {}
        self._scopes: set[str] = {""}
        self._watched: dict[tuple[str, str], _Watched] = {}

    def __len__(self) -> int:
        """How many metrics are watched."""
        return len(self._watched)

    def measure(self, metric: str, value: float, at_s: float, *, group: str, role: str, scope: str = "") -> None:
        """A duration or an amount, of all together and, with ``scope``, of its own upstream as well."""
        number = bin_of(value)
        for sentry in self._pairs.get((metric, scope)) or self._pair(metric, scope):
            if isinstance(sentry, RankSentry):
                sentry.step(group, number, at_s, role)
            elif isinstance(sentry, ZSentry):
                sentry.step(value_of(number))

    def judge(self, metric: str, hit: bool, *, role: str = "", scope: str = "") -> None:
        """A yes or no; as ``measure``."""
        for sentry in self._pairs.get((metric, scope)) or self._pair(metric, scope):
            if isinstance(sentry, ShareSentry):
                sentry.step(hit, role)

    def count(self, metric: str, events: int, exposure: float, took_s: float) -> None:
        sentry = self._sentry(metric, "")
        if isinstance(sentry, CountSentry):
            sentry.step(events, exposure, took_s)

    def look(self, at_s: float) -> list[Alarm]:
        """What changed since the last look, in a fixed order."""
        return [alarm for watched in self._watched.values() for alarm in _steps(watched, at_s)]

    def restart(self, at_s: float) -> list[Alarm]:
        """Something was changed on purpose: what was usual before says nothing any more. Alarms end."""
        ended = []
        for watched in self._watched.values():
            if watched.began_s is not None:
                ended.append(_end(watched, at_s))
            watched.sentry.restart()
        return ended

    def _pair(self, metric: str, scope: str) -> tuple[Sentry, ...]:
        """That of all together first. Upstreams beyond the first few share one."""
        if scope not in self._scopes and len(self._scopes) >= _SCOPES:
            return self._sentry(metric, ""), self._sentry(metric, "other")
        self._scopes.add(scope)
        found = (self._sentry(metric, ""), self._sentry(metric, scope)) if scope else (self._sentry(metric, ""),)
        self._pairs[metric, scope] = found
        return found

    def _sentry(self, metric: str, scope: str) -> Sentry:
        found = self._watched.get((metric, scope))
        if found is None:
            plan = (self._plans.get(f"{metric}@") if scope else None) or self._plans[metric]
            found = _Watched(metric=metric, scope=scope, sentry=_MAKERS[plan.method](plan))
            self._watched[metric, scope] = found
        return found.sentry


_MAKERS: Final[Mapping[DetectorMethod, Callable[[DetectorPlan], Sentry]]] = {
    DetectorMethod.BERNOULLI: ShareSentry,
    DetectorMethod.POISSON: CountSentry,
    DetectorMethod.RANK: RankSentry,
    DetectorMethod.ROBUST_Z: ZSentry,
}


def _steps(watched: _Watched, at_s: float) -> Iterator[Alarm]:
    height = watched.sentry.height()
    if watched.began_s is None:
        if height >= 1:
            watched.began_s, watched.calm_looks, watched.critical = at_s, 0, height >= CAP
            yield _alarm(watched, AlarmStep.BEGAN, at_s)
        return
    if height >= CAP and not watched.critical:
        watched.critical = True
        yield _alarm(watched, AlarmStep.WORSENED, at_s)
    watched.calm_looks = watched.calm_looks + 1 if watched.sentry.calm() and height < 1 else 0
    if watched.calm_looks >= CALM_LOOKS:
        yield _end(watched, at_s)
    elif at_s - watched.began_s >= LONGEST_S:
        yield _end(watched, at_s)
        watched.sentry.restart()


def _end(watched: _Watched, at_s: float) -> Alarm:
    alarm = _alarm(watched, AlarmStep.ENDED, at_s)
    watched.began_s, watched.critical = None, False
    return alarm


def _alarm(watched: _Watched, step: AlarmStep, at_s: float) -> Alarm:
    return Alarm(
        at_s=at_s,
        level=AlarmLevel.CRITICAL if watched.critical else AlarmLevel.WARNING,
        metric=watched.metric,
        role=watched.sentry.role(),
        scope=watched.scope,
        size=watched.sentry.size(),
        step=step,
    )
