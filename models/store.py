"""The store: the contract between evolve and service. Content-addressed, append-only but for one pointer.

    objects/<sha256>.safetensors   a component's weights, as trained or lowered, or a route's golden samples
    objects/<sha256>.onnx          a subgraph, its weights external data in the safetensors files beside it
    objects/<sha256>.json          a route record
    releases/<number>.json         which route answers for which task
    CURRENT                        which release is active
    signatures/<number>.json       who signed a release, see models/signatures.py
    journal/, gc/                  see evolve/journal.py, models/doomed.py

Everything a file names is written before it and `CURRENT` last, so a writer killed at any moment leaves
a store that opens with the last complete release. Graphs and weights share one folder because ONNX
Runtime refuses external data above a graph's own.

A store is a folder, or a URL that fsspec knows; of the latter a local folder keeps what was read, every
object checked against its digest each time.

**Rollback is never undone by a job.** After a person activates a release, `CURRENT` is held: publishing
writes releases all the same, each made from the one published before it, and lists them as pending, but
what is active stays. `resume` makes the pending changes active, on top of what is active by then.
"""

import hashlib
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from models.doomed import doomed
from models.errors import (
    DamagedObject,
    InvalidConfig,
    InvalidRoute,
    MissingObject,
    PublishConflict,
    StoreNotFound,
    UnknownRelease,
)
from models.files import FileChanged, FileInfo, Files, LocalFiles
from models.names import RouteId, TaskName
from models.precision import Precision
from models.records import DecodedRecords, decode, encode
from models.release import Release, TaskChange, changed_tasks, require_task, with_changes
from models.remote_files import RemoteFiles
from models.route import Route
from models.signatures import Signer

ObjectSuffix = Literal["safetensors", "onnx", "json"]
Signature = tuple[int, int, int]  # of a local file: while it is the same, so is the content
RELEASE_NAME = re.compile(r"releases/([0-9]{6,15})\.json")
ATTEMPTS = 20  # of a writer whom others are faster than


@dataclass(frozen=True, slots=True)
class Current:
    """The pointer. While `is_held`, a person chose the release and publishing leaves it alone."""

    release: int
    is_held: bool = False
    pending: tuple[int, ...] = ()  # published while held, oldest first, each made from the one before
    format_version: int = 1


def is_url(location: str | Path) -> bool:
    return "://" in str(location) and not str(location).startswith("file://")


def default_cache(url: str) -> Path:
    """Return the folder that keeps what was read from the store behind `url`."""
    return Path.home() / ".cache" / "mu2net" / "stores" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def open_files(location: str | Path, cache: Path | None = None) -> tuple[Files, LocalFiles]:
    """Return the files of a store and, the same for a folder, those that lie here as real files."""
    if is_url(location):
        return RemoteFiles(str(location)), LocalFiles(cache or default_cache(str(location)))
    files = LocalFiles(Path(str(location).removeprefix("file://")))
    return files, files


