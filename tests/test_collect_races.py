"""Garbage collection beside a writer, in many orders of their operations: nobody relies on what is deleted."""

import os
import shutil
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from evolve.journal import IterationStart, Journal
from models.collect import MIN_GRACE_S, collect, trim_cache
from models.doomed import MARK_AGE_S, doomed, marked
from models.errors import PublishConflict, StoreError, UnknownRelease
from models.leftovers import drop_leftovers
from models.names import TaskName
from models.records import encode
from models.store import Current, Store
from models.verify import verify
from tests.support.small_records import publish_toy, toy_store
from tests.support.tiny import TINY_CONFIG
from tests.support.turns import Schedule, Turns, take_turns

LONG_AGO = time.time() - 100 * 3600.0
START = IterationStart(TaskName("b"), 1, 2, "", ("a", "b"), "cpu", False, TINY_CONFIG)


class Place:
    """Where copies of one store are made, all of whose files are old: five releases, the newest one active."""

    def __init__(self, folder: Path, *, is_remote: bool) -> None:
        self._folder = folder
        self.cache = folder / "cache"  # of all copies, since what is checked is what lies in the store itself
        self._is_remote = is_remote
        self._memory = fsspec.filesystem("memory")
        self._template = self._new()
        store = toy_store(self._template)
        for seed in range(4):
            publish_toy(store, "a", seed)

    def _new(self) -> str:
        name = uuid.uuid4().hex
        return f"memory://{name}/store" if self._is_remote else str(self._folder / name)

    def copy(self) -> str:
        location = self._new()
        if self._is_remote:
            source, target = (place.removeprefix("memory:/") for place in (self._template, location))
            for path in self._memory.find(source):
                copied = path.replace(source, target)
                self._memory.pipe_file(copied, self._memory.cat_file(path))
                self._memory.store[copied].created = datetime.fromtimestamp(LONG_AGO, UTC)
            return location
        shutil.copytree(self._template, location)
        for path in Path(location).rglob("*.*"):
            os.utime(path, (LONG_AGO, LONG_AGO))
        return location

    def open(self, location: str, turns: Turns, writer: int) -> Store:
        """Open a store whose operations follow `turns`."""
        store = Store.open(location, cache=self.cache)
        take_turns(store.files, turns, writer)
        return store


@pytest.fixture(scope="module", params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("races"), is_remote=request.param == "memory")


def begin_an_iteration(store: Store) -> None:
    store.release(START.release)
    Journal(store, START.task, START.iteration).write_start(START)


def go_back(store: Store) -> None:
    store.activate(2)


def publish_what_was_garbage(store: Store) -> None:
    publish_toy(store, "b", 1)  # needs what only release 2 has, but for its record


def collect_all(store: Store) -> None:
    collect(store, keep=1, grace_s=MIN_GRACE_S)


@pytest.mark.parametrize("write", [begin_an_iteration, go_back, publish_what_was_garbage])
def test_no_order_of_operations_breaks_a_release_that_somebody_relies_on(
    place: Place, write: Callable[[Store], None]
) -> None:
    outcomes = set()

    def try_order(schedule: Schedule) -> list[int]:
        location = place.copy()
        turns = Turns(schedule)
        writer, collector = (place.open(location, turns, index) for index in (0, 1))
        refused, failure = turns.run(lambda: write(writer), lambda: collect_all(collector))
        assert failure is None
        assert refused is None or isinstance(refused, StoreError | UnknownRelease), refused
        outcomes.add(refused is None)
        store = Store.open(location, cache=place.cache)
        relied_on = {store.current().release}
        if write is begin_an_iteration:
            has_begun = Journal(store, START.task, START.iteration).start() is not None
            assert has_begun is (refused is None)
            relied_on |= {START.release} if has_begun else set()
        for number in relied_on:
            store.require_objects(store.release(number))
        return turns.operations

    writes, collects = try_order([])
    for first in range(0, writes + 1, 1 + writes // 3):
        for second in range(1, collects + 1, 1 + collects // 6):
            try_order([(0, first), (1, second)])
            try_order([(1, second), (0, first)])
    assert True in outcomes


def test_what_is_being_deleted_cannot_be_relied_on(tmp_path: Path) -> None:
    store = toy_store(f"memory://{uuid.uuid4().hex}/store")
    release = publish_toy(store, "a", 1)
    publish_toy(store, "a", 2)
    names = ["releases/000001.json", f"objects/{release.tasks[TaskName('a')]}.json"]
    with marked(store.files, names):
        with pytest.raises(
            UnknownRelease, match=r"release 1 of memory://.* is just being deleted by 'mu2net releases gc'"
        ):
            store.activate(1)
        assert store.current() == Current(2)
        with pytest.raises(PublishConflict, match="is just being deleted by 'mu2net releases gc': publish again when"):
            publish_toy(store, "a", 1)
    assert doomed(store.files) == set()
    assert store.activate(1) == Current(1, is_held=True)


def test_the_mark_of_a_killed_collection_is_forgotten(place: Place) -> None:
    store = Store.open(place.copy())
    store.files.create("gc/left.json", encode(Current(0)))
    memory = fsspec.filesystem("memory")
    if store.is_remote:
        path = f"{store.files.shown('gc/left.json').removeprefix('memory:/')}"
        memory.store[path].created = datetime.fromtimestamp(time.time() - 2 * MARK_AGE_S, UTC)
    else:
        os.utime(store.folder / "gc" / "left.json", (LONG_AGO, LONG_AGO))
    assert doomed(store.files) == set()
    collect(store, keep=1, grace_s=MIN_GRACE_S)
    assert store.files.infos("gc") == []


def test_the_copy_of_a_remote_store_holds_no_more_than_the_store(tmp_path: Path) -> None:
    place = Place(tmp_path, is_remote=True)
    location = place.copy()
    store, server = Store.open(location, cache=tmp_path / "other"), Store.open(location, cache=tmp_path / "server")
    for number in range(5):
        assert not verify(server, [number]).problems
    (tmp_path / "server" / "objects" / ".new-killed").write_bytes(b"half")
    for path in (tmp_path / "server" / "objects").iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert trim_cache(server, ()) == 0
    assert drop_leftovers(server.folder) == 4
    collect(store, keep=1, grace_s=MIN_GRACE_S)
    gone = {info.name for info in server.local_files.infos("objects")} - {
        info.name for info in store.files.infos("objects")
    }
    assert gone
    in_use = sorted(gone)[:2]
    trim_cache(server, in_use)
    left = {info.name for info in server.local_files.infos("objects")}
    assert gone & left == set(in_use)
    assert not verify(server, [4]).problems
