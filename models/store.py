"""The store: the contract between evolve and service. Content-addressed, append-only but for one pointer.

    objects/<sha256>.safetensors   a component's weights, or a route's golden samples
    objects/<sha256>.onnx          a subgraph, its weights external data in the safetensors files beside it
    objects/<sha256>.json          a route record
    releases/<number>.json         which route answers for which task
    CURRENT                        which release is active

Everything a file names is written before it and `CURRENT` last, so a writer killed at any moment leaves
a store that opens with the last complete release. Graphs and weights share one folder because ONNX
Runtime refuses external data above a graph's own.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from models.errors import DamagedObject, InvalidConfig, MissingObject, StoreNotFound, UnknownRelease
from models.files import LocalFiles
from models.names import RouteId, TaskName
from models.records import decode, encode
from models.release import Release
from models.route import Route

ObjectSuffix = Literal["safetensors", "onnx", "json"]
TaskChange = Callable[[Mapping[TaskName, RouteId]], Mapping[TaskName, RouteId]]


@dataclass(frozen=True, slots=True)
class Current:
    """The pointer. While `is_held`, a person chose the release and publishing leaves it alone."""

    release: int
    is_held: bool = False
    format_version: int = 1


class Store:
    """A store in a local folder. Open an existing one with `Store.open`, make one with `Store.create`."""

    def __init__(self, files: LocalFiles) -> None:
        self._files = files

    @classmethod
    def create(cls, location: str | Path, store_root: Callable[["Store"], Route]) -> "Store":
        """Make a store whose release 0 has the root and no task.

        Args:
            location: a folder, made if missing.
            store_root: puts the root's objects into the new store and returns its route.

        Raises:
            InvalidConfig: there is a store already, or files that are none.
        """
        store = cls(LocalFiles(Path(location)))
        if store._files.exists("CURRENT"):
            raise InvalidConfig(f"{location} is a store already: choose another folder, or evolve a task in this one")
        if Path(location).exists() and not Path(location).is_dir():
            raise InvalidConfig(f"{location} is a file: give a folder for the store")
        release = Release(0, None, store.put_route(store_root(store)), {}, "root", _now())
        store._files.replace(_release_name(0), encode(release))
        store._files.create("CURRENT", encode(Current(0)))
        return store

    @classmethod
    def open(cls, location: str | Path) -> "Store":
        """Open an existing store.

        Raises:
            StoreNotFound: no store there.
        """
        store = cls(LocalFiles(Path(location)))
        if not store._files.exists("CURRENT"):
            raise StoreNotFound(
                f"no store at {str(location)!r}: it has no file CURRENT; make one with 'mu2net init {location}'"
            )
        return store

    @property
    def folder(self) -> Path:
        return self._files.folder

    @property
    def files(self) -> LocalFiles:
        """The store's files by name, for the journal; objects and releases go through this class."""
        return self._files

    # objects

    def put_object(self, data: bytes, suffix: ObjectSuffix) -> str:
        """Store `data` under its sha256 and return that digest; storing it again changes nothing."""
        digest = hashlib.sha256(data).hexdigest()
        name = _object_name(digest, suffix)
        if not self._files.exists(name):
            with suppress(FileExistsError):  # another writer was faster, with the same content
                self._files.create(name, data)
        return digest

    def has_object(self, digest: str, suffix: ObjectSuffix) -> bool:
        return self._files.exists(_object_name(digest, suffix))

    def read_object(self, digest: str, suffix: ObjectSuffix, *, needed_by: str) -> bytes:
        """Return an object's bytes, which are those that its digest promises.

        Raises:
            MissingObject: no such file; the message names it and `needed_by`.
            DamagedObject: its content has another digest.
        """
        name = _object_name(digest, suffix)
        try:
            data = self._files.read(name)
        except FileNotFoundError as error:
            raise MissingObject(
                f"{self.folder / name} is missing; needed by {needed_by}: restore it from a copy of this store"
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise DamagedObject(
                f"{self.folder / name} is damaged: its sha256 is {found}; needed by {needed_by}: "
                "restore it from a copy of this store"
            )
        return data

    def object_path(self, digest: str, suffix: ObjectSuffix, *, needed_by: str) -> Path:
        """Return the local file of an object, after checking its content as `read_object` does."""
        self.read_object(digest, suffix, needed_by=needed_by)
        return self._files.path(_object_name(digest, suffix))

    def put_route(self, route: Route) -> RouteId:
        return RouteId(self.put_object(encode(route), "json"))

    def route(self, route_id: RouteId, *, needed_by: str) -> Route:
        data = self.read_object(route_id, "json", needed_by=needed_by)
        return decode(Route, data, str(self.folder / _object_name(route_id, "json")))

    # releases

    def current(self) -> Current:
        """Return the pointer as it is now."""
        return decode(Current, self._files.read("CURRENT"), str(self.folder / "CURRENT"))

    def release_numbers(self) -> list[int]:
        return sorted(int(Path(name).stem) for name in self._files.names("releases"))

    def release(self, number: int | None = None) -> Release:
        """Return release `number`, or the active one.

        Raises:
            UnknownRelease: never made, or deleted.
        """
        if number is None:
            number = self.current().release
        try:
            data = self._files.read(_release_name(number))
        except FileNotFoundError as error:
            known = ", ".join(map(str, self.release_numbers()))
            raise UnknownRelease(f"{self.folder} has no release {number}; it has: {known}") from error
        return decode(Release, data, str(self.folder / _release_name(number)))

    def routes(self, release: Release) -> dict[TaskName, Route]:
        """Return the routes of all tasks of a release."""
        return {
            task: self.route(route_id, needed_by=f"task {task!r} of release {release.number}")
            for task, route_id in release.tasks.items()
        }

    def root(self) -> Route:
        release = self.release()
        return self.route(release.root, needed_by=f"release {release.number} as its root")

    def publish(self, change: TaskChange, *, reason: str) -> Release:
        """Write a new release and make it the active one, unless a person holds another.

        Everything its routes name must have been stored. The store is locked meanwhile, so `change`
        should be quick: it gets the active release's tasks and returns the new ones (a rebase).
        """
        with self._files.lock():
            current = self.current()
            base = self.release(current.release)
            number = self.release_numbers()[-1] + 1
            release = base.successor(change(base.tasks), number=number, reason=reason, created_at=_now())
            self._files.create(_release_name(number), encode(release))
            if not current.is_held:
                self._files.replace("CURRENT", encode(Current(number)))
        return release


def _object_name(digest: str, suffix: ObjectSuffix) -> str:
    return f"objects/{digest}.{suffix}"


def _release_name(number: int) -> str:
    return f"releases/{number:06d}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
