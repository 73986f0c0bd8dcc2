"""Hot reload: follows the store's active release, and swaps to it when it has proved itself.

A thread of low priority polls `CURRENT`, has what is new proven in a process of its own, loads it, checks digests and
golden samples, and then replaces one reference. Whatever fails leaves the old release serving, is told in the log, the
metrics and `status`, and is tried again with growing pauses.
"""

import logging
import os
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from models.collect import trim_cache
from models.errors import Mu2NetError, ProofFailed, kind_of
from models.leftovers import drop_leftovers
from models.names import SubgraphId
from models.release import Release
from models.signatures import Trust
from models.store import Store, object_name, route_objects
from service.golden import Proofs, RunRows
from service.memory import give_back, is_out_of_memory, resident_bytes
from service.metrics import Metrics
from service.proof_process import ProofLimits, ProofProcess, Stopped
from service.prove import Proved
from service.release import LoadedRelease, StagePool
from service.residents import Residents
from service.runtime import CUDA

MAX_PAUSE_S = 30.0
TRIM_PAUSE_S = 3600.0  # between two looks for what the local copy of a store need not keep
NICENESS = 10  # the thread's; requests go first where cores are short

log = logging.getLogger("mu2net.reload")


@dataclass(frozen=True, slots=True)
class Failure:
    """A release that could not be taken up. `release` is None where the store could not even say which."""

    release: int | None
    kind: str  # of the error, in kebab case, for programs
    error: str
    attempts: int
    last_attempt_at: str  # UTC, ISO 8601
    next_attempt_in_s: float  # counted from the last attempt


@dataclass(frozen=True, slots=True)
class ReloadCost:
    """What taking up a release took. Memory is this process's resident, None where the system does not say."""

    seconds: float
    bytes_read: int  # of the store
    added: int  # subgraphs loaded
    reused: int  # subgraphs that were in memory
    freed: int  # subgraphs that no resident release has any more
    memory_before: int | None
    memory_after: int | None  # with the release before freed, as far as no request holds it


@dataclass(frozen=True, slots=True)
class Reload:
    """A release that was taken up."""

    release: int
    taken_up_at: str  # UTC, ISO 8601
    cost: ReloadCost


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """What the watcher did last; `failure` is None when it is at peace with the store."""

    last_reload: Reload | None = None
    failure: Failure | None = None


