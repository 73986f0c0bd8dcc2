"""A server as a process of its own, for several tests since it takes seconds to start; and a collector of traces."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from models.store import Store
from tests.support.processes import running, wait_until
from tests.support.stores import TaskPlan, make_store

PLANS = (TaskPlan("first"), TaskPlan("second", seed=2), TaskPlan("secret", seed=3, private=True))


@dataclass(frozen=True, slots=True)
class RealServer:
    """`mu2net serve`, bound to all addresses. A test leaves its store without keys, as it found it."""

    store: Store
    process: "subprocess.Popen[bytes]"
    client: httpx.Client
    spans: list[Span]  # that were sent so far


@contextmanager
def serving(folder: Path) -> Iterator[RealServer]:
    """Serve a new store with `PLANS`."""
    store = make_store(folder / "store", *PLANS)
    with (
        collector() as (url, spans),
        running(store.folder, folder, host="0.0.0.0", MU2NET_TRACES=url, OTEL_BSP_SCHEDULE_DELAY="100") as (
            process,
            client,
        ),
    ):
        wait_until(process, lambda: client.get("/readyz").is_success)
        yield RealServer(store, process, client, spans)


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
