"""Spans of a request's way through the server, for OpenTelemetry: children of the request's own, which BentoML makes.

A parent is handed on with the work, since the queue's threads serve many requests at once. Requests that are not
sampled, which are all where traces are off, cost a comparison.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from opentelemetry import trace
from opentelemetry.trace import Span, Tracer

Attributes = Mapping[str, int | list[str]]


def is_traced(parent: Span) -> bool:
    return parent.get_span_context().trace_flags.sampled


def describe_request(key: str, value: str | int | list[str]) -> None:
    """Add an attribute to the span of the request under way."""
    trace.get_current_span().set_attribute(f"mu2net.{key}", value)


def span(tracer: Tracer, name: str, parent: Span) -> AbstractContextManager[object]:
    """Return a span around work of any thread."""
    if not is_traced(parent):
        return nullcontext()
    return tracer.start_as_current_span(name, context=trace.set_span_in_context(parent))


def record(tracer: Tracer, name: str, parent: Span, *, started: float, ended: float, about: Attributes) -> None:
    """Record what has been done already, between two readings of `time.monotonic`, for a parent that is traced."""
    shift = time.time() - time.monotonic()
    past = tracer.start_span(
        name,
        context=trace.set_span_in_context(parent),
        attributes={f"mu2net.{key}": value for key, value in about.items()},
        start_time=_nanoseconds(started + shift),
    )
    past.end(_nanoseconds(ended + shift))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
