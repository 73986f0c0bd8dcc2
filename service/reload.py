"""Hot reload: follows the store's active release, and swaps to it when it has proved itself.

A thread of low priority polls `CURRENT`, loads what is new, checks digests and golden samples, and then
replaces one reference. Whatever fails leaves the old release serving, is told in the log, the metrics and
`status`, and is tried again with growing pauses.
"""

import ctypes
import gc
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from models.errors import Mu2NetError
from models.store import Store
from service.golden import RunRows, check_route
from service.metrics import Metrics
from service.release import LoadCost, LoadedRelease, StagePool

MAX_PAUSE_S = 30.0
NICENESS = 10  # the thread's; requests go first where cores are short

log = logging.getLogger("mu2net.reload")


@dataclass(frozen=True, slots=True)
class Failure:
    """A release that could not be taken up. `release` is None where the store could not even say which."""

    release: int | None
    error: str
    attempts: int
    last_attempt_at: str  # UTC, ISO 8601
    next_attempt_in_s: float  # counted from the last attempt


@dataclass(frozen=True, slots=True)
class Reload:
    """A release that was taken up."""

    release: int
    taken_up_at: str  # UTC, ISO 8601
    seconds: float
    cost: LoadCost


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """What the watcher did last; `failure` is None when it is at peace with the store."""

    last_reload: Reload | None = None
    failure: Failure | None = None


class Watcher:
    """Calls `on_release` with each release that has proved itself, from its own thread."""

    def __init__(
        self,
        folder: Path,
        pool: StagePool,
        run: RunRows,
        on_release: Callable[[LoadedRelease], None],
        *,
        poll_interval_s: float,
        metrics: Metrics,
    ) -> None:
        self.status = WatchStatus()
        self._folder = folder
        self._pool = pool
        self._run = run
        self._on_release = on_release
        self._poll_interval_s = poll_interval_s
        self._metrics = metrics
        self._live: LoadedRelease | None = None
        self._retired: list[weakref.ref[LoadedRelease]] = []
        self._retry_at = 0.0  # on the monotonic clock
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; a load under way ends first, unheeded, with the process."""
        self._stopped.set()

    def _watch(self) -> None:
        with suppress(OSError, AttributeError):  # an advice to the system, where it can be given to a thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not self._stopped.is_set():
            self._look()
            self._free_retired()
            self._stopped.wait(self._poll_interval_s)

    def _look(self) -> None:
        """Take up the active release if it is another than the live one and no pause after a failure holds."""
        wanted: int | None = None
        try:
            if self._is_pausing(None):
                return
            store = Store.open(self._folder)
            wanted = store.current().release
            if self._is_pausing(wanted):
                return
            if self._live is None or self._live.number != wanted:
                self._take_up(store, wanted)
            self.status = WatchStatus(self.status.last_reload)
        except Exception as error:  # this thread's boundary: no failure may end the watch or the serving
            if not self._stopped.is_set():
                self._report(wanted, error)

    def _is_pausing(self, wanted: int | None) -> bool:
        """Tell whether the same failed too recently; another release than the failed one is tried at once."""
        failure = self.status.failure
        return failure is not None and failure.release == wanted and time.monotonic() < self._retry_at

    def _take_up(self, store: Store, number: int) -> None:
        started = time.monotonic()
        release, cost = self._pool.load_release(store, number, self._live)
        for route in release.routes.values():
            check_route(route, store, self._run)
        self._on_release(release)  # the swap
        if self._live is not None:
            self._retired.append(weakref.ref(self._live))
        self._live = release
        seconds = time.monotonic() - started
        self.status = WatchStatus(Reload(number, _now(), seconds, cost))
        self._metrics.reloads.inc()
        self._metrics.reload_seconds.observe(seconds)
        self._metrics.release.set(number)
        self._metrics.tasks.set(len(release.routes))
        log.info(
            "release %d is live after %.2f s: %d tasks, %d subgraphs loaded, %d shared with the release before",
            number, seconds, len(release.routes), cost.added, cost.reused,
        )  # fmt: skip

    def _report(self, wanted: int | None, error: Exception) -> None:
        before = self.status.failure
        attempts = 1 if before is None or before.release != wanted else before.attempts + 1
        pause_s = min(self._poll_interval_s * 2 ** min(attempts, 16), MAX_PAUSE_S)
        text = str(error) if isinstance(error, Mu2NetError) else f"{type(error).__name__}: {error}"
        self._retry_at = time.monotonic() + pause_s
        self.status = WatchStatus(self.status.last_reload, Failure(wanted, text, attempts, _now(), pause_s))
        self._metrics.reload_failures.inc()
        serving = "no release" if self._live is None else f"release {self._live.number}"
        log.error(
            "release %s cannot be taken up (attempt %d, again in %.1f s), %s keeps answering: %s",
            "of the store" if wanted is None else wanted, attempts, pause_s, serving, text,
            exc_info=None if isinstance(error, Mu2NetError) else error,
        )  # fmt: skip

    def _free_retired(self) -> None:
        """Give memory back to the system once the last request of an old release has ended."""
        left = [reference for reference in self._retired if reference() is not None]
        if len(left) < len(self._retired):
            self._retired = left
            gc.collect()
            with suppress(OSError, AttributeError):  # glibc only; elsewhere the allocator decides
                ctypes.CDLL("libc.so.6").malloc_trim(0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
