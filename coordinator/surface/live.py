"""The live view of a run on a terminal: agents and what each does, the queue, what happened, how to stop.

Owns one invariant: it only looks. News scrolls by above and stays in the terminal's history; the picture below is drawn
at most four times a second and is gone when the run ends. Elsewhere ``surface.log`` writes lines instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.activity import usage
from coordinator.api.phrase import Phrase, phrase
from coordinator.api.view import BAD, DIM, GOOD, STRONG, WARN, Line, cut, duration, flow, line, pad, plural, span, wrap
from coordinator.domain import event as happened
from coordinator.policy.health import TROUBLED

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from rich.text import Text

    from coordinator.api.desk import LiveAgent, LiveDaemon, LiveSnapshot

_FRAME_S: Final = 0.25
_AGENTS_SHOWN: Final = 12
_STYLES: Final = MappingProxyType({BAD: "red", DIM: "dim", GOOD: "green", STRONG: "bold", WARN: "yellow"})
_WORKING: Final = ("claimed", "running")
_JUDGED: Final = ("validating", "landing")


class LiveView:
    """A service; ``look`` is the daemon's ``snapshot``."""

    name = "live-view"

    def __init__(self, live: LiveDaemon, stream: TextIO, *, columns: Callable[[], int]) -> None:
        self._live = live
        self._stream = stream
        self._columns = columns
        self._subscription = live.bus.subscribe(room=20_000)
        self._landed = 0
        self._last_landed = ""

    async def run(self, stopping: asyncio.Event) -> None:
        """Draw until told to stop, then print what is still queued and leave a clean screen."""
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream, highlight=False, markup=False, emoji=False, soft_wrap=False)
        with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as screen:
            printing = asyncio.create_task(self._print_news(console))
            while not stopping.is_set():
                screen.update(_text(self.picture(self._live.snapshot())), refresh=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), _FRAME_S)
            self._subscription.close()
            await printing
            screen.update(_text([]), refresh=True)

    async def _print_news(self, console: Any) -> None:
        async for published in self._subscription:
            if isinstance(published.event, happened.TaskLanded):
                self._landed += 1
                self._last_landed = published.event.title or published.event.task
            news = phrase(published.event)
            if news.level >= logging.INFO and not news.quiet:
                for row in self.news(f"{published.at.astimezone():%H:%M:%S}", news):
                    console.print(_text([row]))

    def news(self, moment: str, news: Phrase) -> list[Line]:
        """One event as it scrolls by."""
        first = f"{moment} {news.word:<9} "
        head, *rest = wrap(cut(news.text, 3 * self._columns()), self._columns() - 1, indent=len(first), first=first)
        return [(span(f"{moment} ", DIM), span(f"{news.word:<9} ", news.style), *head[1:]), *rest]

    def picture(self, seen: LiveSnapshot) -> list[Line]:
        """The part below the news."""
        width = self._columns() - 1
        lines: list[Line] = [line(), self._headline(seen, width), *self._queue(seen, width)]
        busy = [agent for agent in seen.agents if agent.task]
        for agent in busy[:_AGENTS_SHOWN]:
            lines += _agent(agent, width)
        if len(busy) > _AGENTS_SHOWN:
            lines.append(line(span(f"  … and {plural(len(busy) - _AGENTS_SHOWN, 'agent')} more at work", DIM)))
        idle = len(seen.agents) - len(busy)
        if idle or not busy:
            lines.append(line(span(f"{plural(idle, 'agent')} waiting for work" if idle else "no agent at work", DIM)))
        return [*lines, *self._footer(seen, width)]

    def _headline(self, seen: LiveSnapshot, width: int) -> Line:
        clock = _clock(seen.elapsed_s)
        text = cut(f"coordinator → {seen.target}", width - len(clock) - 2)
        return line(span(pad(text, width - len(clock)), STRONG), span(clock, DIM))

    def _queue(self, seen: LiveSnapshot, width: int) -> list[Line]:
        counts = seen.counts
        waiting = counts.get("pending", 0) + counts.get("ready", 0)
        working = sum(counts.get(state, 0) for state in _WORKING)
        judged = sum(counts.get(state, 0) for state in _JUDGED)
        parts = [f"{waiting} waiting", f"{working} at work", f"{judged} at the gate", f"{self._landed} landed"]
        parts += [f"{counts[name]} {name}" for name in ("blocked", "held", "failed") if counts.get(name)]
        lines = flow(parts, width)
        if self._last_landed:
            lines.append(line(span("last landed  ", DIM), span(cut(self._last_landed, width - 13), GOOD)))
        return lines

    def _footer(self, seen: LiveSnapshot, width: int) -> list[Line]:
        lines: list[Line] = []
        if seen.gate_broken:
            lines += wrap(cut(f"gate broken: {seen.gate_broken}", 3 * width), width, style=BAD)
        elif seen.judging:
            since = f" for {duration(seen.checking_s)}" if seen.checking else ""
            lines.append(line(span(cut(f"gate: {seen.checking or 'judging the merged tree'}{since}", width), DIM)))
        if seen.refusal and not seen.gate_broken:
            lines += wrap(cut(f"nothing is started: {seen.refusal}", 2 * width), width, style=WARN)
        if seen.draining:
            text = "Draining: finishing what is at work. Ctrl-C again stops now."
            return lines + wrap(text, width, style=WARN)
        return lines + wrap("Ctrl-C: finish what is at work and end. Twice: stop now.", width, style=DIM)


def _agent(agent: LiveAgent, width: int) -> list[Line]:
    """Two rows at most: who, since when, on what; and what it does and uses, with the agent's own words."""
    name = pad(agent.name, min(12, max(8, len(agent.name))))
    head = f"{name} {_clock(agent.since_s):>6} {pad(agent.doing or 'starting', 9)} "
    title = agent.title if agent.title and agent.title != agent.task else ""
    rest = cut(f"{title or agent.task}", max(10, width - len(head)))
    lines = [line(span(head), span(rest, STRONG))]
    told = " · ".join(filter(None, (agent.activity, usage(asdict(agent)), agent.note)))
    if told:
        style = WARN if agent.health in TROUBLED else DIM
        lines.append(line(span(" " * (len(name) + 8) + cut(told, max(10, width - len(name) - 8)), style)))
    return lines


def _clock(seconds: float) -> str:
    whole = max(0, int(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _text(lines: list[Line]) -> Text:
    from rich.text import Text

    text = Text(no_wrap=True, overflow="crop", end="" if not lines else "\n")
    for number, row in enumerate(lines):
        if number:
            text.append("\n")
        for piece in row:
            text.append(piece.text, style=_STYLES.get(piece.style))
    return text
