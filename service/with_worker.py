"""A server with a worker beside it, as two processes that live and end together.

The worker is started again whenever it dies; its job goes on then. The server never is: whoever started this
is to see that it ended.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import FrameType

from models.errors import InvalidConfig

WATCH_S = 0.2
PAUSE_S = 2.0  # before a worker that died is started again
GRACE_S = 30.0  # for each to end by itself


def worker_command(store: str) -> list[str]:
    """Return the command line of a worker on `store`.

    Raises:
        InvalidConfig: what trains is not installed here.
    """
    if find_spec("torch") is None:
        raise InvalidConfig("--with-worker needs torch: install mu2net[evolve], or start the worker on another machine")
    return [sys.executable, "-m", "models", "worker", store]


def run_both(server: Sequence[str], worker: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run both until the server ends or this process is told to stop; return the server's exit status."""
    serving = subprocess.Popen(server, env=environment)
    working = subprocess.Popen(worker, env=environment)

    def stop(number: int, frame: FrameType | None) -> None:
        serving.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        while serving.poll() is None:
            time.sleep(WATCH_S)
            if working.poll() is not None:
                time.sleep(PAUSE_S)
                working = subprocess.Popen(worker, env=environment)
    finally:
        working.terminate()
        try:
            working.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            working.kill()
    return serving.returncode
