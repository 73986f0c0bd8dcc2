"""The length of turns is set for a thread and what it starts, and niceness and scheduling class stay as they are."""

import ctypes
import os
import sys
import threading
from collections.abc import Callable

import pytest

from models.turn_length import LONG_S, SHORT_S, SYSCALLS, Attributes, ask_for_turns

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in SYSCALLS, reason="only Linux has turns that can be set"
)


def turns_ns() -> int:
    found = Attributes()
    number = {"x86_64": 315, "aarch64": 275}[os.uname().machine]  # sched_getattr
    assert ctypes.CDLL(None).syscall(number, 0, ctypes.byref(found), ctypes.sizeof(found), 0) == 0
    runtime: int = found.runtime
    return runtime


def in_thread(work: Callable[[], None]) -> None:
    """Run where what is set ends with the thread."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_turns_are_set_and_inherited() -> None:
    def work() -> None:
        ask_for_turns(SHORT_S)
        if turns_ns() == 0:
            pytest.skip("this kernel has turns of one length")
        assert turns_ns() == round(SHORT_S * 1e9)
        in_thread(lambda: None if turns_ns() == round(SHORT_S * 1e9) else pytest.fail("not inherited"))
        ask_for_turns(LONG_S)
        assert turns_ns() == round(LONG_S * 1e9)

    in_thread(work)


def test_niceness_stays() -> None:
    def work() -> None:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, 7)
        ask_for_turns(SHORT_S)
        assert os.getpriority(os.PRIO_PROCESS, thread) == 7

    in_thread(work)


def test_a_thread_that_gets_only_idle_time_keeps_it() -> None:
    def work() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        ask_for_turns(SHORT_S)
        assert os.sched_getscheduler(0) == os.SCHED_IDLE

    in_thread(work)
