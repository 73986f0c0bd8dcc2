"""Uploaded images in the store's own place: `uploads/<task>/<sha256>.zip`, where any worker reaches them.

Nothing ever serves them over HTTP. How long they are kept stands in docs/online.md.
"""

import hashlib
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from models.errors import DamagedObject, InvalidData, UnknownRelease
from models.files import FileInfo, make_folder
from models.jobs import JobQueue
from models.leftovers import UNDER_WAY_S
from models.names import TaskName
from models.store import Store

FOLDER = "uploads"


class Uploads:
    """The uploads of a store. What a worker makes of them (decoded pixels) lies in `work_folder`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, task: TaskName, path: Path) -> str:
        """Keep a file as images of a task and return its sha256."""
        digest = _digest(path)
        self._store.files.put_file(_name(task, digest), path)
        return digest

    def digests(self, task: TaskName) -> set[str]:
        """Return the digests of all uploads of a task."""
        return {Path(info.name).stem for info in self._infos(task)}

    def kept_bytes(self, brought: Collection[tuple[TaskName, str]]) -> int:
        """Return how many bytes of some uploads, named by task and digest, are kept."""
        tasks = {task for task, _ in brought}
        return sum(info.size for task in tasks for info in self._infos(task) if (task, Path(info.name).stem) in brought)

    def discard(self, task: TaskName, digest: str) -> None:
        """Delete one upload; with the last goes what was made of them here."""
        self._store.files.delete(_name(task, digest))
        if not self._infos(task):
            shutil.rmtree(self.work_folder(task), ignore_errors=True)

    def newest(self, task: TaskName) -> str:
        """Return the digest of the images that a task has; InvalidData if none are kept."""
        for digest in self.newest_since(task, None):
            return digest
        raise InvalidData(
            f"no images of task {task!r} are kept here: send them with PUT /v1/tasks/{task}/data, which evolves it"
        )

    def newest_since(self, task: TaskName, moment: float | None) -> set[str]:
        """Return the digest of the newest upload, as a set of one; an empty set if it is older than `moment`."""
        newest = max(self._infos(task), key=lambda info: info.modified_at, default=None)
        if newest is None or (moment is not None and newest.modified_at < moment):
            return set()
        return {Path(newest.name).stem}

    def local_copy(self, task: TaskName, digest: str) -> Path:
        """Return an upload as a file on this machine, where `work_folder` is there and private from then on.

        Raises:
            InvalidData: it is gone.
            DamagedObject: it is not what was uploaded.
        """
        name = _name(task, digest)
        work = self.work_folder(task)
        path = work / f"{digest}.zip" if self._store.is_remote else self._store.folder / name
        make_folder(work)
        work.chmod(0o700)  # an older version's, too
        try:
            if self._store.is_remote and not path.exists():
                self._store.files.fetch(name, path)
            local = str(path.relative_to(self._store.folder))
            with self._store.local_files.open(local) as file:  # no link, pipe or device that somebody put there
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise InvalidData(
                f"{self._store.files.shown(name)} is gone, somebody deleted it: send the images again"
            ) from error
        if found != digest:
            raise DamagedObject(f"{path} is damaged: its sha256 is {found}; send the images again")
        return path

    def work_folder(self, task: TaskName) -> Path:
        """Return this machine's folder for what is made of a task's images; it may be deleted at any time."""
        return self._store.folder / "work" / FOLDER / task

    def tasks(self) -> list[TaskName]:
        """Return the tasks that have uploads, or had some that this machine worked with."""
        work = self._store.local_files.folders(f"work/{FOLDER}")
        return [TaskName(name) for name in sorted({*self._store.files.folders(FOLDER), *work})]

    def delete(self, task: TaskName, *, but: Collection[str] = (), older_than_s: float = 0.0) -> int:
        """Delete a task's uploads and return how many; with the last goes what was made of them here.

        Args:
            task: whose.
            but: digests that stay.
            older_than_s: what is younger stays.
        """
        limit = time.time() - older_than_s
        infos = self._infos(task)
        gone = [info for info in infos if Path(info.name).stem not in but and info.modified_at <= limit]
        for info in gone:
            self._store.files.delete(info.name)
        # what a server that was killed had kept of an upload: it is no upload, and images all the same
        self._store.local_files.delete_leftovers(f"{FOLDER}/{task}", older_than_s=older_than_s)
        if len(gone) == len(infos):
            shutil.rmtree(self.work_folder(task), ignore_errors=True)
        return len(gone)

    def _infos(self, task: TaskName) -> list[FileInfo]:
        return self._store.files.infos(f"{FOLDER}/{task}")


def drop_unused(
    store: Store, queue: JobQueue, task: TaskName, *, keep_s: float | None = None, digest: str | None = None
) -> None:
    """Delete those of a task's uploads that nothing needs any more, or just `digest` if it is one of them.

    Needed are those of unfinished jobs and, while a release has a route of the task, the newest, unless it is
    older than `keep_s`. What came lately may have its job still on its way; one that is named had it, and of a
    task without a route it goes.
    """
    uploads = Uploads(store)
    needed = {job.request.upload for job in queue.unfinished(task)}
    if task in store.release().tasks or (digest is None and _is_in_a_release(store, task)):
        needed |= uploads.newest_since(task, None if keep_s is None else time.time() - keep_s)
    if digest is None:
        uploads.delete(task, but=needed, older_than_s=UNDER_WAY_S)
    elif digest not in needed:
        uploads.discard(task, digest)


def _is_in_a_release(store: Store, task: TaskName) -> bool:
    for number in reversed(store.release_numbers()):
        with suppress(UnknownRelease, DamagedObject):  # collected meanwhile, or nothing to go back to
            if task in store.release(number).tasks:
                return True
    return False


def _name(task: TaskName, digest: str) -> str:
    return f"{FOLDER}/{task}/{digest}.zip"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