class Watcher:
    """Puts each release that has proved itself in front of `residents`, from its own thread."""

    def __init__(
        self,
        location: str | Path,
        pool: StagePool,
        run: RunRows,
        residents: Residents,
        *,
        cache: Path | None = None,
        poll_interval_s: float,
        metrics: Metrics,
        limits: ProofLimits | None = None,
        trust: Trust | None = None,
    ) -> None:
        self.status = WatchStatus()
        self.active: int | None = None  # the release that the store asked for when it was last read
        self._location = location
        self._cache = cache
        self._store: Store | None = None
        self._pool = pool
        self._proofs = Proofs()
        self._process = ProofProcess(location, cache, pool.runtime, pool.prepared, limits)
        self._trust = trust
        self._run = run
        self._residents = residents
        self._poll_interval_s = poll_interval_s
        self._metrics = metrics
        self._retired: list[weakref.ref[LoadedRelease]] = []
        self._retry_at = 0.0  # on the monotonic clock
        self._trim_at = 0.0  # on the monotonic clock
        self._ask_at = 0.0  # on the monotonic clock, during a proof
        self._stopped = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; a load under way ends first, unheeded, with the process."""
        self._stopped = True
        self._wake.set()

    def look_soon(self) -> None:
        """Look at the store now instead of after the usual pause."""
        self._wake.set()

    def _watch(self) -> None:
        with suppress(OSError, AttributeError):  # an advice to the system, where it can be given to a thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not self._stopped:
            self._wake.clear()
            self._look()
            self._free_retired()
            self._trim_cache()
            self._wake.wait(self._poll_interval_s)

    def _look(self) -> None:
        """Take up the active release if it is another than the live one and no pause after a failure holds."""
        wanted: int | None = None
        try:
            if self._is_pausing(None):
                return
            store = self._opened()
            wanted = store.current().release
            self._tell_active(wanted)
            if self._is_pausing(wanted):
                return
            if self._serving() != wanted:
                self._take_up(store, wanted)
            self.status = WatchStatus(self.status.last_reload)
        except Stopped:  # what is asked for now is looked at without a pause
            self._wake.set()
        except Exception as error:  # this thread's boundary: no failure may end the watch or the serving
            if not self._stopped:
                self._report(wanted, error)
        self._metrics.release_skew.set(self.is_skewed)

    def _opened(self) -> Store:
        if self._store is None:
            self._store = Store.open(self._location, cache=self._cache)
        return self._store

    def _serving(self) -> int | None:
        live = self._residents.live
        return None if live is None else live.number

    def _tell_active(self, number: int) -> None:
        self.active = number
        self._metrics.active_release.set(number)

    @property
    def is_skewed(self) -> bool:
        """Tell whether another release answers than the store asks for, as far as it could be read."""
        return self.active is not None and self._serving() != self.active

    def _is_pausing(self, wanted: int | None) -> bool:
        """Tell whether the same failed too recently; another release than the failed one is tried at once."""
        failure = self.status.failure
        return failure is not None and failure.release == wanted and time.monotonic() < self._retry_at

    def _take_up(self, store: Store, number: int) -> None:
        started, bytes_before, memory_before = time.monotonic(), store.bytes_read, resident_bytes()
        held_before = self._pool.held()
        release = self._residents.find(number)  # still in memory: going back is but a swap
        proved: Proved | None = None
        if release is None:
            record = store.release(number)
            if self._trust is not None:
                self._trust.check(store.files, record)
            proved = self._prove_new(store, record)
            release = self._pool.load_release(store, record, self._residents.held)
        elsewhere = None if proved is None or self._pool.runtime.provider == CUDA else proved.logits()
        try:
            for route in release.routes.values():
                self._proofs.check(route, store, self._run, elsewhere=elsewhere)
            self.status = WatchStatus(self.status.last_reload)  # before the swap: what serves has no failure beside it
            dropped = self._residents.swap(release)
        finally:
            store.hand_over({})
            self._proofs.keep(route for held in self._residents.held for route in held.routes.values())
        used = _subgraphs(release)
        kept = {subgraph for held in self._residents.held for subgraph in _subgraphs(held)}
        self._retired += map(weakref.ref, dropped)
        if not dropped:
            give_back()  # what reading the store took; else when the old release has ended
        cost = ReloadCost(
            seconds=time.monotonic() - started,
            bytes_read=store.bytes_read - bytes_before + (0 if proved is None else proved.bytes_read),
            added=len(used - held_before),
            reused=len(used & held_before),
            freed=len(held_before - kept),
            memory_before=memory_before,
            memory_after=resident_bytes(),
        )
        self.status = WatchStatus(Reload(number, _now(), cost))
        self._count(release, cost)

    def _prove_new(self, store: Store, record: Release) -> Proved | None:
        """Have all routes that no resident release has proven in a process of their own; None if there is none.

        Only then is anything of them loaded here, where a graph without an end would hold the engine for good.
        """
        store.hand_over({})
        held = {(task, route.id) for resident in self._residents.held for task, route in resident.routes.items()}
        new = [pair for pair in record.tasks.items() if pair not in held]
        if not new:
            return None
        known = self._pool.held()
        proved = self._process.prove(
            new, lambda: self._is_unwanted(store, record.number), verified=store.verified, checked=known
        )
        store.trust_verified(proved.verified)
        store.hand_over(proved.contents())
        return proved

    def _is_unwanted(self, store: Store, number: int) -> bool:
        """Tell whether a proof is of no use any more: the server ends, or the store asks for another release."""
        if self._stopped or time.monotonic() < self._ask_at:
            return self._stopped
        self._ask_at = time.monotonic() + self._poll_interval_s
        with suppress(Mu2NetError, OSError):
            return store.current().release != number
        return False

    def _count(self, release: LoadedRelease, cost: ReloadCost) -> None:
        self._metrics.reloads.inc()
        self._metrics.reload_seconds.observe(cost.seconds)
        self._metrics.reload_bytes.inc(cost.bytes_read)
        for outcome, count in (("added", cost.added), ("reused", cost.reused), ("freed", cost.freed)):
            self._metrics.reload_subgraphs.labels(outcome).inc(count)
        self._metrics.release.set(release.number)
        self._metrics.tasks.set(len(release.routes))
        self._metrics.resident_releases.set(len(self._residents.held))
        log.info(
            "release %d is live after %.2f s: %d tasks; %d subgraphs loaded, %d reused, %d freed, %d bytes read",
            release.number, cost.seconds, len(release.routes), cost.added, cost.reused, cost.freed, cost.bytes_read,
        )  # fmt: skip

    def _report(self, wanted: int | None, error: Exception) -> None:
        before = self.status.failure
        attempts = 1 if before is None or before.release != wanted else before.attempts + 1
        pause_s = min(self._poll_interval_s * 2 ** min(attempts, 16), MAX_PAUSE_S)
        expected = isinstance(error, Mu2NetError)
        text = str(error) if expected else f"{type(error).__name__}: {error}"
        kind = _kind_of(error)
        self._retry_at = time.monotonic() + pause_s
        failure = Failure(wanted, kind, text, attempts, _now(), pause_s)
        self.status = WatchStatus(self.status.last_reload, failure)
        self._metrics.reload_failures.labels(kind).inc()
        serving = self._serving()
        log.error(
            "release %s cannot be taken up (attempt %d, again in %.1f s), %s keeps answering: %s",
            "of the store" if wanted is None else wanted, attempts, pause_s,
            "no release" if serving is None else f"release {serving}", text,
            exc_info=None if expected else error,
        )  # fmt: skip
        error.__traceback__ = None  # its frames hold what was half loaded
        give_back()

    def _free_retired(self) -> None:
        """Give memory back to the system once the last request of an old release has ended."""
        left = [reference for reference in self._retired if reference() is not None]
        if len(left) < len(self._retired):
            self._retired = left
            give_back()
            last = self.status.last_reload
            if last is not None:
                last = replace(last, cost=replace(last.cost, memory_after=resident_bytes()))
                self.status = WatchStatus(last, self.status.failure)

    def _trim_cache(self) -> None:
        """Now and then delete what is kept on this machine and nothing here needs: packed weights, and what neither a
        resident release nor the store behind a URL has."""
        if self._store is None or self._serving() is None or time.monotonic() < self._trim_at:
            return
        self._trim_at = time.monotonic() + TRIM_PAUSE_S
        self._pool.trim()
        drop_leftovers(self._store.folder)
        routes = [route for held in self._residents.held for route in held.routes.values()]
        in_use = {name for route in routes for name in (*route_objects(route.route), object_name(route.id, "json"))}
        try:
            trim_cache(self._store, in_use)
        except (Mu2NetError, OSError) as error:  # no harm to the serving
            log.warning("what is kept of the store in %s could not be trimmed: %s", self._store.folder, error)


def _kind_of(error: Exception) -> str:
    if isinstance(error, ProofFailed):
        return error.kind
    return "out-of-memory" if is_out_of_memory(error) else kind_of(error)


def _subgraphs(release: LoadedRelease) -> set[SubgraphId]:
    return {stage.id for route in release.routes.values() for stage in route.stages}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
