"""How the server ends on SIGTERM: it is not ready first, and goes on answering until nobody sends it more.

A load balancer learns from `/readyz` that a server goes away, seconds after it was told to. uvicorn alone would
refuse connections at once, and a rolling update would lose requests.
"""

import asyncio
import logging
import signal
from types import FrameType

from service.door import Door

log = logging.getLogger("mu2net.server")


def drain_on_sigterm(door: Door, drain_s: float) -> None:
    """Put `drain_s` seconds of draining before what SIGTERM does now; a second one ends them.

    Use from the main thread, within its event loop.
    """
    loop, then = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

    def end() -> None:
        if callable(then):
            then(signal.SIGTERM, None)

    def begin() -> None:
        door.is_draining = True
        log.info("shutting down: not ready, and requests are answered for %g s more", drain_s)
        loop.call_later(drain_s, end)

    def on_sigterm(_number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(end if door.is_draining or not drain_s else begin)

    signal.signal(signal.SIGTERM, on_sigterm)
