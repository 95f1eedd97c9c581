"""What a person may set of control: the watch, the choice of models, the size of the fleet (``control_config`` validates)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """What watches over the daemon's own numbers."""

    max_error_rate: float = 0.05
    """A snapshot of knobs under which more of the calls failed is not the best of any."""
    max_wait_s: float = 30.0
    """How long 95 % of calls may wait for their turn; doors let fewer wait when it is longer."""
    objective: str = "value"
    """What a set of knobs is judged by: ``value`` (of landed tasks, ``[router] values_usd``, less the cost of calls) or
    ``landed`` (their number)."""
    record: str = ""
    """A file of the repository (or an absolute path) where all that the detectors are told is written anew by each daemon, for
    ``coordinator telemetry --replay``; empty: none. A busy day is some 30 MB. No prompt and no answer is in it."""
    robust_z: tuple[str, ...] = ()
    """Measured metrics that are judged by a robust Z-score instead: ``first_token_s``, ``token_s``, ``call_s``, ``cost_usd``,
    ``gate_s`` or ``attempt_s``. Many more false alarms; for who wants to see each outlier."""
    tuning: str = "auto"
    """``on``, ``off``, ``dry-run`` (changes are recorded and not made), or ``auto``: on with ``--self-improve``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """Which model an attempt is given where a role may use several. A task that names its ``model`` gets that one."""

    drift: float = 0.016
    """How fast what was learnt of a model grows uncertain, in squared log-odds an hour: at 0 a model that turned silently worse
    is not left for days."""
    floor: float = 0.02
    """Share of choices made by price alone, so that what is not chosen stays known and ``router replay`` can compare."""
    hour_usd: float = 1.0
    """What an hour of waiting for an attempt is worth."""
    max_attempt_usd: float = 0.0
    """Models of which an attempt is expected to cost more are not chosen. 0: no limit."""
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """``[router.models]``: by role, the models to choose among, an id or ``ID via UPSTREAM``; instead of those of its card."""
    policy: str = "thompson"
    """``thompson`` (learns, and plans with the retries that are left), ``linucb``, ``epsilon_greedy``, or ``first``: the first
    of the list."""
    values_usd: Mapping[str, float] = field(
        default_factory=lambda: {"bug": 5.0, "feature": 10.0, "lint": 0.5, "task": 5.0, "upgrade": 1.5}
    )
    """``[router.values_usd]``: what a landed task of a kind is worth. A label of a task names its kind; ``task`` is any other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSettings:
    """How the number of agent processes follows the work. ``[fleet] agents`` stays the most there may be."""

    ahead_s: float = 60.0
    """Work that is known to come within this time is counted as if it were there: about what an agent needs to start."""
    enabled: str = "auto"
    """``on``, ``off``, or ``auto``: on with ``--self-improve``. Off: as many agents as tasks are at work or on offer."""
    least: int = 0
    """Agent processes that are always there, 0…100."""
    linger_s: float = 300.0
    """An agent process that found nothing to do ends after this; instead of ``[fleet] idle_exit_s``."""
    spare: int = 1
    """Agent processes kept beyond those that have work, so that the next task does not wait for a start."""