class Store:
    """Open an existing one with `Store.open`, make one with `Store.create`."""

    def __init__(self, files: Files, local: LocalFiles, decoded: DecodedRecords | None = None) -> None:
        self._files = files
        self._local = local
        self._decoded = DecodedRecords() if decoded is None else decoded
        self._verified: dict[str, Signature] = {}  # local files whose content was found right
        self._handed: dict[str, bytes] = {}
        self.signer: Signer | None = None  # signs each release that is made through this object
        self.on_read: Callable[[str, bytes], None] | None = None  # told the objects that `read_object` returns
        self.bytes_read = 0  # of objects and releases, from the store itself

    def __reduce__(self) -> tuple[type["Store"], tuple[Files, LocalFiles]]:
        """Go to another process as a store that reads and stores objects; releases are signed where the key is."""
        return Store, (self._files, self._local)

    @classmethod
    def create(
        cls, location: str | Path, store_root: Callable[["Store"], Route], *, cache: Path | None = None
    ) -> "Store":
        """Make a store whose release 0 has the root and no task.

        Args:
            location: a folder, made if missing, or a URL.
            store_root: puts the root's objects into the new store and returns its route.
            cache: folder for what is read from a URL; None for the usual one.

        Raises:
            InvalidConfig: there is a store already, or files that are none.
        """
        return cls.begin(
            location,
            lambda store: Release(0, None, store.put_route(store_root(store)), {}, "root", now()),
            cache=cache,
        )

    @classmethod
    def begin(cls, location: str | Path, first: Callable[["Store"], Release], *, cache: Path | None = None) -> "Store":
        """Make a store that begins with the release of `first`, which stores all objects that it names.

        Raises:
            InvalidConfig: there is a store already, or files that are none.
        """
        store = cls(*open_files(location, cache))
        if not is_url(location) and store.folder.exists() and not store.folder.is_dir():
            raise InvalidConfig(f"{location} is a file: give a folder for the store")
        if store._files.exists("CURRENT"):
            raise InvalidConfig(f"{location} is a store already: choose another folder, or evolve a task in this one")
        if not store.is_remote:
            store._local.close_to_others()
        release = first(store)
        store._files.replace(release_name(release.number), encode(release))
        store._files.create("CURRENT", encode(Current(release.number)))
        return store

    @classmethod
    def open(cls, location: str | Path, *, cache: Path | None = None, decoded: DecodedRecords | None = None) -> "Store":
        """Open an existing store.

        Args:
            location: a folder or a URL.
            cache: folder for what is read from a URL; None for the usual one.
            decoded: records to share with other `Store`s; None for an own set.

        Raises:
            StoreNotFound: no store there.
            StoreUnreachable: the network fails.
        """
        store = cls(*open_files(location, cache), decoded)
        if not store._files.exists("CURRENT"):
            raise store._not_found()
        return store

    def _not_found(self) -> StoreNotFound:
        place = self._files.shown()
        return StoreNotFound(f"no store at {place!r}: it has no file CURRENT; make one with 'mu2net init {place}'")

    @property
    def folder(self) -> Path:
        """Where objects lie as real files, and runs keep their work: the store itself, or what is kept of a URL."""
        return self._local.folder

    @property
    def is_remote(self) -> bool:
        return self._files is not self._local

    @property
    def files(self) -> Files:
        """The store's files by name, for the journal and housekeeping; all else goes through this class."""
        return self._files

    @property
    def local_files(self) -> LocalFiles:
        return self._local

    # objects

    def put_object(self, data: bytes, suffix: ObjectSuffix) -> str:
        """Store `data` under its sha256 and return that digest; storing it again makes it young again."""
        digest = hashlib.sha256(data).hexdigest()
        name = object_name(digest, suffix)
        try:
            self._files.touch(name)
        except FileNotFoundError:
            if self.is_remote:
                self._files.replace(name, data)  # whoever else does so has the same content
            else:
                with suppress(FileExistsError):  # another writer was faster
                    self._files.create(name, data)
        if self.is_remote:
            self._local.replace(name, data)
        return digest

    def has_object(self, digest: str, suffix: ObjectSuffix) -> bool:
        return self._files.exists(object_name(digest, suffix))

    def read_object(self, digest: str, suffix: ObjectSuffix, *, needed_by: str) -> bytes:
        """Return an object's bytes, which are those that its digest promises.

        Raises:
            MissingObject: no such file; the message names it and `needed_by`.
            DamagedObject: its content has another digest.
            StoreUnreachable: the network fails.
        """
        name = object_name(digest, suffix)
        handed = self._handed.get(name)
        data = self._read_checked(name, digest, needed_by) if handed is None else handed
        if self.on_read is not None:
            self.on_read(name, data)
        return data

    def _read_checked(self, name: str, digest: str, needed_by: str) -> bytes:
        kept = self._kept(name, digest)
        if kept is not None:
            return kept
        path = self._local.path(name)
        before = _signature(path)
        try:
            data = self._files.read(name)
        except FileNotFoundError as error:
            raise MissingObject(
                f"{self._files.shown(name)} is missing; needed by {needed_by}: restore it from a copy of this store"
            ) from error
        self.bytes_read += len(data)
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise DamagedObject(
                f"{self._files.shown(name)} is damaged: its sha256 is {found}; needed by {needed_by}: "
                "restore it from a copy of this store"
            )
        if self.is_remote:
            self._local.replace(name, data)
        elif before is not None:
            self._verified[path.name] = before
        return data

    def hand_over(self, objects: Mapping[str, bytes]) -> None:
        """Answer for these objects without reading them again, until the next call; content of another digest is not
        taken."""
        self._handed = {
            name: data
            for name, data in objects.items()
            if hashlib.sha256(data).hexdigest() == name.removeprefix("objects/").partition(".")[0]
        }

    @property
    def verified(self) -> Mapping[str, Signature]:
        """The local files whose content was found right, and how they looked."""
        return self._verified

    def trust_verified(self, looks: Mapping[str, Signature]) -> None:
        """Take over what another process of this machine found right; a file that looks otherwise is read again."""
        self._verified |= looks

    def _kept(self, name: str, digest: str) -> bytes | None:
        """Return what the local folder kept of a remote object, None if it has nothing or something else."""
        if not self.is_remote or not self._local.exists(name):
            return None
        try:
            data = self._local.read(name)
        except (DamagedObject, OSError):  # something else stands there: what is fetched anew takes its place
            return None
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def object_path(self, digest: str, suffix: ObjectSuffix, *, needed_by: str) -> Path:
        """Return the local file of an object, after checking its content as `read_object` does.

        A file that was checked and has not been written since is not read again.
        """
        path = self._local.path(object_name(digest, suffix))
        if self._verified.get(path.name) != _signature(path) or path.name not in self._verified:
            self._read_checked(object_name(digest, suffix), digest, needed_by)
            signature = _signature(path)
            if signature is None:
                raise DamagedObject(
                    f"{path} is no regular file; needed by {needed_by}: restore it from a copy of this store"
                )
            if self.is_remote:
                self._verified[path.name] = signature
        return path

    def put_route(self, route: Route) -> RouteId:
        return RouteId(self.put_object(encode(route), "json"))

    def route(self, route_id: RouteId, *, needed_by: str) -> Route:
        data = self.read_object(route_id, "json", needed_by=needed_by)
        return self._decoded.decode(Route, data, self._files.shown(object_name(route_id, "json")))

    # releases

    def current(self) -> Current:
        """Return the pointer as it is now.

        Raises:
            StoreNotFound: the store has gone.
            DamagedObject: the file is damaged.
        """
        try:
            return self._pointer(self._files.read("CURRENT"))
        except FileNotFoundError as error:
            raise self._not_found() from error

    def _pointer(self, data: bytes) -> Current:
        return decode(Current, data, self._files.shown("CURRENT"))

    def release_numbers(self) -> list[int]:
        """Return the numbers of all releases; files of other names in their folder are not the store's."""
        return sorted(self.release_infos())

    def release_infos(self) -> dict[int, FileInfo]:
        """Return the files of all releases, by number."""
        numbered = ((release_number(info.name), info) for info in self._files.infos("releases"))
        return {number: info for number, info in numbered if number is not None}

    def release(self, number: int | None = None) -> Release:
        """Return release `number`, or the active one.

        Raises:
            UnknownRelease: never made, or deleted.
            DamagedObject: the file is damaged, or is another release's.
        """
        if number is None:
            number = self.current().release
        name = release_name(number)
        try:
            data = self._files.read(name)
        except FileNotFoundError as error:
            known = ", ".join(map(str, self.release_numbers()))
            raise UnknownRelease(f"the store has no release {number}; it has: {known}") from error
        self.bytes_read += len(data)
        release = self._decoded.decode(Release, data, self._files.shown(name))
        if release.number != number:
            raise DamagedObject(f"{self._files.shown(name)} says it is release {release.number}: restore it")
        return release

    def routes(self, release: Release) -> dict[TaskName, Route]:
        """Return the routes of all tasks of a release."""
        return {
            task: self.route(route_id, needed_by=f"task {task!r} of release {release.number}")
            for task, route_id in release.tasks.items()
        }

    def root(self) -> Route:
        release = self.release()
        return self.route(release.root, needed_by=f"release {release.number} as its root")

    def newest(self) -> Release:
        """Return the release that the next one is made from: the active one, or while held the last pending one."""
        current = self.current()
        return self.release(current.pending[-1] if current.pending else current.release)

    def publish(
        self,
        change: TaskChange,
        *,
        reason: str,
        at_least: int = 0,
        precisions: Mapping[Precision, float] | None = None,
    ) -> Release:
        """Write a new release and make it the active one, unless a person holds another.

        Everything its routes name must have been stored. `change` gets the tasks of the newest published
        state (while held: with all pending changes) and returns the new ones, quickly, perhaps several
        times: a rebase.

        Args:
            change: from the tasks as they are to the tasks as they shall be.
            reason: for people.
            at_least: the new release's number is this or the next above it that is free.
            precisions: those of the new release; None for those of the one it is made from.

        Raises:
            PublishConflict: others published all the time, or a garbage collection deletes what a new route needs.
            StoreError: what a new route needs is missing, or its record damaged.
        """
        made: list[Release] = []

        def publish_one(current: Current) -> Current:
            base = self.release(current.pending[-1] if current.pending else current.release)
            tasks = change(base.tasks)
            self._require_new_objects(base.tasks, tasks)
            made.append(self._write_release(base, tasks, reason, at_least, precisions))
            number = made[-1].number
            return replace(current, pending=(*current.pending, number)) if current.is_held else Current(number)

        self._move(publish_one)
        return made[-1]

    def remove_task(self, task: str) -> Release:
        """Publish a release without a task; UnknownTask if there is none of that name."""

        def change(tasks: Mapping[TaskName, RouteId]) -> Mapping[TaskName, RouteId]:
            require_task(task, tasks)
            return {name: route for name, route in tasks.items() if name != task}

        return self.publish(change, reason=f"{task}: removed")

    def rename_task(self, task: str, new_name: TaskName) -> Release:
        """Publish a release with a task under another name; its answers stay the same.

        Raises:
            UnknownTask: there is none of that name.
            InvalidRoute: the new name is another task's.
        """

        def change(tasks: Mapping[TaskName, RouteId]) -> Mapping[TaskName, RouteId]:
            old = require_task(task, tasks)
            if new_name in tasks:
                raise InvalidRoute(f"task {new_name!r} exists already: remove it first, or choose another name")
            route = self.route(tasks[old], needed_by=f"task {old!r}")
            renamed = self.put_route(replace(route, task=new_name))
            return {name: kept for name, kept in tasks.items() if name != old} | {new_name: renamed}

        return self.publish(change, reason=f"{task}: renamed to {new_name}")

    def activate(self, number: int) -> Current:
        """Make a release the active one and hold it: publishing leaves it alone until `resume`.

        Raises:
            UnknownRelease: there is no such release, or it is just being deleted.
            StoreError: its record or a file it needs is missing or damaged; content is not read.
        """
        before: list[Current] = []

        def choose(current: Current) -> Current:
            self.require_objects(self.release(number))
            before.append(current)
            later = current.pending
            if number in later:
                later = later[later.index(number) + 1 :]
            return Current(number, is_held=True, pending=later)

        moved = self._move(choose)
        try:
            self.require_kept(number)
        except UnknownRelease:
            self._move(lambda current: before[-1] if current == moved else current)
            raise
        return moved

    def require_kept(self, number: int) -> None:
        """Raise UnknownRelease if a release is gone or is just being deleted.

        Who relies on a release asks this after having said so in the pointer or the journal; from then on
        no garbage collection takes it.
        """
        with self._files.lock():  # a folder's collection has ended
            if self.is_remote and release_name(number) in doomed(self._files):
                raise UnknownRelease(
                    f"release {number} of {self._files.shown()} is just being deleted by 'mu2net releases gc': choose "
                    "another"
                )
            self.release(number)

    def resume(self) -> Current:
        """Let publishing move the pointer again, and make active what was published meanwhile.

        The pending changes are put on what is active now. Usually the newest pending release is just
        that; if a person activated yet another release meanwhile, a new release is written.

        Raises:
            UnknownRelease: a pending release has been deleted.
        """

        def release_hold(current: Current) -> Current:
            if not current.pending:
                return Current(current.release)
            base = self.release(current.release)
            tasks = base.tasks
            for number in current.pending:
                tasks = with_changes(tasks, changed_tasks(self._parent_of(number).tasks, self.release(number).tasks))
            newest = self.release(current.pending[-1])
            if newest.tasks == tasks:
                return Current(newest.number)
            numbers = ", ".join(map(str, current.pending))
            is_other = newest.precisions != self._parent_of(current.pending[0]).precisions
            made = self._write_release(
                base, tasks, f"changes of {numbers} on {base.number}", 0, newest.precisions if is_other else None
            )
            return Current(made.number)

        return self._move(release_hold)

    def _parent_of(self, number: int) -> Release:
        parent = self.release(number).parent
        assert parent is not None, "a pending release was made from another"
        return self.release(parent)

    def _write_release(
        self,
        base: Release,
        tasks: Mapping[TaskName, RouteId],
        reason: str,
        at_least: int,
        precisions: Mapping[Precision, float] | None,
    ) -> Release:
        """Write the next release; where there are no locks, another writer may take the number first."""
        number = max(at_least, self.release_numbers()[-1] + 1)
        for candidate in range(number, number + ATTEMPTS):
            release = base.successor(tasks, number=candidate, reason=reason, created_at=now(), precisions=precisions)
            with suppress(FileExistsError):
                self._files.create(release_name(candidate), encode(release))
                if self.signer is not None:
                    self.signer(self._files, release)  # before the pointer moves, so that no server finds it unsigned
                return release
        raise PublishConflict(f"{ATTEMPTS} writers were faster in {self._files.shown()}: publish again")

    def _move(self, decide: Callable[[Current], Current]) -> Current:
        """Replace the pointer by what `decide` makes of it; asked again whenever another writer was faster."""
        decided: list[Current] = []

        def change(data: bytes) -> bytes:
            decided.append(decide(self._pointer(data)))
            return encode(decided[-1])

        for _ in range(ATTEMPTS):
            with suppress(FileChanged), self._files.lock():
                self._files.swap("CURRENT", change)
                return decided[-1]
        raise PublishConflict(f"{ATTEMPTS} writers were faster in {self._files.shown()}: do it again")

    def require_objects(self, release: Release) -> None:
        """Raise StoreError unless all files that a release names are there; routes are read, the rest is listed."""
        owners = {f"task {task!r}": route_id for task, route_id in release.tasks.items()} | {"the root": release.root}
        self._require_routes({f"{owner} of release {release.number}": route_id for owner, route_id in owners.items()})

    def _require_routes(self, routes: Mapping[str, RouteId]) -> set[str]:
        """Return the names of all files that routes need, by whom each is needed; StoreError if one is missing."""
        present = {info.name for info in self._files.infos("objects")}
        needed: set[str] = set()
        for owner, route_id in routes.items():
            names = route_objects(self.route(route_id, needed_by=owner)) | {object_name(route_id, "json")}
            for name in sorted(names - present):
                raise MissingObject(
                    f"{self._files.shown(name)} is missing; needed by {owner}: restore it from a copy of this store"
                )
            needed |= names
        return needed

    def _require_new_objects(self, before: Mapping[TaskName, RouteId], after: Mapping[TaskName, RouteId]) -> None:
        """Raise StoreError unless all that changed routes need is there to stay."""
        changes = changed_tasks(before, after)
        needed = self._require_routes({f"task {task!r}": route for task, route in changes.items() if route is not None})
        going = needed & doomed(self._files) if self.is_remote else set()
        if going:
            raise PublishConflict(
                f"{self._files.shown(min(going))} is just being deleted by 'mu2net releases gc': publish again when "
                "that has ended, or an hour after it was stopped"
            )


def route_objects(route: Route) -> set[str]:
    """Return the names of all files that a route needs besides its record."""
    names = {object_name(component.id, "safetensors") for component in route.components}
    names |= {object_name(stage.subgraph, "onnx") for stage in route.stages}
    for variant in route.variants.values():
        names |= {object_name(stage.subgraph, "onnx") for stage in variant.stages}
        names |= {object_name(weights, "safetensors") for stage in variant.stages for weights in stage.weights}
        names.add(object_name(variant.golden, "safetensors"))
    return names if route.golden is None else names | {object_name(route.golden, "safetensors")}


def object_name(digest: str, suffix: ObjectSuffix) -> str:
    return f"objects/{digest}.{suffix}"


def release_name(number: int) -> str:
    return f"releases/{number:06d}.json"


def release_number(name: str) -> int | None:
    """Return the number of the release that a file is by its name, None if no release is written under it."""
    found = RELEASE_NAME.fullmatch(name)
    return int(found[1]) if found and release_name(int(found[1])) == name else None


def now() -> str:
    """Return this moment as releases record it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _signature(path: Path) -> Signature | None:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (status.st_ino, status.st_mtime_ns, status.st_size) if stat.S_ISREG(status.st_mode) else None
