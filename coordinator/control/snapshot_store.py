"""SnapshotStore: each set of values that all knobs had together, with what the time under it was worth, by how busy it was.

Owns one invariant: a snapshot is whole, and its score counts only time in which exactly its values stood. Scores of different
times of day say little; the best of a context has had at least an hour of it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from coordinator.control.objective import Score

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.control_settings import ControlSettings
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store

_KEPT: Final = 256
_LEAST_S: Final = 3600.0


class SnapshotStore:
    """``take`` now and then, while no trial goes on."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._clock = clock
        self._store = store

    def take(self, values: Mapping[str, float], source: str, score: Score) -> int:
        """Put ``score`` down to these values; they become a new version when they are not those of the last. Its number."""
        rows = self._store.query("knob_snapshots")
        last = _snapshot(rows[-1]) if rows else None
        with self._store.transaction():
            if last is None or last["values"] != dict(values):
                data = json.dumps({"scores": {}, "values": dict(values)})
                at = self._clock.now().isoformat()
                self._store.execute("knob_snapshot_add", at=at, data=data, source=source)
                self._store.execute("knob_snapshots_trim", keep=_KEPT)
                last = _snapshot(self._store.query("knob_snapshots")[-1])
            scores = last["scores"]
            known = Score(**scores.get(score.context, {}))
            known.add(score)
            scores[score.context] = known.to_json()
            data = json.dumps({"scores": scores, "values": last["values"]})
            self._store.execute("knob_snapshot_put", data=data, version=last["version"])
        return int(last["version"])


def _snapshot(row: Any) -> dict[str, Any]:
    return {"at": row["at"], "source": row["source"], "version": row["version"], **json.loads(row["data"])}


def snapshots(rows: list[Any], settings: ControlSettings) -> list[dict[str, Any]]:
    """With their worth an hour by context, and of which contexts each is the best."""
    found = [_snapshot(row) for row in rows]
    best: dict[str, tuple[float, int]] = {}
    for one in found:
        scores = {context: Score(**score) for context, score in one["scores"].items()}
        one["worth"] = {context: round(score.worth(settings.objective), 4) for context, score in scores.items()}
        for context, score in scores.items():
            allowed = score.took_s >= _LEAST_S and score.error_rate <= settings.max_error_rate
            rank = one["worth"][context], one["version"]
            if allowed and context != "idle" and rank > best.get(context, (float("-inf"), 0)):
                best[context] = rank
    for one in found:
        one["best"] = sorted(context for context, (_, version) in best.items() if version == one["version"])
    return found


def differences(one: Mapping[str, float], other: Mapping[str, float]) -> list[dict[str, Any]]:
    """None where a knob is not known to one of them."""
    names = sorted({*one, *other})
    return [
        {"knob": name, "new": other.get(name), "old": one.get(name)}
        for name in names
        if one.get(name) != other.get(name)
    ]
