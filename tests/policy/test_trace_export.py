"""When spans are sent, how many at a time, and what is said when they cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.trace_export import TraceExport, trace_export

HERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("setting", "environment", "on"),
    [
        ("auto", {}, False),
        ("auto", HERE, True),
        ("auto", {"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ("auto", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://x/v1/traces"}, True),
        ("off", HERE, False),
        ("on", {}, True),
        ("on", {"OTEL_SDK_DISABLED": "True"}, False),
        ("auto", {**HERE, "OTEL_SDK_DISABLED": "true"}, False),
        ("auto", {**HERE, "OTEL_SDK_DISABLED": "no"}, True),
        ("auto", {**HERE, "OTEL_TRACES_EXPORTER": "none"}, False),
        ("auto", {**HERE, "OTEL_TRACES_EXPORTER": "console, otlp"}, True),
    ],
)
def test_whether(setting: str, environment: dict[str, str], on: bool) -> None:
    assert trace_export(setting, environment).on is on


def test_where_is_said_without_what_nobody_should_read() -> None:
    plan = trace_export("auto", {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://ann:secret@in.example:8443/token?key=1"})
    assert (plan.where, plan.fault) == ("https://in.example:8443", "")
    assert trace_export("on", {}).where == "http://localhost:4318"
    both = {**HERE, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:1/v1/traces"}
    assert trace_export("auto", both).where == "http://traces:1"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL wants grpc"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL wants http/json",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "no http or https URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1"}, "no http or https URL"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:port"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is no http"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ""),
    ],
)
def test_what_cannot_be_is_said(environment: dict[str, str], said: str) -> None:
    plan = trace_export("auto", {**HERE, **environment})
    assert plan.on
    assert (said in plan.fault) if said else (plan.fault == "")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, (2048, 512, 5.0)),
        (("100", "50", "250"), (100, 50, 0.25)),
        (("10", "50", "1"), (10, 10, 0.001)),
        (("0", "-1", "soon"), (2048, 512, 5.0)),
        (("²", "", "1e3"), (2048, 512, 5.0)),
    ],
)
def test_how_many_and_how_often(said: tuple[str, str, str], expected: tuple[int, int, float]) -> None:
    names = ("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY")
    plan = trace_export("auto", {**HERE, **dict(zip(names, said, strict=False))})
    assert (plan.room, plan.batch, plan.every_s) == expected


@given(st.dictionaries(st.sampled_from([*HERE, "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_BSP_MAX_QUEUE_SIZE"]), st.text()))
def test_whatever_stands_there_is_a_plan(environment: dict[str, str]) -> None:
    plan = trace_export("on", environment)
    assert isinstance(plan, TraceExport)
    assert 0 < plan.batch <= plan.room
