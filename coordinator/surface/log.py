"""Log lines: what happens, one line each, as text or as JSON, for whoever is not sitting at a terminal.

Owns one invariant: a reader that is slow or gone never slows or stops the daemon. ``LOG_FORMAT`` and ``LOG_LEVEL`` win
over the settings. The words are ``api.phrase``'s.
"""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.phrase import Phrase, phrase
from coordinator.api.view import clean
from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import TextIO

    from coordinator.domain.event import Published
    from coordinator.domain.settings import LogSettings
    from coordinator.kit.bus import Bus

_FORMATS: Final = ("text", "json")
_LEVELS: Final[Mapping[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_KEPT_BYTES: Final = 5 * 1024 * 1024
_NOISY: Final = ("apscheduler", "filelock", "watchfiles")
_CHATTY: Final = ("apscheduler", "urllib3", "watchfiles")
"""Libraries whose info is about themselves; what they mean to us is told by events."""
_PLAIN_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"action", "message", "asctime", "taskName"}


def log_settings(settings: LogSettings, environ: Mapping[str, str] = os.environ) -> LogSettings:
    """The settings with the environment's word over them; raises ``BadInput`` naming a variable with a wrong value."""
    problems = []
    chosen = {"format": settings.format, "level": settings.level}
    for key, variable, allowed in (("format", "LOG_FORMAT", _FORMATS), ("level", "LOG_LEVEL", tuple(_LEVELS))):
        value = environ.get(variable, "").strip().lower()
        if value and value not in allowed:
            expected = "one of " + ", ".join(allowed)
            problems.append(Problem(file="environment", key=variable, message=f"is {value!r}", expected=expected))
        elif value:
            chosen[key] = value
    if problems:
        raise BadInput(problems)
    return replace(settings, **chosen)


def set_up(settings: LogSettings, *, stream: TextIO | None = None, file: Path | None = None) -> None:
    """Send all log records to ``stream``, or to ``file`` (5 MB, one predecessor) while the screen is in use."""
    handler: logging.Handler
    if file is not None:
        handler = logging.handlers.RotatingFileHandler(
            file, maxBytes=_KEPT_BYTES, backupCount=1, encoding="utf-8", delay=True
        )
    else:
        handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormat() if settings.format == "json" else TextFormat())
    logging.basicConfig(handlers=[handler], level=_LEVELS[settings.level], force=True)
    for library in _CHATTY:
        logging.getLogger(library).setLevel(max(_LEVELS[settings.level], logging.WARNING))
    logging.raiseExceptions = False
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(max(_LEVELS[settings.level], logging.WARNING))


class JsonFormat(logging.Formatter):
    """One object a line: at, level, action, message, logger, and what the caller added."""

    def format(self, record: logging.LogRecord) -> str:
        data: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "action": getattr(record, "action", ""),
            "message": record.getMessage(),
            "logger": record.name,
        }
        data.update({key: value for key, value in vars(record).items() if key not in _PLAIN_RECORD})
        if record.exc_info:
            data["trace"] = self.formatException(record.exc_info)
        return json.dumps(data, default=str)


class TextFormat(logging.Formatter):
    """Time, level when it is not plain information, message, what the caller added."""

    def format(self, record: logging.LogRecord) -> str:
        extra = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _PLAIN_RECORD)
        moment = datetime.fromtimestamp(record.created, UTC).astimezone()
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = clean(f"{moment:%H:%M:%S} {level}{record.getMessage()} {extra}").rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def text_line(published: Published, news: Phrase) -> str:
    """``12:34:56 landed      a-task A title (3 files) as 0123456789``."""
    return clean(f"{published.at.astimezone():%H:%M:%S} {news.word:<11} {news.text}")


def event_json(published: Published) -> dict[str, Any]:
    """An event as the stream of ``--json`` has it: kind, seq and time beside its own fields."""
    data = published.event.to_json()
    return {"kind": published.event.kind, "seq": published.seq, "at": published.at.isoformat(), **data}


class EventLog:
    """A service that writes a line for each event: every event as JSON (``every``), or the interesting ones."""

    name = "event-log"

    def __init__(self, bus: Bus, stream: TextIO, settings: LogSettings, *, every: bool = False) -> None:
        self._subscription = bus.subscribe(room=20_000)
        self._stream = stream
        self._settings = settings
        self._every = every
        self._reader_gone = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Write until told to stop, then what is still queued."""
        closing = asyncio.create_task(self._close_on(stopping))
        try:
            async for published in self._subscription:
                text = self._line(published)
                if text is not None and not self._reader_gone:
                    await asyncio.to_thread(self._write, text)
        finally:
            closing.cancel()

    async def _close_on(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._subscription.close()

    def _line(self, published: Published) -> str | None:
        if self._every:
            return json.dumps(event_json(published))
        if not published.event.lasting and _LEVELS[self._settings.level] > logging.DEBUG:
            return None
        news = phrase(published.event)
        if news.level < _LEVELS[self._settings.level]:
            return None
        if self._settings.format == "text":
            return text_line(published, news)
        head = {"at": published.at.isoformat(), "level": logging.getLevelName(news.level).lower()}
        told = {"action": published.event.kind, "message": f"{news.word}: {news.text}"}
        return json.dumps({**head, **told, **published.event.to_json()}, default=str)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._reader_gone = True
