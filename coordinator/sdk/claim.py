"""A claim on one task while this process holds it: the order, the heartbeat, the result, the release.

Owns one invariant: nothing is written in the name of a generation that a newer one has superseded; whoever tries gets
``StaleGeneration`` with the newer owner's name. Getting a claim is ``agent``'s work, judging the result the gate's.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from coordinator.domain.attempt import Outcome, Result
from coordinator.domain.errors import PermanentError, StaleGeneration
from coordinator.kit import lock
from coordinator.sdk import worktree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

    from coordinator.domain.attempt import ClaimRecord, Order

_log = logging.getLogger(__name__)

_LONGEST_NOTE: Final = 200
_LONGEST_SUMMARY: Final = 10_000
"""Characters; a result that is unreasonably large would not be read at all (``kit.lock.read_object``)."""


class Heartbeat:
    """The file ``heartbeat`` of an attempt, held open: one JSON line, and a modification time that moves while we live.

    Opened before the claim goes on record, so that a full disk is met then. Later beats change a block that is already
    there. Readers compare the modification time with the one they saw before, never with a clock.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        self._writing = threading.Lock()
        self._state, self._note = "preparing", ""
        self._vitals: Mapping[str, Any] = {}
        try:
            self.say("preparing", "")
        except BaseException:
            self.close()
            raise

    def say(self, state: str, note: str, vitals: Mapping[str, Any] | None = None) -> None:
        """Rewrite the line in place; an empty ``state`` keeps the one before, and so do ``vitals`` that are None."""
        with self._writing:
            self._state, self._note = state or self._state, note
            self._vitals = self._vitals if vitals is None else vitals
            line: dict[str, Any] = {"note": note[:_LONGEST_NOTE], "pid": os.getpid(), "state": self._state}
            if self._vitals:
                line["vitals"] = dict(self._vitals)
            data = json.dumps(line).encode() + b"\n"
            if self._fd >= 0:
                os.pwrite(self._fd, data, 0)
                os.ftruncate(self._fd, len(data))

    def move_to(self, state: str) -> None:
        """Another state, same note."""
        self.say(state, self._note)

    def touch(self) -> None:
        with self._writing:
            if self._fd >= 0:
                os.utime(self._fd)

    def close(self) -> None:
        with self._writing:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Claim:
    """Use as a context manager, so that a result is written and the lock let go whatever happens.

    ``order`` says what to do and where. ``lock_fd`` goes to the command that does it (``pass_fds``), so that the task
    is free only when this process *and* that command are gone. ``lost`` is set as soon as the background heartbeat sees
    a newer owner. Every method raises ``StaleGeneration`` once there is one, and ``PermanentError`` after ``release``.
    """

    def __init__(self, *, beat: Heartbeat, held: lock.HeldLock, order: Order, record: ClaimRecord, path: Path) -> None:
        self.lost = threading.Event()
        self.order = order
        self.record = record
        self._beat = beat
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._held = held
        self._record_path = path
        self._result_written = False
        self._thread = threading.Thread(target=self._beat_on, name=f"heartbeat-{order.task}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Without a result so far: write ``failed`` with the exception's text, or with "no result". Always release."""
        try:
            if not self._ended.is_set() and not self._result_written:
                self._result_for(error)
        except (OSError, StaleGeneration) as unwritten:
            if error is None:
                raise
            _log.warning(
                "no result could be written: %s",
                unwritten,
                extra={"action": "result_unwritten", "task": self.order.task, "generation": self.order.generation},
            )
        finally:
            self.release()

    @property
    def lock_fd(self) -> int:
        """The descriptor of the held lock."""
        self._check_open()
        return self._held.fd

    @property
    def lock_path(self) -> Path:
        """The file whose lock is the claim."""
        return self._record_path.with_suffix(".lock")

    def brief(self) -> str:
        """What is asked, as Markdown."""
        return Path(self.order.brief).read_text(encoding="utf-8")

    def heartbeat(self) -> None:
        """Beat once now. Agents need not: a thread does every ``order.heartbeat_s``; it is also the stale check."""
        self._check_current()
        self._beat.touch()

    def prepare_worktree(self) -> Path:
        """Make the private clone at ``order.worktree`` and return its path; ``ToolFailed`` when git cannot."""
        self.progress("making the working tree", state="preparing")
        path = worktree.prepare(self.order, self._held.fd)
        self.progress("working tree is ready", state="running")
        return path

    def progress(self, note: str, *, state: str = "", vitals: Mapping[str, Any] | None = None) -> None:
        """Tell people what is being done; ``state`` is ``preparing``, ``running`` or ``finishing`` (empty: as before).

        ``vitals`` (the fields of ``domain.vitals.Vitals``) tell the coordinator that what looks idle is at work.
        """
        self._check_current()
        self._beat.say(state, note, vitals)

    def release(self) -> None:
        """Let the task go; safe to call twice. The record is marked unless a newer owner's is there already."""
        if self._ended.is_set():
            return
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        try:
            self._beat.close()
            if self._newer_owner() is None:
                lock.write_record(self._record_path, replace(self.record, state="released"))
        except OSError as error:  # the mark only wakes the daemon sooner; the lock is what counts
            _log.warning(
                "the claim's record could not be marked: %s",
                error,
                extra={"action": "release_unmarked", "task": self.order.task, "generation": self.order.generation},
            )
        finally:
            self._held.release()

    def result(
        self,
        outcome: Outcome | str,
        *,
        cost_usd: float = 0.0,
        exit_code: int | None = None,
        reason: str = "",
        retry_at: float = 0.0,
        session: str = "",
        summary: str = "",
        turns: int = 0,
    ) -> None:
        """Write ``result.json``, once. It is a word only: what lands is decided by the gate."""
        self._check_current()
        if self._result_written:
            raise PermanentError(
                f"task {self.order.task}, generation {self.order.generation}: a result is written once"
            )
        said = Result(
            cost_usd=cost_usd,
            duration_s=round(time.monotonic() - self._began, 3),
            exit_code=exit_code,
            generation=self.order.generation,
            outcome=str(Outcome(outcome)),
            reason=reason[:_LONGEST_NOTE],
            retry_at=retry_at,
            session=session[:_LONGEST_NOTE],
            summary=summary[:_LONGEST_SUMMARY],
            task=self.order.task,
            turns=turns,
        )
        path = Path(self.order.attempt) / "result.json"
        lock.write_atomic(path, json.dumps(said.to_json(), sort_keys=True).encode() + b"\n")
        self._result_written = True
        self._beat.move_to("finishing")

    def _result_for(self, error: BaseException | None) -> None:
        match error:
            case None:
                self.result(Outcome.FAILED, reason="no_result", summary="no result")
            case Exception():
                self.result(Outcome.FAILED, reason="exception", summary=f"{type(error).__name__}: {error}")
            case _:  # KeyboardInterrupt, SystemExit, CancelledError: somebody wanted us to stop
                self.result(Outcome.STOPPED, reason="interrupted", summary=f"stopped by {type(error).__name__}")

    def _beat_on(self) -> None:
        while not self._ended.wait(self.order.heartbeat_s):
            try:
                if self._newer_owner() is not None:
                    self.lost.set()
                    return
                self._beat.touch()
            except OSError as error:
                _log.warning(
                    "heartbeat failed: %s",
                    error,
                    extra={"action": "heartbeat_failed", "task": self.order.task, "generation": self.order.generation},
                )

    def _check_open(self) -> None:
        if self._ended.is_set():
            raise PermanentError(f"task {self.order.task}, generation {self.order.generation}: the claim was released")

    def _check_current(self) -> None:
        self._check_open()
        newer = self._newer_owner()
        if newer is not None:
            self.lost.set()
            raise StaleGeneration(
                f"task {self.order.task}: generation {self.order.generation} is over, the owner is now {newer.holder}"
            )

    def _newer_owner(self) -> ClaimRecord | None:
        """Whoever the record names instead of us. No readable record names nobody."""
        record = lock.read_record(self._record_path)
        if record is None or replace(record, state=self.record.state) == self.record:
            return None
        return record if record.generation >= self.order.generation else None
