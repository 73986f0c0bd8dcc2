"""Real servers as processes: started, waited for, ended."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 90  # two processes import BentoML one after the other, on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(home: Path, **settings: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MU2NET_")}
    return own | {"HOME": str(home)} | settings


def start(store: Path, port: int, env: dict[str, str], host: str) -> "subprocess.Popen[bytes]":
    program = Path(sys.executable).with_name("mu2net")
    return subprocess.Popen([program, "serve", store, "--port", str(port), "--host", host], env=env, cwd=store.parent)


@contextlib.contextmanager
def running(
    store: Path, home: Path, *, host: str = "127.0.0.1", **settings: str
) -> Iterator[tuple["subprocess.Popen[bytes]", httpx.Client]]:
    """Serve a store by a process of its own until the block ends."""
    port = free_port()
    own = {"MU2NET_POLL_INTERVAL_S": "0.1", "MU2NET_DRAIN_S": "0"} | settings
    server = start(store, port, environment(home, **own), host)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until(server, lambda: client.get("/livez").status_code == 200)
            yield server, client
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def wait_until(
    server: "subprocess.Popen[bytes]", condition: Callable[[], bool], timeout_s: float = START_TIMEOUT_S
) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended by itself"
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.05)
    raise AssertionError("the server did not get there in time")
