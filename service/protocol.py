"""HTTP/1.1 on one connection: uvicorn's protocol behind the door, and deaf to upgrades that nobody here knows.

uvicorn limits neither a request's head nor the time for it. And httptools takes what follows an offer to upgrade for
another protocol, although a server may ignore the offer (RFC 9110, 7.8): the body would be lost. Java's HttpClient
makes such an offer with every first request.
"""

import asyncio
import logging
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.door import Door, refusal

LINE_BYTES = 4  # of a header line beside name and value: colon, space, line end
NOT_PASSED_ON = frozenset({b"upgrade", b"http2-settings"})

log = logging.getLogger("mu2net.protocol")


class _HeadTooLarge(Exception):
    """Raised within a callback of the parser, to end its work."""


def protocol_class(door: Door) -> type[HttpToolsProtocol]:
    """Return the protocol of a server whose connections come through `door`."""

    class BoundedProtocol(HttpToolsProtocol):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.timeout_keep_alive = door.limits.keep_alive_s  # type: ignore[assignment]  # any number of seconds
            self.waits_since: float | None = None
            self.stalled_since: float | None = None
            self._head_bytes = 0  # of the lines that the parser has given out
            self._unparsed_bytes = 0  # received since the parser last gave something out, but for its last piece
            self._is_between = True  # from the end of one request to the first byte of the next
            self._is_offer = False

        # the connection

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.waits_since = self.loop.time()  # until its first head is there, whether or not anything comes
            answer = door.enter(self, self.client)
            if answer is not None:
                self.refuse(answer)

        def connection_lost(self, exc: Exception | None) -> None:
            door.leave(self)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            self.stalled_since = self.loop.time()
            super().pause_writing()

        def resume_writing(self) -> None:
            self.stalled_since = None
            super().resume_writing()

        @property
        def unread_bytes(self) -> int:
            return self.transport.get_write_buffer_size()

        def refuse(self, answer: bytes) -> None:
            self.waits_since = None
            self._unset_keepalive_if_required()
            if self.transport.is_closing():
                return
            if self.cycle is None or self.cycle.response_complete:  # else it would be read as part of an answer
                self.transport.write(answer)
            else:
                self.cycle.disconnected = True  # what is answered now is nobody's
                self.cycle.message_event.set()
            self.transport.close()

        def abort(self) -> None:
            self.transport.abort()

        def data_received(self, data: bytes) -> None:
            self._unset_keepalive_if_required()
            if self.transport.is_closing():
                return
            if self._is_between:
                self._is_between = False
                self.waits_since = self.loop.time() if self.waits_since is None else self.waits_since
            self._unparsed_bytes += len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as end:
                self._on_upgrade(data[end.args[0] :])
                return
            except httptools.HttpParserError as error:
                self._on_parser_error(error)
                return
            if self._unparsed_bytes > door.limits.max_head_bytes:
                self._refuse_head()

        def _on_upgrade(self, rest: bytes) -> None:
            """Hand over to WebSocket; else read the request again as one without the offer, and what follows it."""
            if self._should_upgrade():
                self.waits_since = None
                door.leave(self)
                self.handle_websocket_upgrade()
                return
            method = self.parser.get_method()
            if method == b"CONNECT":
                self.refuse(refusal(400, "bad-request", "this server is not a proxy: ask for one of its paths"))
                return
            lines = [b"%s: %s\r\n" % pair for pair in self.headers if pair[0] not in NOT_PASSED_ON]
            head = b"%s %s HTTP/%s\r\n%s\r\n" % (
                method, self.url, self.parser.get_http_version().encode(), b"".join(lines),
            )  # fmt: skip
            self._is_offer = False
            self._unparsed_bytes = 0
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the class above does
            self.data_received(head + rest)

        def _on_parser_error(self, error: httptools.HttpParserError) -> None:
            if isinstance(error.__context__, _HeadTooLarge):
                self._refuse_head()
                return
            log.info("a connection sent no valid HTTP: %s", error)
            self.refuse(refusal(400, "bad-request", f"this is not valid HTTP/1.1 ({error}): the connection is closed"))

        def _refuse_head(self) -> None:
            detail = (
                f"the request's head has more than {door.limits.max_head_bytes:,} bytes: send fewer or smaller headers"
            )
            self.refuse(refusal(431, "request-header-fields-too-large", detail))

        def _add_to_head(self, size: int) -> None:
            self._unparsed_bytes = 0
            self._head_bytes += size
            if self._head_bytes > door.limits.max_head_bytes:
                raise _HeadTooLarge

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            if door.loop_turns is not None:
                app = door.loop_turns.before(app, lambda: cycle.disconnected)
            super()._start_asgi_task(cycle, app)

        # what the parser calls

        def on_message_begin(self) -> None:
            self._head_bytes = 0
            self._is_between = False
            self.waits_since = self.loop.time() if self.waits_since is None else self.waits_since
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._add_to_head(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._add_to_head(len(name) + len(value) + LINE_BYTES)
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._unparsed_bytes = 0
            if self.parser.should_upgrade() and not self._should_upgrade():
                self._is_offer = True  # the request begins when it is read again
                return
            self.waits_since = None
            super().on_headers_complete()
            if door.is_draining and self.cycle is not None:
                self.cycle.keep_alive = False

        def on_chunk_header(self) -> None:
            self._unparsed_bytes = 0

        def on_body(self, body: bytes) -> None:
            if self._is_offer:
                return
            self._unparsed_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            if self._is_offer:
                return
            self._unparsed_bytes = 0
            self._is_between = True
            # uvicorn's keep-alive timer was stopped by a body that came after its answer
            is_answered = self.cycle is not None and self.cycle.response_complete
            self.waits_since = self.loop.time() if is_answered else None
            super().on_message_complete()

        def on_response_complete(self) -> None:
            if not self._is_between and not self.pipeline:  # the rest of a body that nobody waits for
                self.waits_since = self.loop.time()
            super().on_response_complete()

    return BoundedProtocol
