"""Whose request is next on the event loop: one line for each client, in turns by the time that they have used.

All requests share one event loop, and asyncio runs what is ready in the order in which it became so: of a client
with a hundred connections a hundred requests, before another client's only one. Here few are let onto the loop in
each of its rounds. A request's turn ends wherever it begins to wait: for its body, a decoder, the engine, a thread or
a client that reads slowly. When that is there, it needs another turn.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from service.turns import Turns

AT_ONCE = 8  # turns in a round of the loop
STATE = "holder"  # whose turn it is, in the state of an ASGI scope


class _InTurns:
    """Awaits what an application does for one request, each of its steps when it is the holder's turn."""

    __slots__ = ("_holder", "_turns", "_work")

    def __init__(self, turns: Turns, holder: str, work: Awaitable[None]) -> None:
        self._turns = turns
        self._holder = holder
        self._work = work

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._work.__await__()
        loop, turns, holder = asyncio.get_running_loop(), self._turns, self._holder
        step: Callable[[Any], Any] = steps.send
        value: Any = None
        while True:
            is_held = False
            try:
                yield from turns.begin(holder).__await__()
                is_held = True
            except BaseException as error:  # a cancellation needs no turn
                step, value = steps.throw, error
            began = time.thread_time()
            try:
                waits_for = step(value)
            except StopIteration:
                return
            finally:
                if is_held:
                    # not at once: what the loop finds ready it does before it looks up, and that would be all who wait
                    loop.call_soon(_end, turns, holder, time.thread_time() - began)
            try:
                step, value = steps.send, (yield waits_for)
            except BaseException as error:
                step, value = steps.throw, error


def _end(turns: Turns, holder: str, used_s: float) -> None:
    turns.end(holder, used=used_s)


class LoopTurns:
    """The line before all requests of a server."""

    def __init__(self, holder_of: Callable[[Scope], str]) -> None:
        """
        Args:
            holder_of: whose turn a request takes, by its scope.
        """
        self._turns = Turns(AT_ONCE)
        self._holder_of = holder_of

    @property
    def waiting(self) -> int:
        return self._turns.waiting

    def before(self, app: ASGIApp, is_gone: Callable[[], bool]) -> ASGIApp:
        """Return `app` for one request, which begins when it is its client's turn; not if the client `is_gone` then."""

        async def in_turns(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            scope["state"][STATE] = holder = self._holder_of(scope)

            async def answer() -> None:
                if not is_gone():
                    await app(scope, receive, send)

            await _InTurns(self._turns, holder, answer())

        return in_turns
