"""What one request holds of the server's room, from its head to the end of its answer.

A request has one place at a time. While its body is on the way that is a place among the bodies: a client that
sends slowly, or not at all, must not hold what others compute in. Bytes are counted as they arrive, since an
announced length costs its sender nothing.
"""

import asyncio
import math
import shutil
import tempfile

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from models.errors import UploadTooSlow
from models.storage import TEMPORARY, storage_full
from service.access import bearer, connection_of
from service.addresses import address_of
from service.loop_turns import STATE
from service.places import Places, Room
from service.server import Server

DISK_RESERVE_BYTES, DISK_RESERVE_SHARE = 256 * 2**20, 0.1  # of the temporary folder's disk, the smaller stays free
DISK_CHECK_BYTES = 2**22  # received between looks at the disk


class Visit:
    """One request's place, and the bytes of its body. `receive` stands in for the request's own."""

    __slots__ = (
        "_began",
        "_bytes",
        "_bytes_room",
        "_checked_bytes",
        "_holder",
        "_is_received",
        "_places",
        "_receive",
        "_room",
        "_settings",
    )

    def __init__(self, server: Server, scope: Scope, receive: Receive) -> None:
        self._places: Places = server.places
        self._settings = server.settings
        holder: str | None = scope["state"].get(STATE)
        self._holder = holder_of(server, scope) if holder is None else holder
        self._receive = receive
        self._room: Room | None = None
        self._bytes_room = self._places.body_bytes
        self._bytes = 0
        self._checked_bytes = 0
        self._is_received = False
        self._began: float | None = None

    @property
    def holder(self) -> str:
        """Whose room the request takes."""
        return self._holder

    def begin(self) -> None:
        """Take a place among the requests; Overloaded if there is none."""
        self._move(self._places.requests)

    def begin_stream(self) -> None:
        """Change to a place among the streams, which go on for hours; Overloaded if there is none."""
        self._move(self._places.streams)

    def begin_upload(self) -> None:
        """Change to a place among the uploads, whose bytes go to disk; BodiesFull if there is none."""
        self._move(self._places.uploads)
        self._bytes_room = self._places.upload_bytes

    def end(self) -> None:
        """Give back all that the request holds."""
        if self._room is not None:
            self._room.give_back(self._holder)
            self._room = None
        if self._bytes:
            self._bytes_room.give_back(self._holder, self._bytes)
            self._bytes = 0

    async def receive(self) -> Message:
        """Return the request's next message.

        Raises:
            UploadTooSlow: the body comes slower than it may.
            BodiesFull: there is no room for it.
        """
        if self._is_received:
            return await self._receive()
        if self._room is self._places.requests:
            self._move(self._places.bodies)
        message = await self._in_time()
        if message["type"] == "http.request":
            self._count(len(message.get("body", b"")))
            self._is_received = not message.get("more_body", False)
            if self._is_received and self._room is self._places.bodies:
                self._move(self._places.requests)
        return message

    def _move(self, room: Room) -> None:
        room.take(self._holder)
        if self._room is not None:
            self._room.give_back(self._holder)
        self._room = room

    async def _in_time(self) -> Message:
        """Return the next message; the time for it grows with what was received."""
        if self._began is None:
            self._began = asyncio.get_running_loop().time()
        limits = self._settings
        by_rate_s = limits.upload_grace_s + self._bytes / limits.min_body_bytes_per_s
        in_all_s = math.inf if self._room is self._places.uploads else limits.upload_timeout_s
        try:
            async with asyncio.timeout_at(self._began + min(by_rate_s, in_all_s)):
                return await self._receive()
        except TimeoutError:
            if in_all_s <= by_rate_s:
                found = f"the request body was not there after {in_all_s:g} s"
            else:
                found = (
                    f"only {self._bytes:,} bytes of the request body were there after {by_rate_s:.3g} s, and at least "
                    f"{limits.min_body_bytes_per_s:,} bytes a second must come"
                )
            raise UploadTooSlow(f"{found}: send smaller or fewer images, or over a faster line") from None

    def _count(self, size: int) -> None:
        if not size:
            return
        self._bytes_room.take(self._holder, size)
        self._bytes += size
        if self._room is self._places.uploads and self._bytes - self._checked_bytes > DISK_CHECK_BYTES:
            self._checked_bytes = self._bytes
            _require_disk(self._places.upload_bytes.used)  # each may yet be copied to a file with a name


def _require_disk(needed: int) -> None:
    """Refuse an upload that would fill the disk, before it does.

    Raises:
        StorageFull: less than `needed` and the reserve would be left.
    """
    folder = tempfile.gettempdir()
    disk = shutil.disk_usage(folder)
    reserve = min(DISK_RESERVE_BYTES, int(DISK_RESERVE_SHARE * disk.total))
    if disk.free < needed + reserve:
        raise storage_full(TEMPORARY, folder)


def holder_of(server: Server, scope: Scope) -> str:
    """Return whose room a request takes: its key's, its address's or, through a trusted proxy, its connection's."""
    request = Request(scope)
    token = bearer(request)
    key = server.keys.holder(token) if token else None
    if key is not None:
        return f"key {key.id}"
    return address_of(scope, server.settings.trusted_proxies) or connection_of(request)
