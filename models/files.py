"""Files of a store by name: what any place must be able to do, and folders of a local file system.

A place has no rename and no append, only what object stores have as well: a file appears whole, is
created only where there is none, and the pointer is replaced only if it is still what was read.
`models/remote_files.py` is the other kind of place.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from filelock import FileLock

REFRESH_AGE_S = 3600.0  # younger files need no touch: an object store has none, there it is a copy of the file
TEMPORARY_PREFIX = ".new-"  # what a killed writer leaves behind begins so, and nothing reads it


class FileChanged(Exception):
    """A file to be replaced is no longer what was read: read it again and decide anew."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file's size in bytes, and when it was written or touched last, in seconds of Unix time."""

    name: str
    size: int
    modified_at: float


@runtime_checkable  # shapes and types of models/ are checked in tests
class Files(Protocol):
    """A place addressed by names with forward slashes. What it cannot reach is a StoreUnreachable."""

    def shown(self, name: str = "") -> str:
        """Return where a file lies, for people."""
        ...

    def exists(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """Return the whole file; FileNotFoundError if there is none."""
        ...

    def infos(self, folder: str) -> list[FileInfo]:
        """Return all complete files in `folder`, by name."""
        ...

    def folders(self, folder: str) -> list[str]:
        """Return the bare names of the folders in `folder`, sorted."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Write a file that must not exist yet: FileExistsError if it does, and then nothing has changed."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write a file in one step, in place of the one there may be."""
        ...

    def put_file(self, name: str, source: Path) -> None:
        """Copy a file of this machine to a name, in one step, without holding it in memory."""
        ...

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to this machine, in one step; FileNotFoundError if there is none."""
        ...

    def swap(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Replace a file by what `change` makes of its content.

        Raises:
            FileNotFoundError: there is none.
            FileChanged: somebody else replaced it meanwhile, and nothing has changed.
        """
        ...

    def touch(self, name: str) -> None:
        """Make a file no older than an hour, so that no garbage collection takes it; FileNotFoundError without one."""
        ...

    def delete(self, name: str) -> None: ...

    def lock(self) -> AbstractContextManager[None]:
        """Keep other writers out where the place can; elsewhere `create` and `swap` alone decide."""
        ...


class LocalFiles:
    """A folder. Every write is on disk before its name appears."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / name

    def shown(self, name: str = "") -> str:
        return str(self.path(name))

    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def infos(self, folder: str) -> list[FileInfo]:
        found: list[FileInfo] = []
        for entry in self._entries(folder):
            if entry.is_file() and not entry.name.startswith(TEMPORARY_PREFIX):
                found += _info(folder, entry)
        return sorted(found, key=lambda info: info.name)

    def folders(self, folder: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(folder) if entry.is_dir())

    def leftovers(self, folder: str) -> list[FileInfo]:
        """Return what killed writers left in `folder`, and what writers at work are about to name."""
        entries = [entry for entry in self._entries(folder) if entry.name.startswith(TEMPORARY_PREFIX)]
        return [info for entry in entries for info in _info(folder, entry)]

    def _entries(self, folder: str) -> list["os.DirEntry[str]"]:
        return list(os.scandir(self.path(folder))) if self.path(folder).is_dir() else []

    def create(self, name: str, data: bytes) -> None:
        target = self.path(name)
        temporary = _write_beside(target, data)
        try:
            os.link(temporary, target)  # unlike a rename, a link never replaces
        finally:
            temporary.unlink()
        _sync_folder(target.parent)

    def replace(self, name: str, data: bytes) -> None:
        target = self.path(name)
        os.replace(_write_beside(target, data), target)
        _sync_folder(target.parent)

    def put_file(self, name: str, source: Path) -> None:
        copy_file(source, self.path(name))

    def fetch(self, name: str, target: Path) -> None:
        copy_file(self.path(name), target)

    def swap(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """As everywhere; the caller holds `lock`, so nobody can be faster."""
        self.replace(name, change(self.read(name)))

    def touch(self, name: str) -> None:
        path = self.path(name)
        if time.time() - path.stat().st_mtime > REFRESH_AGE_S:
            os.utime(path)

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store's one writer lock, freed by the system if this process dies."""
        with FileLock(self.path("LOCK")):
            yield


def copy_file(source: Path, target: Path) -> None:
    """Make `target` a copy that only this user may read; it appears whole and on disk."""
    temporary = _beside(target)
    try:
        with source.open("rb") as reading, open(temporary, "xb", opener=_private) as file:
            shutil.copyfileobj(reading, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _beside(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")


def _info(folder: str, entry: "os.DirEntry[str]") -> list[FileInfo]:
    """Return what is known of a file, nothing if it has been deleted or renamed since it was listed."""
    try:
        status = entry.stat()
    except FileNotFoundError:
        return []
    return [FileInfo(f"{folder}/{entry.name}", status.st_size, status.st_mtime)]


def _write_beside(target: Path, data: bytes) -> Path:
    temporary = _beside(target)
    with temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
