"""The one door to OpenTelemetry: spans that are over, given to whatever collector the environment names.

Owns one invariant: a span is sent with the ids and times that it was given, sampled with the others of its trace or not at
all; and what the library says of a collector that fails is heard here and nowhere else. It blocks: it is made and used in
threads, one call at a time. Importing it imports the library, which is an extra; so it is imported by who needs it.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.domain.span import AttemptIds, SpanSketch

_LIBRARY: Final = "opentelemetry"
_NOBODY: Final = "unknown_service"
_STATUSES: Final[Mapping[object, int]] = {
    known: status.value for status in HTTPStatus for known in (status.value, status.phrase)
}


class OtlpSender:
    """``about`` tells who we are, where the environment does not. Raises ``RuntimeError`` or ``ValueError`` for variables that it
    cannot follow."""

    def __init__(self, scope: str, version: str, about: Mapping[str, str]) -> None:
        self._ended = _Ended()
        self._ids = _GivenIds()
        self._closed = self._sending = False
        self._hearing = _Hearing()
        try:
            self._provider = TracerProvider(resource=_resource(about), shutdown_on_exit=False, id_generator=self._ids)
            self._exporter = OTLPSpanExporter()
        except BaseException:
            self._hearing.end()
            raise
        self._provider.add_span_processor(self._ended)
        self._tracer = self._provider.get_tracer(scope, version)

    def send(self, sketches: Sequence[SpanSketch]) -> str:
        """Returns what went wrong: then none of them was taken."""
        for sketch in sketches:
            self._tell(sketch)
        spans = self._ended.take()
        if not spans:  # none of them is in the sample
            return ""
        self._hearing.heard = ""
        self._sending = True
        try:
            taken = self._exporter.export(spans) is SpanExportResult.SUCCESS
        finally:
            self._sending = False
            if self._closed:  # meanwhile: what the library said of that was not for the log
                self._hearing.end()
        return "" if taken else self._hearing.heard or "it did not take them in time"

    def close(self) -> None:
        """Whoever waits to try again does so no longer."""
        self._closed = True
        self._exporter.shutdown()  # type: ignore[no-untyped-call] # the library's
        if not self._sending:
            self._hearing.end()

    def _tell(self, sketch: SpanSketch) -> None:
        kind, context, attempt = SpanKind.CLIENT, Context(), sketch.attempt
        if sketch.whole:
            kind = SpanKind.INTERNAL
            self._ids.given = attempt
        elif attempt is not None:
            context = set_span_in_context(NonRecordingSpan(self._parent(attempt)), context)
        began = _nanoseconds(sketch.began)
        span = self._tracer.start_span(sketch.name, context, kind, sketch.attributes, start_time=began)
        if sketch.failure:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=max(began, _nanoseconds(sketch.ended)))
        self._ids.given = None

    def _parent(self, attempt: AttemptIds) -> SpanContext:
        """The attempt's span, of which others have told or will. In the sample with it or not: samplers go by the trace's id."""
        decision = self._provider.sampler.should_sample(None, attempt.trace, "").decision
        chosen = decision is Decision.RECORD_AND_SAMPLE
        flags = TraceFlags(TraceFlags.SAMPLED if chosen else TraceFlags.DEFAULT)
        return SpanContext(attempt.trace, attempt.span, is_remote=True, trace_flags=flags)


class _Ended(SpanProcessor):
    """Gathers what is over and in the sample."""

    def __init__(self) -> None:
        self._spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._spans.append(span)

    def take(self) -> list[ReadableSpan]:
        spans, self._spans = self._spans, []
        return spans


class _GivenIds(IdGenerator):
    """Of an attempt its own, of everything else new ones."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self.given: AttemptIds | None = None

    def generate_span_id(self) -> int:
        return self._random.generate_span_id() if self.given is None else self.given.span

    def generate_trace_id(self) -> int:
        return self._random.generate_trace_id() if self.given is None else self.given.trace


class _Hearing(logging.Handler):
    """What the library logs: of its sentences, which may name a URL with all that is in it, only the kind of fault is kept."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard = ""
        self._library = logging.getLogger(_LIBRARY)
        self._library.addHandler(self)
        self._library.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        for said in record.args if isinstance(record.args, tuple) else ():
            if isinstance(said, int | str) and said in _STATUSES:
                self.heard = f"it answers {_STATUSES[said]}"
            elif isinstance(said, Exception):
                self.heard = _kind(said)

    def end(self) -> None:
        self._library.removeHandler(self)
        self._library.propagate = True


def _nanoseconds(moment: float) -> int:
    """To the microsecond, which is all that seconds since 1970 have as a float."""
    return round(moment * 1_000_000) * 1000


def _kind(error: Exception) -> str:
    names = {kind.__name__ for kind in type(error).__mro__}
    if "SSLError" in names:
        return "its certificate is not accepted"
    return "it does not answer in time" if "Timeout" in names else "it cannot be reached"


def _resource(about: Mapping[str, str]) -> Resource:
    """What the environment says wins."""
    told = Resource.create()
    name = str(told.attributes.get(SERVICE_NAME, _NOBODY))
    ours = {key: value for key, value in about.items() if key != SERVICE_NAME and key not in told.attributes}
    if name.startswith(_NOBODY):
        ours[SERVICE_NAME] = about[SERVICE_NAME]
    return told.merge(Resource(ours))
