"""A server with a worker beside it, as two processes that live and end together with the one that started them.

The worker is started again whenever it dies; its job goes on then. The server never is: whoever started this
is to see that it ended.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import FrameType

from models.errors import InvalidConfig
from models.family import PARENT_VARIABLE, end_with_parent

WATCH_S = 0.2
PAUSE_S = 2.0  # before a worker that died is started again
GRACE_S = 40.0  # for each to end by itself, more than a server gives its requests


def worker_command(store: str) -> list[str]:
    """Return the command line of a worker on `store`.

    Raises:
        InvalidConfig: what trains is not installed here.
    """
    if find_spec("torch") is None:
        raise InvalidConfig("--with-worker needs torch: install mu2net[evolve], or start the worker on another machine")
    return [sys.executable, "-m", "models", "worker", store]


def run_both(
    server: Sequence[str], worker: Sequence[str], environment: Mapping[str, str], *, parent: int | None = None
) -> int:
    """Run both until the server ends, this process is told to stop, its terminal is closed or `parent` has ended.

    Returns the server's exit status. If this process is killed, both end by themselves.
    """
    is_stopping = False
    environment = {**environment, PARENT_VARIABLE: str(os.getpid())}
    if parent is not None:
        end_with_parent(parent, grace_s=3 * GRACE_S)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        is_stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, stop)

    def start_worker() -> "subprocess.Popen[bytes]":
        # in a session of its own, which it puts behind the server's, and where Ctrl-C comes from here alone
        return subprocess.Popen(worker, env=environment, start_new_session=True)

    serving = subprocess.Popen(server, env=environment)
    working = start_worker()
    try:
        died_at: float | None = None
        while serving.poll() is None and not is_stopping:
            time.sleep(WATCH_S)
            if working.poll() is None:
                died_at = None
            elif died_at is None:
                died_at = time.monotonic()
            elif time.monotonic() - died_at > PAUSE_S:
                working = start_worker()
    finally:
        for process in (serving, working):
            process.terminate()
        for process in (serving, working):
            _wait(process)
    return serving.returncode


def _wait(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
