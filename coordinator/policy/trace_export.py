"""Whether traces leave the house, and how: decided by one setting and OpenTelemetry's own environment variables.

Owns one invariant: nothing is sent that nobody asked for, and what cannot be sent is said with its remedy. It knows no library:
what is configured here is what ours does itself (when, how many, to whom in a sentence); where to and with which
headers is read by the exporter, from the same variables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

EXTRA: Final = "pip install 'agent-fleet-coordinator[otel]'"
"""What brings the libraries."""
LIBRARIES: Final = ("opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk.trace")

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_USUAL: Final = "http://localhost:4318"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceExport:
    """``fault``: why nothing is sent although it should be. ``where`` is for people: no path and no password is in it.

    ``room`` spans wait at most, ``batch`` go at once, ``every_s`` or sooner.
    """

    batch: int = 512
    every_s: float = 5.0
    fault: str = ""
    on: bool
    room: int = 2048
    where: str = ""


def trace_export(setting: str, environment: Mapping[str, str]) -> TraceExport:
    """``setting`` is ``[traces] export``. Variables that switch off have the last word, as everywhere with OpenTelemetry."""
    endpoint = _first(environment, _ENDPOINTS)[1]
    exporters = [word.strip() for word in environment.get("OTEL_TRACES_EXPORTER", "otlp").lower().split(",")]
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or "otlp" not in exporters
    if setting == "off" or disabled or (setting == "auto" and not endpoint):
        return TraceExport(on=False)
    variable, protocol = _first(environment, _PROTOCOLS)
    fault = ""
    if protocol not in ("", "http/protobuf"):
        fault = f"they are sent as http/protobuf only, and {variable} wants {protocol}"
    where = _place(endpoint or _USUAL)
    if not where:
        fault = fault or f"{_first(environment, _ENDPOINTS)[0]} is no http or https URL"
    room = _number(environment, "OTEL_BSP_MAX_QUEUE_SIZE", 2048)
    return TraceExport(
        batch=min(room, _number(environment, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)),
        every_s=_number(environment, "OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000,
        fault=fault,
        on=True,
        room=room,
        where=where or "a collector",
    )


def _place(url: str) -> str:
    """Scheme, host and port; empty: it has none."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if known else ""


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    """The first that says something, and what; the more particular name comes first."""
    return next(((name, said) for name in names if (said := environment.get(name, "").strip())), ("", ""))


def _number(environment: Mapping[str, str], name: str, usual: int) -> int:
    """What is no number above 0 counts as not said."""
    said = environment.get(name, "").strip()
    return int(said) if said.isascii() and said.isdigit() and 0 < int(said) < 10**9 else usual
