"""Runs the real daemon and kills it with SIGKILL the moment an event of a given kind is told for the n-th time.

``python -m tests.walks.dying_daemon TOP KIND[:STATE] N``. The tap runs inside ``publish``, before any other listener and
before the code after it: nothing can be tidied up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from coordinator.daemon import RunOptions, run
from coordinator.domain.event import Published, TaskChanged


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

    return asyncio.run(run(top, RunOptions(until_idle=True), tap=tap))


if __name__ == "__main__":
    sys.exit(main())
