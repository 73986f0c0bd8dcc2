"""HTTP/1.1 on one connection: uvicorn's protocol with a bounded head, and deaf to upgrades that nobody here knows.

httptools collects a header line of any length, and takes all that follows an offer to upgrade for another protocol,
although a server may ignore the offer (RFC 9110, 7.8). Java's HttpClient makes it with every first request.
"""

import asyncio
import logging
import re
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.door import Door, refusal

UPGRADE_LINE = re.compile(rb"\r\nupgrade[ \t]*:[^\r\n]*(?=\r\n)", re.IGNORECASE)
LINE_BYTES = 4  # of a header line beside name and value: colon, space, line end

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
            self._head: list[bytes] = []  # what was received of an unfinished head, to be read again without an offer
            self._head_bytes = 0  # of the lines that the parser has given out
            self._unparsed_bytes = 0  # received since the parser last gave something out
            self._reads_head = True
            self._is_offer = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.waits_since = self.loop.time()  # until its first head is there, whether or not anything comes
            answer = door.enter(self, self.client)
            if answer is not None:
                self.refuse(answer)

        def connection_lost(self, exc: Exception | None) -> None:
            door.leave(self)
            super().connection_lost(exc)

        def refuse(self, answer: bytes) -> None:
            self.waits_since = None
            if not self.transport.is_closing():
                self._unset_keepalive_if_required()
                self.transport.write(answer)
                self.transport.close()

        def data_received(self, data: bytes) -> None:
            self._unset_keepalive_if_required()
            if self.transport.is_closing():
                return
            if self._reads_head:
                self._head.append(data)
                if self.waits_since is None:
                    self.waits_since = self.loop.time()
            self._unparsed_bytes += len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade:
                self._on_upgrade()
            except httptools.HttpParserError as error:
                self._on_parser_error(error)
            if self._unparsed_bytes > door.limits.max_head_bytes:
                self._refuse_head()

        def _on_upgrade(self) -> None:
            if self._should_upgrade():
                self.waits_since = None
                door.leave(self)
                self.handle_websocket_upgrade()
                return
            head = b"".join(self._head)
            self._forget_head()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the class above does
            self._is_offer = False
            end = head.find(b"\r\n\r\n")
            self.data_received(UPGRADE_LINE.sub(b"", head[:end]) + head[end:])

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

        def _forget_head(self) -> None:
            self._head.clear()
            self._head_bytes = 0
            self._unparsed_bytes = 0
            self._reads_head = True

        def _add_to_head(self, size: int) -> None:
            self._head_bytes += size
            if self._head_bytes > door.limits.max_head_bytes:
                raise _HeadTooLarge

        # what the parser calls

        def on_message_begin(self) -> None:
            self._head_bytes = 0
            self._reads_head = True
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._add_to_head(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._add_to_head(len(name) + len(value) + LINE_BYTES)
            self._unparsed_bytes = 0
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            if self.parser.should_upgrade() and not self._should_upgrade():
                self._is_offer = True  # the request begins when its head is read again
                return
            self._unparsed_bytes = 0
            self._reads_head = False
            self._head.clear()
            self.waits_since = None
            super().on_headers_complete()

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
            self._reads_head = True
            super().on_message_complete()

    return BoundedProtocol
