"""The one table of verbs. The command line and the local API are made from it; so will be every further way to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.api import (
    verbs_calls,
    verbs_explain,
    verbs_findings,
    verbs_fleet,
    verbs_gateway,
    verbs_knobs,
    verbs_operate,
    verbs_router,
    verbs_scan,
    verbs_service,
    verbs_setup,
    verbs_snapshots,
    verbs_status,
    verbs_tasks,
    verbs_watch,
)

if TYPE_CHECKING:
    from coordinator.api.verb import Verb


def all_verbs() -> tuple[Verb, ...]:
    """Sorted by name."""
    modules = (
        verbs_calls,
        verbs_explain,
        verbs_findings,
        verbs_fleet,
        verbs_gateway,
        verbs_knobs,
        verbs_operate,
        verbs_router,
        verbs_scan,
        verbs_service,
        verbs_setup,
        verbs_snapshots,
        verbs_status,
        verbs_tasks,
        verbs_watch,
    )
    return tuple(sorted((verb for module in modules for verb in module.VERBS), key=lambda verb: verb.name))
