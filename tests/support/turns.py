"""Two writers of one store whose file operations follow a schedule: every way to be in each other's way, on purpose."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from models.files import Files, LocalFiles

Schedule = Sequence[tuple[int, float]]  # which writer, and how many operations it makes before the next one's turn


class Turns:
    """Lets writers 0 and 1 operate as the schedule says; who is done or waits for the lock gives its turn away."""

    def __init__(self, schedule: Schedule) -> None:
        self._changed = threading.Condition()
        self._schedule = [*schedule, (0, math.inf), (1, math.inf)]
        self._done: set[int] = set()
        self._lock_of: int | None = None
        self.operations = [0, 0]

    def _is_turn(self, writer: int) -> bool:
        while self._schedule[0][0] in self._done or self._schedule[0][1] <= 0:
            self._schedule.pop(0)
        return self._schedule[0][0] == writer

    def operate(self, writer: int) -> None:
        """Wait for a turn and take it."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._is_turn(writer), timeout=60)
            self._schedule[0] = (writer, self._schedule[0][1] - 1)
            self.operations[writer] += 1
            self._changed.notify_all()

    @contextmanager
    def lock(self, writer: int) -> Iterator[None]:
        with self._changed:
            while self._lock_of is not None:
                self._schedule.insert(0, (1 - writer, 1))
                self._changed.notify_all()
                self._changed.wait(0.05)
            self._lock_of = writer
        try:
            yield
        finally:
            with self._changed:
                self._lock_of = None
                self._changed.notify_all()

    def run(self, *calls: Callable[[], object]) -> list[BaseException | None]:
        """Run each writer's call in a thread and return what it raised."""
        raised: list[BaseException | None] = [None, None]

        def work(writer: int) -> None:
            try:
                calls[writer]()
            except BaseException as error:
                raised[writer] = error
            with self._changed:
                self._done.add(writer)
                self._schedule += [(1 - writer, math.inf)]
                self._changed.notify_all()

        threads = [threading.Thread(target=work, args=(writer,)) for writer in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised


OPERATIONS = ("exists", "read", "infos", "folders", "create", "replace", "swap", "touch", "delete")


def take_turns(files: Files, turns: Turns, writer: int) -> None:
    """Make each operation on these files, which only one writer uses, wait for that writer's turn."""

    def in_turn(call: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*arguments: Any) -> Any:
            turns.operate(writer)
            return call(*arguments)

        return operate

    for name in OPERATIONS:
        setattr(files, name, in_turn(getattr(files, name)))
    if isinstance(files, LocalFiles):  # the real lock would keep the other one from ever having its turn
        files.lock = lambda: turns.lock(writer)  # type: ignore[method-assign]
