"""Processes end together: by a closed terminal, and by the kill of the one that started the others."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from models.family import PARENT_VARIABLE
from service.cli import check_port
from tests.support.processes import START_TIMEOUT_S, environment, free_port, wait_until
from tests.support.stores import TaskPlan, make_store

ENDED_S = 60  # on a busy machine; the processes look for their parent four times a second
PROGRAM = Path(sys.executable).with_name("mu2net")


@contextlib.contextmanager
def family(tmp_path: Path, *options: str, **popen: object) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A server that is ready, and its port; whatever is left of it is killed."""
    store = make_store(tmp_path / "store", TaskPlan("first"))
    port = free_port()
    command = [str(PROGRAM), "serve", str(store.folder), "--port", str(port), *options]
    started: subprocess.Popen[bytes] = subprocess.Popen(command, env=environment(tmp_path), **popen)  # type: ignore[call-overload]
    children: list[psutil.Process] = []
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until(started, lambda: client.get("/readyz").status_code == 200)
        yield started, port
    finally:
        if started.poll() is None:
            children = psutil.Process(started.pid).children(recursive=True)
            started.kill()
            started.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def assert_all_end(processes: list[psutil.Process], port: int) -> None:
    _, alive = psutil.wait_procs(processes, timeout=ENDED_S)
    left = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        process.kill()
    assert not left
    check_port("127.0.0.1", port)  # free again


@pytest.mark.parametrize("options", [[], pytest.param(["--with-worker"], marks=pytest.mark.slow)], ids=str)
def test_a_killed_parent_leaves_no_process_and_no_port_behind(tmp_path: Path, options: list[str]) -> None:
    with family(tmp_path, *options) as (started, port):
        children = psutil.Process(started.pid).children(recursive=True)
        assert children
        started.kill()
        started.wait()
        assert_all_end(children, port)


@pytest.mark.parametrize("options", [pytest.param([], marks=pytest.mark.slow), ["--with-worker"]], ids=str)
def test_a_closed_terminal_ends_all(tmp_path: Path, options: list[str]) -> None:
    terminal, end = pty.openpty()
    with family(
        tmp_path, *options, stdin=end, stdout=end, stderr=end, start_new_session=True, preexec_fn=_take_terminal
    ) as (started, port):
        os.close(end)
        children = psutil.Process(started.pid).children(recursive=True)
        os.close(terminal)
        assert started.wait(ENDED_S) == 0
        assert_all_end(children, port)


def _take_terminal() -> None:
    import fcntl
    import termios

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever started the tests, nohup perhaps
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_a_server_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    with family(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN) and None) as (started, port):
        started.send_signal(signal.SIGHUP)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                assert client.get("/readyz").status_code == 200
                time.sleep(0.1)
        assert started.poll() is None


def test_a_process_ends_with_the_one_that_is_named_as_its_parent(tmp_path: Path) -> None:
    child = (
        "import os; from models.family import *; end_with_parent(int(os.environ[PARENT_VARIABLE])); print(1, flush=1)"
    )
    code = (
        "import os, subprocess, sys; "
        f"os.environ['{PARENT_VARIABLE}'] = str(os.getpid()); "
        f"child = subprocess.Popen([sys.executable, '-c', {child + '; import time; time.sleep(600)'!r}]); "
        "print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        (pid,) = lines - {"1"}
        started = psutil.Process(int(pid))
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + START_TIMEOUT_S
        while started.is_running() and started.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
