"""Traces: one classify request is one trace with its spans, sent to a collector by a real server; off by default."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.service_store import TaskPlan, make_store
from tests.test_serve_process import picture, running, wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """A collector of OTLP over HTTP: its address, and the spans that it got."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            spans.extend(span for of in sent.resource_spans for scope in of.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
        finally:
            server.shutdown()
            thread.join()


def attributes(span: Span) -> dict[str, object]:
    """Return what is the service's own of a span's attributes."""
    return {
        pair.key.removeprefix("mu2net."): [value.string_value for value in pair.value.array_value.values]
        or pair.value.string_value
        or pair.value.int_value
        for pair in span.attributes
        if pair.key.startswith("mu2net.")
    }


def test_one_request_is_one_trace_with_its_spans(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"), TaskPlan("second", seed=2))
    with (
        collector() as (url, spans),
        running(store.folder, tmp_path, MU2NET_TRACES=url, OTEL_BSP_SCHEDULE_DELAY="100") as (server, client),
    ):
        wait_until(server, lambda: client.get("/readyz").status_code == 200)
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "mine", "content-type": "image/png"}
        answer = client.post("/v1/classify?tasks=first,second", content=picture(), headers=headers)
        assert answer.status_code == 200
        wait_until(server, lambda: any(span.parent_span_id.hex() == CALLER for span in spans))

    assert {span.trace_id.hex() for span in spans} == {TRACE}  # what asks for its health is not traced
    (request,) = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    assert attributes(request) == {"release": 2, "tasks": ["first", "second"], "request_id": "mine"}
    own = {span.name: span for span in spans if span.name in ("decode", "queue", "engine")}
    assert {span.parent_span_id for span in own.values()} == {request.span_id}
    assert attributes(own["queue"]) == {"tasks": ["first", "second"], "rows": 2}
    assert attributes(own["engine"]) == {"tasks": ["first", "second"], "rows": 2, "batch_rows": 2}
    assert own["decode"].start_time_unix_nano <= own["queue"].start_time_unix_nano
    assert own["queue"].end_time_unix_nano <= own["engine"].end_time_unix_nano
