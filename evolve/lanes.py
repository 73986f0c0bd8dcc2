"""Trainings that take turns on one device, a step each, so that a GPU has several candidates' kernels to choose from.

One thread launches them all: a step on a GPU is launched long before it is done, so that only validations wait for what
they read back. Each lane has a stream of its own, on which its kernels follow one another and may run beside those of
other lanes.
"""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
Turns = Generator[None, None, Result]  # work that pauses after each of its steps


class Lanes:
    """At most so many trainings at once, in the order in which they were submitted."""

    def __init__(self, count: int, device: str) -> None:
        self._waiting: deque[tuple[Turns[Any], Future[Any]]] = deque()
        self._free = [_stream(device) for _ in range(count)]
        self._running: list[Lane] = []

    def submit(self, work: "Turns[Result]") -> "Future[Result]":
        """Let `work` wait for a lane; asking for its result lets all lanes take turns until it is there."""
        future: Future[Result] = _Driven(self)
        self._waiting.append((work, future))
        return future

    def turn(self) -> None:
        """Let each lane take one step. An exception of a step is its future's; Ctrl-C and the like are passed on."""
        while self._waiting and self._free:
            self._running.append((self._free.pop(), *self._waiting.popleft()))
        for lane in list(self._running):
            stream, work, future = lane
            try:
                with _on(stream):
                    next(work)
            except StopIteration as end:
                self._leave(lane)
                future.set_result(end.value)
            except Exception as error:
                self._leave(lane)
                future.set_exception(error)
            except BaseException:
                self._leave(lane)
                future.cancel()
                raise

    def close(self) -> None:
        """Give up what is not done: its results are cancelled. The lanes are free then."""
        running, waiting = self._running, self._waiting
        self._running, self._waiting = [], deque()
        self._free += [stream for stream, _, _ in running]
        with ExitStack() as closing:
            for stream, work, future in [*running, *((None, *one) for one in waiting)]:
                future.cancel()
                closing.callback(_close, work, stream)

    def _leave(self, lane: "Lane") -> None:
        self._running.remove(lane)
        self._free.append(lane[0])


Lane = tuple[torch.cuda.Stream | None, Turns[Any], Future[Any]]


class _Driven(Future[Result]):
    """A future whose result comes about while somebody asks for it."""

    def __init__(self, lanes: Lanes) -> None:
        super().__init__()
        self._lanes = lanes

    def result(self, timeout: float | None = None) -> Result:
        """Let the lanes take turns until the result is there; `timeout` is for those that are done."""
        while not self.done():
            self._lanes.turn()
        return super().result(timeout)


def complete(work: "Turns[Result]", device: str) -> Result:
    """Do `work` to its end, alone, and return its result."""
    lanes = Lanes(1, device)
    try:
        return lanes.submit(work).result()
    finally:
        lanes.close()


def _close(work: Turns[Any], stream: torch.cuda.Stream | None) -> None:
    with _on(stream):
        work.close()


def _stream(device: str) -> torch.cuda.Stream | None:
    return None if device == "cpu" else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)
