"""Custody of uploaded images, in a folder and behind a URL: kept, found, checked, deleted when nothing needs them."""

import os
import time
import uuid
from pathlib import Path

import pytest

from models.errors import DamagedObject, InvalidData
from models.jobs import JobQueue, JobRequest
from models.leftovers import UNDER_WAY_S
from models.names import TaskName
from models.release import Release
from models.store import Store
from models.uploads import Uploads, drop_unused
from tests.support.stores import TaskPlan, make_store

FIRST, BIRDS = TaskName("first"), TaskName("birds")


@pytest.fixture(params=["folder", "url"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store with the one task `first`."""
    local = make_store(tmp_path / "store", TaskPlan("first", seed=1))
    if request.param == "folder":
        return local
    release = local.release()
    return Store.begin(
        f"memory://{uuid.uuid4().hex}/store",
        lambda _: Release(0, None, release.root, release.tasks, "test", release.created_at),
        cache=tmp_path / "cache",
    )


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue(f"sqlite:///{tmp_path / 'jobs.sqlite'}")


def kept(store: Store, task: TaskName, tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "data"
    path.write_bytes(content)
    return Uploads(store).put(task, path)


def test_uploads_come_back_as_private_files_and_go_when_told(store: Store, tmp_path: Path) -> None:
    uploads = Uploads(store)
    digest = kept(store, BIRDS, tmp_path, b"images")
    path = uploads.local_copy(BIRDS, digest)
    assert path.read_bytes() == b"images"
    assert path.stat().st_mode & 0o077 == 0
    assert uploads.work_folder(BIRDS).stat().st_mode & 0o077 == 0  # decoded copies will lie there
    assert (uploads.newest(BIRDS), uploads.digests(BIRDS), uploads.tasks()) == (digest, {digest}, [BIRDS])
    (uploads.work_folder(BIRDS) / "pixels").mkdir()
    uploads.discard(BIRDS, digest)
    assert not uploads.work_folder(BIRDS).exists()
    with pytest.raises(InvalidData, match=r"^no images of task 'birds' are kept here: send them with PUT"):
        uploads.newest(BIRDS)
    with pytest.raises(InvalidData, match=r" is gone, somebody deleted it: send the images again$"):
        uploads.local_copy(BIRDS, digest)


def test_a_damaged_upload_is_told(store: Store, tmp_path: Path) -> None:
    digest = kept(store, BIRDS, tmp_path, b"images")
    store.files.replace(f"uploads/birds/{digest}.zip", b"imagez")
    with pytest.raises(DamagedObject, match=r" is damaged: its sha256 is [0-9a-f]{64}; send the images again$"):
        Uploads(store).local_copy(BIRDS, digest)


def test_what_nothing_needs_is_dropped(store: Store, queue: JobQueue, tmp_path: Path) -> None:
    uploads = Uploads(store)
    old, new = (kept(store, FIRST, tmp_path, content) for content in (b"old", b"new"))
    if not store.is_remote:
        os.utime(store.folder / f"uploads/first/{old}.zip", (1, 1))
        drop_unused(store, queue, FIRST)
        assert uploads.digests(FIRST) == {new}, "a live task keeps its newest images"
        os.utime(store.folder / f"uploads/first/{new}.zip", (time.time() - 2 * UNDER_WAY_S,) * 2)
        drop_unused(store, queue, FIRST)
        assert uploads.digests(FIRST) == {new}
        drop_unused(store, queue, FIRST, keep_s=UNDER_WAY_S)
        assert uploads.digests(FIRST) == set(), "unless they are too old"
        kept(store, FIRST, tmp_path, b"old")
        os.utime(store.folder / f"uploads/first/{old}.zip", (1, 1))
        store.remove_task("first")
        drop_unused(store, queue, FIRST)
        assert uploads.digests(FIRST) == {old}, "an older release has the task, which a rollback brings back"
        (store.folder / "releases/000000.json").unlink()
        (store.folder / "releases/000001.json").unlink()
        drop_unused(store, queue, FIRST)
        assert uploads.digests(FIRST) == set(), "nothing brings it back any more"
    mine = kept(store, BIRDS, tmp_path, b"mine")
    drop_unused(store, queue, BIRDS)
    assert uploads.digests(BIRDS) == {mine}, "its job may be on its way"
    job = queue.submit(JobRequest(BIRDS, "add", mine))
    drop_unused(store, queue, BIRDS, digest=mine)
    assert uploads.digests(BIRDS) == {mine}
    queue.cancel(job.id)
    drop_unused(store, queue, BIRDS, digest=mine)
    assert uploads.digests(BIRDS) == set()
