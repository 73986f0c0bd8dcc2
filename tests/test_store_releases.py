"""Releases in a store: holds, removal, push, verification and garbage, in a folder and behind a URL."""

import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from models.collect import MIN_GRACE_S, RunStart, collect
from models.errors import (
    DamagedObject,
    InvalidConfig,
    InvalidRoute,
    MissingObject,
    PublishConflict,
    UnknownRelease,
    UnknownTask,
)
from models.names import TaskName
from models.push import push
from models.records import encode
from models.store import Current, Store, object_name
from models.verify import verify
from tests.support.small_records import publish_toy, toy_route, toy_store

A, B, C = TaskName("a"), TaskName("b"), TaskName("c")


@pytest.fixture(params=["folder", "memory", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where what is read of a URL is kept
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('s3').new_bucket()}/store"
    return str(tmp_path / "store") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/store"


@pytest.fixture
def store(location: str) -> Store:
    return toy_store(location)


def tasks(store: Store) -> set[str]:
    return set(store.release().tasks)


def test_publishing_moves_on_by_itself(store: Store) -> None:
    assert [publish_toy(store, name, i).number for i, name in enumerate("ab")] == [1, 2]
    assert store.current() == Current(2)
    assert tasks(store) == {"a", "b"}
    assert not verify(store, store.release_numbers()).problems


def test_a_hold_is_left_alone_and_a_resume_loses_nothing(store: Store) -> None:
    for seed, name in enumerate("ab"):
        publish_toy(store, name, seed)
    assert store.activate(1) == Current(1, is_held=True)
    publish_toy(store, "c", 3)
    last = publish_toy(store, "a", 4)
    assert store.current() == Current(1, is_held=True, pending=(3, 4))
    assert tasks(store) == {"a"}
    assert store.resume() == Current(4)
    assert store.release().tasks == last.tasks
    assert tasks(store) == {"a", "c"}  # b came with the release that was gone back from


def test_pending_changes_are_put_on_what_is_active_when_resumed(store: Store) -> None:
    for seed, name in enumerate("ab"):
        publish_toy(store, name, seed)
    store.activate(1)
    pending = publish_toy(store, "c", 3)
    store.activate(2)
    assert store.current() == Current(2, is_held=True, pending=(3,))
    assert store.resume() == Current(4)
    assert store.release().tasks == {**store.release(2).tasks, C: pending.tasks[C]}
    assert store.release().reason == "changes of 3 on 2"


def test_activating_a_pending_release_takes_it_from_those_that_wait(store: Store) -> None:
    publish_toy(store, "a", 0)
    store.activate(1)
    for seed, name in enumerate("bc"):
        publish_toy(store, name, seed)
    assert store.activate(2) == Current(2, is_held=True, pending=(3,))
    assert store.resume() == Current(3)


def test_a_resume_without_a_hold_changes_nothing(store: Store) -> None:
    publish_toy(store, "a", 0)
    assert store.resume() == Current(1)


def test_only_complete_releases_can_be_activated(store: Store) -> None:
    publish_toy(store, "a", 0)
    release = publish_toy(store, "b", 1)
    golden = store.routes(release)[B].golden
    store.files.delete(object_name(str(golden), "safetensors"))
    with pytest.raises(MissingObject, match=rf"{golden}.safetensors is missing; needed by task 'b' of release 2"):
        store.activate(2)
    with pytest.raises(UnknownRelease, match="has no release 7; it has: 0, 1, 2"):
        store.activate(7)
    assert store.current() == Current(2)


def test_tasks_are_removed_and_renamed_in_a_new_release(store: Store) -> None:
    publish_toy(store, "a", 0)
    publish_toy(store, "b", 1)
    assert set(store.remove_task("a").tasks) == {"b"}
    with pytest.raises(UnknownTask, match="no route for task 'a'; known tasks: b"):
        store.remove_task("a")
    before = store.routes(store.release())[B]
    renamed = store.rename_task("b", C)
    after = store.routes(renamed)[C]
    assert (after.task, after.stages, after.golden) == (C, before.stages, before.golden)
    publish_toy(store, "b", 2)
    with pytest.raises(InvalidRoute, match="task 'b' exists already: remove it first"):
        store.rename_task("c", B)
    assert tasks(store) == {"b", "c"}


def test_two_publishers_at_once_lose_nothing(location: str, store: Store) -> None:
    def publish_many(prefix: str) -> None:
        own = Store.open(location)
        for index in range(8):
            publish_toy(own, f"{prefix}{index}", index)

    threads = [threading.Thread(target=publish_many, args=(prefix,)) for prefix in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tasks(store) == {f"{prefix}{index}" for prefix in "xy" for index in range(8)}
    assert not verify(store, store.release_numbers()).problems


def test_a_change_that_no_longer_fits_publishes_nothing(store: Store) -> None:
    def refuse(_: object) -> dict[TaskName, str]:
        raise PublishConflict("gone")

    with pytest.raises(PublishConflict):
        store.publish(refuse, reason="never")  # type: ignore[arg-type]
    assert store.release_numbers() == [0]


# damage


def flip(store: Store, name: str, at: float = 0.5) -> None:
    data = bytearray(store.files.read(name))
    data[int(len(data) * at)] ^= 1
    store.files.replace(name, bytes(data))


KINDS: dict[str, Callable[[Store], str]] = {
    "component": lambda s: object_name(s.routes(s.release())[A].components[-1].id, "safetensors"),
    "golden": lambda s: object_name(str(s.routes(s.release())[A].golden), "safetensors"),
    "subgraph": lambda s: object_name(s.routes(s.release())[A].stages[-1].subgraph, "onnx"),
    "route": lambda s: object_name(s.release().tasks[A], "json"),
    "release": lambda _: "releases/000001.json",
    "pointer": lambda _: "CURRENT",
}


@pytest.mark.parametrize("location", ["folder", "memory"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_caught_and_named(location: str, store: Store, kind: str, at: float, tmp_path: Path) -> None:
    publish_toy(store, "a", 1)
    name = KINDS[kind](store)
    flip(store, name, at)
    fresh = Store.open(location, cache=tmp_path / "empty")
    problems = verify(fresh, [1]).problems
    assert [problem for problem in problems if name in problem], problems
    assert all("damaged" in problem or "format_version" in problem for problem in problems)
    if kind in {"component", "golden", "subgraph"}:
        assert all("task 'a' of release 1" in problem for problem in problems)


def test_a_release_under_a_wrong_number_is_damaged(store: Store) -> None:
    publish_toy(store, "a", 1)
    store.files.replace("releases/000001.json", store.files.read("releases/000000.json"))
    with pytest.raises(DamagedObject, match=r"000001.json says it is release 0: restore it"):
        store.release(1)


# push


def test_a_push_copies_what_is_missing_and_respects_a_hold(store: Store, tmp_path: Path) -> None:
    publish_toy(store, "a", 1)
    target = tmp_path / "production"
    first = push(store, target)
    assert (first.release.number, first.is_new, first.present) == (1, True, 0)
    copy = Store.open(target)
    assert not verify(copy, [1]).problems
    again = push(store, target)
    assert (again.is_new, again.copied) == (False, 0)
    copy.activate(1)
    publish_toy(store, "b", 2)
    publish_toy(store, "c", 3)
    second = push(store, target)
    assert second.release.number == 3
    assert second.release.reason == "pushed: release 3 (c 3)"
    assert second.is_held
    assert second.copied == 8  # of b and c: a head, its graph, golden samples and the record
    assert copy.current() == Current(1, is_held=True, pending=(3,))
    assert copy.resume() == Current(3)
    assert copy.release().tasks == store.release().tasks


def test_a_push_to_a_store_of_another_root_is_refused(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other", lambda made: toy_route(made, None, 99))
    publish_toy(store, "a", 1)
    with pytest.raises(InvalidConfig, match="grew from another root"):
        push(store, tmp_path / "other")
    assert other.release_numbers() == [0]


# garbage

OLD_S = 100 * 3600.0


def age(store: Store) -> None:
    """Make all files of a local store old."""
    long_ago = time.time() - OLD_S
    for folder in ("objects", "releases"):
        for path in (store.folder / folder).iterdir():
            os.utime(path, (long_ago, long_ago))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return toy_store(str(tmp_path / "store"))


def test_garbage_is_what_no_kept_release_needs(local: Store) -> None:
    for seed in range(4):
        publish_toy(local, "a", seed)
    (local.folder / "objects" / ".new-killed").write_bytes(b"half")
    age(local)
    planned = collect(local, keep=2, grace_s=MIN_GRACE_S, dry_run=True)
    assert local.release_numbers() == [0, 1, 2, 3, 4]
    done = collect(local, keep=2, grace_s=MIN_GRACE_S)
    assert done == planned
    assert done.kept_releases == (3, 4)
    assert (len(done.releases), len(done.objects), len(done.leftovers)) == (3, 6, 1)  # 0 has the root's head
    assert local.release_numbers() == [3, 4]
    assert not verify(local, [3, 4]).problems
    assert collect(local, keep=2, grace_s=MIN_GRACE_S).size == 0


def test_what_is_young_stays(local: Store) -> None:
    publish_toy(local, "a", 0)
    age(local)
    publish_toy(local, "a", 1)  # makes young what both share
    publish_toy(local, "a", 2)
    local.put_object(b"of a publish that has not ended", "onnx")
    assert collect(local, keep=1, grace_s=MIN_GRACE_S).kept_releases == (1, 2, 3)  # 1 was the newest within the grace
    assert not verify(local, [1, 2, 3]).problems


def test_held_pending_and_evolving_releases_stay(local: Store) -> None:
    for seed in range(6):
        publish_toy(local, "a", seed)
    local.activate(2)
    publish_toy(local, "b", 9)
    age(local)
    local.files.create("journal/a/0001/start.json", encode(RunStart(A, 4)))
    local.files.create("journal/a/0002/start.json", encode(RunStart(A, 5)))
    local.files.create("journal/a/0002/end.json", b"{}")
    assert collect(local, keep=1, grace_s=MIN_GRACE_S).kept_releases == (2, 4, 7)
    assert local.resume() == Current(7)


def test_a_reader_beside_a_collection_sees_whole_releases(local: Store) -> None:
    for seed in range(12):
        publish_toy(local, "a", seed)
    age(local)
    problems: list[str] = []
    stop = threading.Event()

    def read() -> None:
        reader = Store.open(local.folder)
        while not stop.is_set():
            problems.extend(verify(reader, [reader.current().release]).problems)

    thread = threading.Thread(target=read)
    thread.start()
    for keep in (9, 6, 3, 1):
        collect(local, keep=keep, grace_s=MIN_GRACE_S)
        publish_toy(local, "b", keep)  # what was active until now is young enough for whoever still reads it
    stop.set()
    thread.join()
    assert not problems


@pytest.mark.parametrize(
    ("keep", "grace_s", "message"),
    [
        pytest.param(0, MIN_GRACE_S, "keep = 0: at least 1 release must stay", id="none-kept"),
        pytest.param(1, 60.0, "a grace time of 60 s is not safe beside writers: use 7200 s or more", id="no-grace"),
    ],
)
def test_a_dangerous_collection_is_refused(local: Store, keep: int, grace_s: float, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        collect(local, keep=keep, grace_s=grace_s)


def test_garbage_of_a_damaged_store_is_left_alone(local: Store) -> None:
    for seed in range(3):
        publish_toy(local, "a", seed)
    age(local)
    flip(local, object_name(local.release().tasks[A], "json"))
    with pytest.raises(DamagedObject, match=r"needed by a of releases/000003.json"):
        collect(local, keep=1, grace_s=MIN_GRACE_S)
    assert local.release_numbers() == [0, 1, 2, 3]
