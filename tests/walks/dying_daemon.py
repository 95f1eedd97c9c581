"""Runs the real daemon and kills it with SIGKILL the moment an event of a given kind is told for the n-th time.

``python -m tests.walks.dying_daemon TOP KIND[:STATE] N``, or ``before=CLASS.METHOD`` / ``after=CLASS.METHOD`` for the steps
that no event announces. The tap runs inside ``publish``, before any other listener and
before the code after it: nothing can be tidied up.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Any

from coordinator.daemon import RunOptions
from coordinator.domain.event import Published, TaskChanged
from coordinator.fleet.ready import ReadyBoard
from coordinator.fleet.settling import Settling
from coordinator.fleet.workspace import Workspaces
from coordinator.kit.git import Git
from coordinator.life import run

_PLACES = {
    "Workspaces.collect": Workspaces,
    "Workspaces.dispose": Workspaces,
    "Git.update_ref": Git,
    "ReadyBoard.publish": ReadyBoard,
    "Settling.landed": Settling,
}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wrap(when: str, place: str) -> None:
    """Die around the first call; ``Git.update_ref`` counts when it moves a branch (the swap of a landing)."""
    owner, name = _PLACES[place], place.partition(".")[2]
    real = getattr(owner, name)

    def counts(args: tuple[Any, ...]) -> bool:
        return place != "Git.update_ref" or (str(args[1]).startswith("refs/heads/") and args[3] != "")

    if inspect.iscoroutinefunction(real):

        async def patched(*args: Any, **words: Any) -> Any:
            if when == "before" and counts(args):
                _die()
            result = await real(*args, **words)
            if when == "after" and counts(args):
                _die()
            return result
    else:

        def patched(*args: Any, **words: Any) -> Any:  # type: ignore[misc]
            if when == "before":
                _die()
            return real(*args, **words)

    setattr(owner, name, patched)


def main() -> int:
    top, wanted, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    seen = 0

    def tap(published: Published) -> None:
        nonlocal seen
        event = published.event
        name = f"{event.kind}:{event.new}" if isinstance(event, TaskChanged) else event.kind
        if name == wanted:
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

    when, _, place = wanted.partition("=")
    if place:
        _wrap(when, place)
    return asyncio.run(run(top, RunOptions(until_idle=True), tap=tap))


if __name__ == "__main__":
    sys.exit(main())
