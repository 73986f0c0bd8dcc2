"""Traces: one classify request is one trace with its spans, sent to a collector by a real server; off by default."""

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.images import picture
from tests.support.processes import wait_until
from tests.support.real_server import RealServer

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


def attributes(span: Span) -> dict[str, object]:
    """Return what is the service's own of a span's attributes."""
    return {
        pair.key.removeprefix("mu2net."): [value.string_value for value in pair.value.array_value.values]
        or pair.value.string_value
        or pair.value.int_value
        for pair in span.attributes
        if pair.key.startswith("mu2net.")
    }


def test_one_request_is_one_trace_with_its_spans(real_server: RealServer) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "mine", "content-type": "image/png"}
    answer = real_server.client.post("/v1/classify?tasks=first,second", content=picture(), headers=headers)
    assert answer.status_code == 200
    real_server.client.get("/readyz", headers=headers)
    wait_until(real_server.process, lambda: any(span.parent_span_id.hex() == CALLER for span in real_server.spans))

    spans = [span for span in real_server.spans if span.trace_id.hex() == TRACE]
    (request,) = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]  # asking for its health is not traced
    release = answer.json()["release"]
    assert attributes(request) == {"release": release, "tasks": ["first", "second"], "request_id": "mine"}
    own = {span.name: span for span in spans if span.name in ("decode", "queue", "engine")}
    assert {span.parent_span_id for span in own.values()} == {request.span_id}
    assert attributes(own["queue"]) == {"tasks": ["first", "second"], "rows": 2}
    assert attributes(own["engine"]) == {"tasks": ["first", "second"], "rows": 2, "batch_rows": 2}
    assert own["decode"].start_time_unix_nano <= own["queue"].start_time_unix_nano
    assert own["queue"].end_time_unix_nano <= own["engine"].end_time_unix_nano
