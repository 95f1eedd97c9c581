from __future__ import annotations

import asyncio
import threading

import pytest

from coordinator.kit.loop_thread import LoopThread
from coordinator.kit.wire import new_loop


async def test_it_runs_elsewhere_and_both_sides_can_post() -> None:
    thread, heard = LoopThread("elsewhere", new_loop), asyncio.Queue[str]()
    told = threading.Event()

    async def work() -> None:
        thread.tell(heard.put_nowait, threading.current_thread().name)
        over = asyncio.Event()
        thread.post(over.set)
        await over.wait()
        told.set()

    await thread.run(work)
    assert (await heard.get()).startswith("elsewhere")
    assert told.is_set()
    assert not thread.post(told.clear)
    assert not any(one.name.startswith("elsewhere") for one in threading.enumerate())


async def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise LookupError("not there")

    with pytest.raises(LookupError, match="not there"):
        await LoopThread("raises", new_loop).run(work)


async def test_a_cancelled_run_cancels_the_work_and_waits_for_its_end() -> None:
    thread, began, seen = LoopThread("cancelled", new_loop), asyncio.Event(), []

    async def work() -> None:
        thread.tell(began.set)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)  # the end takes a moment: run waits for it
            seen.append("ended")

    task = asyncio.create_task(thread.run(work))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["ended"]
    assert not any(one.name.startswith("cancelled") for one in threading.enumerate())
