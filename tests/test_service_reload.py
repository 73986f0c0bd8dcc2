"""Hot reload: a release is taken up only when proved, else the old one serves on and the reason is told."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from models.errors import ExportMismatch
from models.files import LocalFiles
from models.names import TaskName
from models.records import encode
from models.store import Current, Store
from service import engine
from service.engine import Logits, Row
from service.golden import Proofs
from service.metrics import Metrics
from service.release import LoadedRelease, StagePool
from service.reload import Watcher
from service.residents import Residents
from service.runtime import start_runtime
from tests.support.stores import TaskPlan, add_task, make_store

POLL_S = 0.05


class Watched:
    """A watcher at work on a store, and the releases it let through; holds the last one only."""

    def __init__(self, location: str | Path, **options: Any) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.residents = Residents(1)
        self.run: Callable[[Sequence[Row]], list[Logits]] = engine.run
        self.watcher = Watcher(
            location,
            StagePool(start_runtime("cpu", 1)),
            lambda rows: self.run(rows),
            self.residents,
            poll_interval_s=POLL_S,
            metrics=self.metrics,
            **options,
        )
        self.watcher.start()

    @property
    def releases(self) -> Sequence[LoadedRelease]:
        return self.residents.held

    @property
    def serving(self) -> int | None:
        return self.releases[0].number if self.releases else None

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.watcher.status
            time.sleep(0.01)

    def wait_for_failure(self) -> str:
        self.wait_for(lambda: self.watcher.status.failure is not None)
        assert self.watcher.status.failure is not None
        return self.watcher.status.failure.error

    def metric(self, name: str) -> float:
        lines = self.metrics.render(None).decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", TaskPlan("first", own_blocks=[1], seed=1))


@pytest.fixture
def watched(store: Store) -> Iterator[Watched]:
    watched = Watched(store.folder)
    watched.wait_for(lambda: watched.serving == 1)
    yield watched
    watched.watcher.stop()


def activate(store: Store, number: int, *, is_held: bool = False) -> None:
    LocalFiles(store.folder).replace("CURRENT", encode(Current(number, is_held)))


def test_a_new_release_is_taken_up_and_old_answers_keep_their_bits(store: Store, watched: Watched) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (before,) = engine.run([Row(pixels, watched.releases[0].route("first"))])
    add_task(store, TaskPlan("second", seed=2))
    watched.wait_for(lambda: watched.serving == 2)
    (after,) = engine.run([Row(pixels, watched.releases[0].route("first"))])
    assert np.array_equal(before, after)
    watched.wait_for(lambda: watched.metric("mu2net_reloads_total") == 2)
    reload = watched.watcher.status.last_reload
    assert reload is not None
    assert (reload.release, reload.cost.added, reload.cost.reused) == (2, 2, 5)  # a root's block 1 and a head are new
    assert watched.metric("mu2net_release") == 2
    assert watched.metric("mu2net_tasks") == 2


def test_going_back_to_an_older_release_is_followed(store: Store, watched: Watched) -> None:
    add_task(store, TaskPlan("second", seed=2))
    watched.wait_for(lambda: watched.serving == 2)
    activate(store, 1)
    watched.wait_for(lambda: watched.serving == 1)
    assert list(watched.releases[0].routes) == ["first"]


def test_the_old_release_is_freed_when_nobody_holds_it(store: Store, watched: Watched) -> None:
    route = watched.releases[0].route("first")
    stage, shared = weakref.ref(route.stages[2]), weakref.ref(route.stages[0])
    release = weakref.ref(watched.releases[0])
    add_task(store, TaskPlan("first", seed=2))  # replaced, its own block and head with it
    watched.wait_for(lambda: watched.serving == 2)
    assert release() is None
    assert stage() is not None  # `route`, as a request would, holds its parts
    del route
    gc.collect()
    assert stage() is None
    assert shared() is not None


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        pytest.param(
            TaskPlan("bad", golden_error=0.5, seed=3),
            "task 'bad': golden sample 0 differs by 0.5 from what the store says; at most 0.000462",
            id="wrong-logits",
        ),
        pytest.param(
            TaskPlan("bad", nan=True, seed=3),
            "task 'bad': golden sample 0 differs by nan from what the store says; at most 0 is allowed",
            id="not-a-number",
        ),
    ],
)
def test_a_release_whose_golden_samples_fail_is_refused(
    store: Store, watched: Watched, plan: TaskPlan, message: str
) -> None:
    add_task(store, plan)
    assert watched.wait_for_failure().startswith(message)
    assert watched.serving == 1
    assert watched.metric('mu2net_reload_failures_total{reason="export-mismatch"}') >= 1
    assert watched.metric("mu2net_release") == 1


def test_a_failure_is_retried_with_growing_pauses_and_ends_when_mended(store: Store, watched: Watched) -> None:
    activate(store, 1, is_held=True)
    made = add_task(store, TaskPlan("second", own_blocks=[2], seed=2))
    subgraph = store.routes(made)[TaskName("second")].stages[3].subgraph
    new = store.folder / "objects" / f"{subgraph}.onnx"
    hidden = new.rename(store.folder.with_name("hidden"))
    activate(store, 2)
    watched.wait_for(lambda: (f := watched.watcher.status.failure) is not None and f.attempts >= 2)
    failure = watched.watcher.status.failure
    assert failure is not None
    assert f"{new.name} is missing; needed by task 'second': restore it from a copy of this store" in failure.error
    assert failure.release == 2
    assert failure.next_attempt_in_s == pytest.approx(POLL_S * 2**failure.attempts)
    hidden.rename(new)
    watched.wait_for(lambda: watched.serving == 2)
    watched.wait_for(lambda: watched.watcher.status.failure is None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"{", "CURRENT is damaged: not a JSON record with a format_version; restore it", id="damaged"),
        pytest.param(b'{"format_version": 9}', "CURRENT has format_version 9; this version reads 1 and 2", id="newer"),
        pytest.param(encode(Current(7)), "has no release 7; it has: 0, 1", id="unknown-release"),
    ],
)
def test_a_damaged_pointer_leaves_the_old_release_serving(
    store: Store, watched: Watched, content: bytes, message: str
) -> None:
    (store.folder / "CURRENT").write_bytes(content)
    assert message in watched.wait_for_failure()
    assert watched.serving == 1


def test_a_store_that_goes_away_leaves_the_old_release_serving(store: Store, watched: Watched) -> None:
    store.folder.rename(store.folder.with_name("elsewhere"))
    assert watched.wait_for_failure().startswith(f"no store at '{store.folder}': it has no file CURRENT")
    assert watched.serving == 1
    store.folder.with_name("elsewhere").rename(store.folder)
    watched.wait_for(lambda: watched.watcher.status.failure is None)


def test_a_failure_that_nobody_foresaw_is_told_with_its_kind(store: Store, watched: Watched) -> None:
    def out_of_memory(_: Sequence[Row]) -> list[Logits]:
        raise MemoryError("no room")

    watched.run = out_of_memory
    add_task(store, TaskPlan("second", seed=2))
    assert watched.wait_for_failure() == "MemoryError: no room"
    assert watched.serving == 1


def test_an_unchanged_route_must_give_the_very_same_bits(store: Store, watched: Watched) -> None:
    def off_by_one_bit(rows: Sequence[Row]) -> list[Logits]:
        return [np.nextafter(logits, np.float32(np.inf)) for logits in engine.run(rows)]

    watched.run = off_by_one_bit
    add_task(store, TaskPlan("second", seed=2))
    message = watched.wait_for_failure()
    assert message.startswith("task 'first': golden sample ")
    assert message.endswith("from what this server answered before; at most 0 is allowed")
    assert watched.serving == 1


def test_logits_of_another_shape_are_told(store: Store, watched: Watched) -> None:
    route = watched.releases[0].route("first")
    proofs = Proofs()
    proofs.check(route, store, engine.run)
    with pytest.raises(ExportMismatch, match=r"logits of shape \(2, 2\), this server answered before \(2, 3\)"):
        proofs.check(route, store, lambda rows: [logits[:2] for logits in engine.run(rows)])
    assert TaskName("first") in watched.releases[0].routes
