"""Connections and request heads are bounded before anything is asked: each rule with a small limit, on real sockets."""

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from service.door import Door, DoorLimits
from service.listener import LOOKED_AT, loop_class
from service.protocol import protocol_class
from tests.support.in_process import wait_for

ROOT = Path(__file__).parents[1]
LONG_S = 60.0
ENDLESS = b"x" * 2**21  # more than the server reads at once
LARGE = b"x" * 2**23  # more than the system's buffers of a connection hold


async def echo(request: Request) -> Response:
    body = await request.body()
    return PlainTextResponse(f"{request.method} {request.url.path} {body.decode()}")


async def early(_: Request) -> Response:
    return PlainTextResponse("without reading")


async def slow(_: Request) -> Response:
    await asyncio.sleep(0)
    return PlainTextResponse("late")


async def large(_: Request) -> Response:
    return Response(LARGE)


ROUTES = [
    Route("/early", early, methods=["GET", "POST"]),
    Route("/slow", slow),
    Route("/large", large),
    Route("/{path:path}", echo, methods=["GET", "POST"]),
]


@contextlib.contextmanager
def behind(door: Door, listener: socket.socket | None = None) -> Iterator[int]:
    """Serve `ROUTES` behind a door; yields the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) if listener is None else listener as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(Starlette(routes=ROUTES), http=protocol_class(door), log_level="error", lifespan="off")
        web = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: _run(web, door, listener))
        thread.start()
        try:
            wait_for(lambda: web.started)
            yield listener.getsockname()[1]
        finally:
            web.should_exit = True
            thread.join(30)


def _run(web: uvicorn.Server, door: Door, listener: socket.socket) -> None:
    with asyncio.Runner(loop_factory=loop_class(door)) as runner:
        runner.run(web.serve(sockets=[listener]))


def door(trusted_proxies: str = "", **limits: Any) -> Door:
    made = Door()
    made.open(DoorLimits(**limits), trusted_proxies=trusted_proxies)
    return made


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=LONG_S, source_address=(source, 0))


def until_closed(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):  # reset, since it was closed with something unread
        while received := connection.recv(2**16):
            found += received
    return found


def ask(port: int, request: bytes, source: str = "127.0.0.1") -> bytes:
    """Return all that is answered until the server closes."""
    with connect(port, source) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
        return until_closed(connection)


def closing(path: str = "/", *lines: str, body: str = "") -> bytes:
    """A whole request after which the server closes."""
    method = "POST" if body else "GET"
    own = ["Host: a", "Connection: close", *([f"Content-Length: {len(body)}"] if body else [])]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *own, *lines, "", body]).encode()


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(1000)), id="lines"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nA: " + ENDLESS, id="a line without end"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 5000 + b"\r\n\r\n", id="a long line"),
        pytest.param(b"GET /" + ENDLESS, id="a path without end"),
        pytest.param(b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", id="a long path"),
        pytest.param(b"\r\n" * 2500, id="empty lines"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" + ENDLESS,
            id="a chunk's extension",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
            + b"".join(b"A%d: b\r\n" % n for n in range(1000)),
            id="trailers",
        ),
    ],
)
def test_a_large_head_is_refused(head: bytes) -> None:
    with behind(door(max_head_bytes=2048)) as port:
        answer = ask(port, head)
        assert answer.startswith(b"HTTP/1.1 431 ") or not answer  # a body's request has begun: it is broken off
        assert b"at most" not in answer
        assert b"the request's head has more than 2,048 bytes" in answer or b"Transfer-Encoding" in head
        assert ask(port, closing("/next")).endswith(b"GET /next ")


def test_heads_and_bodies_below_the_limit_are_read_however_they_are_cut() -> None:
    request = closing("/a", "X-Long: " + "b" * 1500, body="c" * 5000)
    with behind(door(max_head_bytes=2048)) as port:
        for size in (1, 7, 1000, len(request)):
            with connect(port) as connection:
                for begin in range(0, len(request), size):
                    connection.sendall(request[begin : begin + size])
                assert until_closed(connection).endswith(b"POST /a " + b"c" * 5000)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\nHost:", b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET"],
    ids=["nothing", "half", "second"],
)
def test_an_unfinished_head_is_closed(sent: bytes) -> None:
    with behind(door(head_timeout_s=0.1, keep_alive_s=LONG_S)) as port:
        assert b"HTTP/1.1 408 " in ask(port, sent)


def test_the_rest_of_a_body_that_nobody_reads_is_not_waited_for() -> None:
    with behind(door(head_timeout_s=0.1, keep_alive_s=LONG_S)) as port, connect(port) as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
        assert b"without reading" in until_closed(connection)


def test_an_idle_connection_is_closed_after_the_time_that_is_set() -> None:
    with behind(door(head_timeout_s=LONG_S, keep_alive_s=0.1)) as port:
        assert ask(port, b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").endswith(b"GET /a ")


def test_connections_are_counted_in_all_and_by_address() -> None:
    limited = door(max_connections=64, max_connections_per_address=2)
    with behind(limited) as port, contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(connect(port, "127.0.0.2"))
        wait_for(lambda: len(limited) == 2)
        refused = ask(port, b"", "127.0.0.2")
        assert refused.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1\r\n" in refused
        assert b"2 connections from 127.0.0.2 are open, as many as one address may have" in refused
        assert ask(port, closing("/a")).endswith(b"GET /a ")  # another address
        for last in range(3, 34):
            for _ in range(2):
                held.enter_context(connect(port, f"127.0.0.{last}"))
        wait_for(lambda: len(limited) == 64)
        assert b"64 connections are open, as many as may be" in ask(port, b"")
    wait_for(lambda: len(limited) == 0)


def test_for_a_refused_connection_nothing_is_made() -> None:
    entered = []

    class Watched(Door):
        def enter(self, visitor: Any, peer: tuple[str, int] | None) -> bytes | None:
            entered.append(peer)
            return super().enter(visitor, peer)

    limited = Watched()
    limited.open(DoorLimits(max_connections_per_address=1), trusted_proxies="")
    with behind(limited) as port, connect(port):
        wait_for(lambda: len(limited) == 1)
        with contextlib.ExitStack() as flood:
            refused = [flood.enter_context(connect(port)) for _ in range(2 * LOOKED_AT)]
            for connection in refused:
                connection.sendall(closing("/a"))
            assert all(until_closed(connection).startswith(b"HTTP/1.1 429 ") for connection in refused)
        assert len(entered) == 1


def test_without_descriptors_the_server_waits_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted(socket.socket):
        failures = 2

        def accept(self) -> tuple[socket.socket, Any]:
            if Exhausted.failures:
                Exhausted.failures -= 1
                raise OSError(errno.EMFILE, "too many open files")
            return super().accept()

    monkeypatch.setattr("service.listener.PAUSE_S", 0.01)
    with behind(door(), Exhausted(socket.AF_INET, socket.SOCK_STREAM)) as port:
        assert ask(port, closing("/a")).endswith(b"GET /a ")
        assert not Exhausted.failures


def test_a_trusted_proxy_has_no_limit_by_address() -> None:
    limited = door("127.0.0.0/30", max_connections_per_address=1)
    with behind(limited) as port, connect(port, "127.0.0.2"), connect(port, "127.0.0.2"):
        wait_for(lambda: len(limited) == 2)
        assert ask(port, closing("/a"), "127.0.0.2").endswith(b"GET /a ")


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        pytest.param("Content-Length: 5", "hello", id="length"),
        pytest.param("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", id="chunked"),
    ],
)
@pytest.mark.parametrize("size", [1, 10_000])
def test_an_offer_to_upgrade_is_ignored_and_the_body_read(framing: str, body: str, size: int) -> None:
    lines = [
        "POST /a HTTP/1.1",
        "Host: a",
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMA",
    ]
    request = "\r\n".join([*lines, framing, "", body]).encode() + closing("/b")
    with behind(door()) as port, connect(port) as connection:
        for begin in range(0, len(request), size):
            connection.sendall(request[begin : begin + size])
        answers = until_closed(connection)
        assert answers.count(b"HTTP/1.1 200 OK") == 2
        assert b"POST /a hello" in answers
        assert answers.endswith(b"GET /b ")


def test_no_proxy() -> None:
    with behind(door()) as port:
        assert ask(port, b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_what_is_no_http_is_refused_in_the_form_of_all_errors() -> None:
    with behind(door()) as port:
        answer = ask(port, b"\x16\x03\x01 hello\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n")


def test_nonsense_behind_a_request_ends_it_quietly(caplog: pytest.LogCaptureFixture) -> None:
    with behind(door()) as port:
        for _ in range(20):
            assert ask(port, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n\x16\x03\x01") == b""
        assert ask(port, closing("/a")).endswith(b"GET /a ")
    assert not caplog.records


@pytest.mark.parametrize("limit", [{"unread_s": 0.1}, {"max_unread_bytes": 2**20}], ids=["seconds", "bytes"])
def test_an_answer_that_nobody_reads_is_dropped(limit: dict[str, Any]) -> None:
    limited = door(**limit)
    with behind(limited) as port, connect(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_for(lambda: len(limited) == 1)
        wait_for(lambda: len(limited) == 0)
        assert len(until_closed(connection)) < len(LARGE)


def test_while_draining_each_answer_is_a_connections_last() -> None:
    draining = door(keep_alive_s=LONG_S)
    with behind(draining) as port, connect(port) as connection:
        connection.sendall(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
        with connection.makefile("rb") as answer:
            while not answer.readline().startswith(b"content-type"):
                pass
            assert answer.read(9) == b"\r\nGET /a "
        draining.is_draining = True
        connection.sendall(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n")
        last = until_closed(connection)
        assert b"connection: close\r\n" in last
        assert last.endswith(b"GET /b ")
        assert ask(port, b"GET /c HTTP/1.1\r\nHost: a\r\n\r\n").endswith(b"GET /c ")  # new ones are let in


TIMERS = """
import asyncio
from service.api import Mu2Net

class Counting(asyncio.SelectorEventLoop):
    timers = 0

    def call_later(self, *args, **kwargs):
        self.timers += 1
        return super().call_later(*args, **kwargs)

async def received():
    return {"type": "http.request", "body": b"", "more_body": False}

async def sent(message):
    statuses.append(message.get("status"))

statuses = []
head = {"type": "http", "method": "GET", "path": "/livez", "query_string": b"", "headers": [], "http_version": "1.1"}
app = Mu2Net.to_asgi()
loop = Counting()
loop.run_until_complete(app(head, received, sent))
print(statuses[0], loop.timers)
"""


def test_no_timer_outlives_a_request() -> None:
    """BentoML alone would leave one for each, for as long as a request may take."""
    environment = os.environ | {"MU2NET_STORE": "unread"}
    done = subprocess.run([sys.executable, "-c", TIMERS], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1:] == ["200 0"], done.stderr
