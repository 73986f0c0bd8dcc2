"""The door: every connection of the server, how many there are, whose they are, and how long they take.

A connection costs a file descriptor and memory before anybody knows who is there, so it is limited before a request is
read: connections in all and of one address, bytes and seconds of a request's head. So is what a client leaves unread
of its answers. uvicorn has none of these limits.
"""

import asyncio
import json
import resource
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol

from service.addresses import address_of
from service.loop_turns import LoopTurns

SWEEP_S = 0.25  # between looks for connections that take too long
RESERVED_DESCRIPTORS = 256  # of this process, for the store, sessions and pipes
SHARES = 16  # one address may hold so large a part of all connections


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """What one server accepts. Times in seconds."""

    max_connections: int = 4096
    max_connections_per_address: int = 256
    max_head_bytes: int = 64 * 2**10
    head_timeout_s: float = 10.0
    keep_alive_s: float = 5.0
    unread_s: float = 60.0  # that an answer may lie unread
    max_unread_bytes: int = 64 * 2**20  # of all answers that lie unread; beyond it those that lie longest go


class Visitor(Protocol):
    """A connection as the door knows it."""

    waits_since: float | None  # the loop's time since when the client owes a head or the end of a body
    stalled_since: float | None  # the loop's time since when it has not read what was written

    @property
    def unread_bytes(self) -> int: ...

    def refuse(self, answer: bytes) -> None:
        """Send a last answer and close."""

    def abort(self) -> None:
        """Close at once; what lies unread is dropped."""


class Door:
    """Counts connections; used from one event loop. Its limits come with `open`, before the first connection."""

    def __init__(self) -> None:
        self.limits = DoorLimits()
        self.is_draining = False
        self.loop_turns: LoopTurns | None = None  # the line before all requests
        self._trusted_proxies = ""
        self._inside: dict[Visitor, str] = {}
        self._held: Counter[str] = Counter()
        self._sweeper: asyncio.TimerHandle | None = None

    def open(self, limits: DoorLimits, *, trusted_proxies: str) -> None:
        """Set the limits, lowered to what this process's file descriptors allow."""
        most = max(SHARES, raised_file_limit() - RESERVED_DESCRIPTORS)
        connections = min(limits.max_connections, most)
        each = min(limits.max_connections_per_address, max(1, connections // SHARES))
        self.limits = replace(limits, max_connections=connections, max_connections_per_address=each)
        self._trusted_proxies = trusted_proxies

    def __len__(self) -> int:
        return len(self._inside)

    def enter(self, visitor: Visitor, peer: tuple[str, int] | None) -> bytes | None:
        """Count a connection from `peer`, host and port; return the refusal to be sent if there is no room for it."""
        address = address_of({"client": peer}, self._trusted_proxies)
        if (answer := self._refusal(address)) is not None:
            return answer
        self._inside[visitor] = address
        self._held[address] += 1
        if self._sweeper is None:
            self._sweep_later()
        return None

    def refusal_of(self, peer: tuple[str, int] | None) -> bytes | None:
        """Return what is sent to a connection from `peer` if there is no room for it now; nothing is counted."""
        return self._refusal(address_of({"client": peer}, self._trusted_proxies))

    def _refusal(self, address: str) -> bytes | None:
        if len(self._inside) >= self.limits.max_connections:
            return refusal(429, "too-many-connections", f"{len(self._inside)} connections are open, as many as may be")
        if address and self._held[address] >= self.limits.max_connections_per_address:
            return refusal(
                429,
                "too-many-connections",
                f"{self._held[address]} connections from {address} are open, as many as one address may have: close "
                "some, or send requests over the same connection",
            )
        return None

    def leave(self, visitor: Visitor) -> None:
        """Forget a connection; nothing happens if it was not let in."""
        address = self._inside.pop(visitor, None)
        if address is not None:
            self._held[address] -= 1
            if not self._held[address]:
                del self._held[address]

    def _sweep_later(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Close the connections that take too long: one timer for all costs a request nothing."""
        self._sweeper = None
        now = asyncio.get_running_loop().time()
        latest = now - self.limits.head_timeout_s
        for visitor in [v for v in self._inside if v.waits_since is not None and v.waits_since < latest]:
            visitor.refuse(
                refusal(
                    408,
                    "request-timeout",
                    f"the request was not there after {self.limits.head_timeout_s:g} s: send it at once",
                )
            )
        self._drop_unread(now)
        if self._inside:
            self._sweep_later()

    def _drop_unread(self, now: float) -> None:
        stalled = [(v.stalled_since, v.unread_bytes, v) for v in self._inside if v.stalled_since is not None]
        unread = sum(size for _, size, _ in stalled)
        for since, size, visitor in sorted(stalled, key=lambda found: found[0]):
            if now - since <= self.limits.unread_s and unread <= self.limits.max_unread_bytes:
                return
            unread -= size
            visitor.abort()


@lru_cache(maxsize=256)  # most are the same, and come in floods
def refusal(status: int, kind: str, detail: str) -> bytes:
    """Return a whole answer to a connection that is closed behind it."""
    title = kind.replace("-", " ").capitalize()
    problem = {"type": f"urn:mu2net:{kind}", "title": title, "status": status, "detail": detail, "error": detail}
    body = json.dumps(problem).encode()
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "content-type: application/problem+json",
        f"content-length: {len(body)}",
        "connection: close",
        *(["retry-after: 1"] if status == 429 else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def raised_file_limit() -> int:
    """Raise this process's limit of open files as far as it may, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # a system may forbid what it names as allowed
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
