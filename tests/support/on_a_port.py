"""A server of this process that listens on a real port: for real clients, in a fraction of a second."""

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry

from service.door import Door
from service.http import create_app
from service.listener import loop_class
from service.metrics import Metrics
from service.protocol import protocol_class
from service.server import Server, build_server
from service.settings import Settings
from tests.support.in_process import wait_for


@contextmanager
def listening(store: Path, **settings: Any) -> Iterator[tuple[str, Server]]:
    """Serve a store until the block ends; yields its address."""
    own: dict[str, Any] = {"device": "cpu", "poll_interval_s": 0.05, "bind_address": "127.0.0.1"}
    door = Door()
    server = build_server(Settings(store=str(store), **(own | settings)), Metrics(CollectorRegistry()), door=door)
    app = create_app()
    app.state.server = server
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        http = protocol_class(door)
        config = uvicorn.Config(app, http=http, log_level="error", lifespan="off", timeout_graceful_shutdown=5)
        web = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: _run(_serve(web, server, listener), door))
        thread.start()
        try:
            wait_for(lambda: web.started and server.predictor.release is not None)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        finally:
            web.should_exit = True
            thread.join(30)


def _run(serving: Coroutine[Any, Any, None], door: Door) -> None:
    with asyncio.Runner(loop_factory=loop_class(door)) as runner:
        runner.run(serving)


async def _serve(web: uvicorn.Server, server: Server, listener: socket.socket) -> None:
    server.start()
    try:
        await web.serve(sockets=[listener])
    finally:
        await server.stop()
