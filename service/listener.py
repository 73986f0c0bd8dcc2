"""How connections come in: those that the door has no room for are refused before anything is made for them.

uvloop takes one connection in each round of the event loop, and uvicorn prepares for its requests before anybody can
ask whether it may stay. A flood of connections that are refused then takes a third of a millisecond each, and a
client who comes behind it waits for as many rounds as it has connections.
"""

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from service.door import Door

if sys.platform == "win32":
    from asyncio import SelectorEventLoop as BaseLoop
else:
    from uvloop import Loop as BaseLoop

ADMITTED, LOOKED_AT = 4, 64  # connections in a round of the loop: each admitted one costs as much as 16 refused ones
PAUSE_S = 1.0  # where no file descriptor is left
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
UNREAD_BYTES = 2**16

log = logging.getLogger("mu2net.listener")


def loop_class(door: Door) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the event loop whose servers on an open socket, without TLS, take connections through `door`."""

    class DoorLoop(BaseLoop):
        async def create_server(self, protocol_factory: Any, *args: Any, **options: Any) -> Any:
            sock, certificate = options.get("sock"), options.get("ssl")
            if sock is None or certificate is not None:
                return await super().create_server(protocol_factory, *args, **options)
            sock.listen(options.get("backlog", 100))
            return Listener(self, door, protocol_factory, sock)

    return DoorLoop


class Listener:
    """Takes connections on a socket from its making until it is closed. Does not own the socket.

    Of `asyncio.Server` it has what uvicorn calls.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, door: Door, protocol_factory: Callable[[], Any], sock: socket.socket
    ) -> None:
        self._loop, self._door, self._protocol_factory, self._socket = loop, door, protocol_factory, sock
        self._admitting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        loop.add_reader(sock, self._accept)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)

    async def wait_closed(self) -> None:
        """Wait for nothing: connections end by themselves."""

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        admitted = 0
        for _ in range(LOOKED_AT):
            try:
                connection, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                log.error("no connection can be taken for %g s: %s; raise the limit of open files", PAUSE_S, error)
                self._loop.remove_reader(self._socket)
                self._pause = self._loop.call_later(PAUSE_S, self._resume)
                return
            connection.setblocking(False)
            answer = self._door.refusal_of(peer[:2] if isinstance(peer, tuple) else None)
            if answer is not None:
                _refuse(connection, answer)
                continue
            admitting = self._loop.create_task(self._admit(connection))
            self._admitting.add(admitting)
            admitting.add_done_callback(self._admitting.discard)
            admitted += 1
            if admitted == ADMITTED:
                return

    async def _admit(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol_factory, connection)
        except OSError as error:  # it went away meanwhile
            log.info("a connection ended before it began: %s", error)
            connection.close()


def _refuse(connection: socket.socket, answer: bytes) -> None:
    with suppress(OSError), connection:
        connection.send(answer)
        connection.recv(UNREAD_BYTES)  # what lies unread would make the system take the answer back
