"""The gateway by itself, for whoever wants its model calls to pass through one place and no fleet.

Owns one invariant: it is the same gateway, at the same place, with the same book of calls as a daemon's in this folder would be,
and never beside one. Its keys are for names that a person gives, and live as long as it runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.verbs_calls import show_door
from coordinator.domain.config import HOST_NAME, HOST_RULE
from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem
from coordinator.domain.task import TASK_ID
from coordinator.domain.upstream import UpstreamKind, usual_upstream
from coordinator.fleet.directory import make_state, sole_daemon
from coordinator.gateway.book import CallBook
from coordinator.gateway.claimant import Claimant
from coordinator.gateway.documents import folder_documents
from coordinator.gateway.gateway import Gateway
from coordinator.gateway.upstream import upstreams_of
from coordinator.kit import process
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.service import Supervisor
from coordinator.kit.store import Store
from coordinator.policy.spans import SpanPlace
from coordinator.sdk.layout import Layout
from coordinator.surface import terminal
from coordinator.surface.log import EventLog, log_settings, set_up
from coordinator.surface.metrics import exposition
from coordinator.surface.traces import traces_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from coordinator.api.command import GatewayArguments
    from coordinator.domain.meter import Meter
    from coordinator.domain.settings import GatewaySettings, Settings
    from coordinator.kit.service import Service
    from coordinator.surface.traces import Traces

_KEYS_OF: Final = 0
"""The generation of keys that are no attempt's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AloneOrder:
    """``names`` are whom keys are made for, ``traces`` is the setting whether spans are sent."""

    names: tuple[str, ...]
    settings: GatewaySettings
    traces: str = "off"


def order_from(asked: GatewayArguments, written: Settings) -> AloneOrder:
    """What is typed comes before what is written. Raises ``BadInput``, also when there is nowhere to send a call to."""
    names = asked.name or ("local",)
    for name in names:
        if TASK_ID.fullmatch(name) is None:
            raise BadInput([Problem(file="--name", message=f"is {name!r}", expected="a name such as laptop")])
    settings = written.gateway
    if asked.host and HOST_NAME.fullmatch(asked.host) is None:
        raise BadInput([Problem(file="--host", message=f"is {asked.host!r}", expected=HOST_RULE)])
    settings = replace(settings, enabled="on", host=asked.host or settings.host)
    if asked.port is not None:
        settings = replace(settings, port=asked.port)
    if asked.echo:
        settings = replace(
            settings, upstreams=(replace(usual_upstream(UpstreamKind.ECHO, "echo"), models=("echo", "*")),)
        )
    known = upstreams_of(settings, os.environ).known
    if all(one.fault for one in known):
        remedy = (
            "a provider's key in the environment, [[gateway.upstreams]] in coordinator.toml, or --echo to try it out"
        )
        faults = sorted({one.fault for one in known})
        raise BadInput([Problem(file="gateway", message=fault, expected=remedy) for fault in faults])
    return AloneOrder(names=names, settings=settings, traces=written.traces.export)


def at_terminal(root: Path, settings: Settings, asked: GatewayArguments, *, as_json: bool) -> int:
    """What a client needs to know is printed once, then what happens."""
    order = order_from(asked, settings)
    logging_as = log_settings(settings.log)
    set_up(logging_as, stream=sys.stderr)

    def screens(bus: Bus, door: Mapping[str, Any]) -> Sequence[Service]:
        if as_json:
            sys.stdout.write(json.dumps(door) + "\n")
        else:
            terminal.write(sys.stdout, show_door(door, terminal.columns(sys.stdout)))
        sys.stdout.flush()
        return [EventLog(bus, sys.stdout, logging_as, every=as_json)]

    return asyncio.run(run(Layout(root, root / settings.paths.state), order, screens))


async def run(layout: Layout, order: AloneOrder, screens: Callable[[Bus, Mapping[str, Any]], Sequence[Service]]) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. ``screens`` show what happens, and first what a client needs:
    ``url``, ``keys`` and ``upstreams``. Raises ``DaemonBusy`` and ``OSError``."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    make_state(layout)
    process.hide()  # it has the providers' keys
    bus = Bus(SystemClock())
    with sole_daemon(layout):
        store = Store.open(layout.ledger)
        book = CallBook(store)
        bus.tap(book.take)
        traces = _traces(layout, order, bus)
        gateway = _gateway(layout, order, bus, store, traces)
        supervisor = Supervisor(bus, SystemClock())
        try:
            gateway.open()
            services = [*screens(bus, _door(gateway, order)), *([traces] if traces is not None else []), book, gateway]
            for service in services:
                supervisor.start(service)
            await stop.wait()
        finally:
            await supervisor.stop()
            gateway.close()
            store.close()
    return 0


def _traces(layout: Layout, order: AloneOrder, bus: Bus) -> Traces | None:
    places = {one.name: SpanPlace.of(one.kind, one.url) for one in upstreams_of(order.settings, os.environ).known}
    return traces_of(order.traces, os.environ, bus, places, repository=layout.repository, state=layout.state)


def _gateway(layout: Layout, order: AloneOrder, bus: Bus, store: Store, traces: Traces | None) -> Gateway:
    known = {(name, _KEYS_OF): Claimant(agent=name) for name in order.names}

    def who(name: str, generation: int) -> Claimant | None:
        return known.get((name, generation))

    def render(meters: Iterable[Meter]) -> tuple[bytes, str]:
        return exposition([*meters, *(traces.meters() if traces is not None else ())])

    clock, state, origins = SystemClock(), layout.state, {"doc": folder_documents(layout.repository)}
    return Gateway(state, order.settings, os.environ, bus, clock, store, origins=origins, render=render, who=who)


def _door(gateway: Gateway, order: AloneOrder) -> dict[str, Any]:
    return {
        "keys": {name: gateway.credentials(name, _KEYS_OF)[1] for name in order.names},
        "upstreams": {one.name: one.url for one in upstreams_of(order.settings, os.environ).in_use()},
        "url": gateway.url,
    }
