"""Files of a store by name: what any place must be able to do, and folders of a local file system.

A place has no rename and no append, only what object stores have as well: a file appears whole, is
created only where there is none, and the pointer is replaced only if it is still what was read.
`models/remote_files.py` is the other kind of place.

What is written here is its user's alone, whatever the umask says: a store holds private tasks' images and hashes
of keys. It is the group's too where the operator gave the folder to one, see `folder_mode`.
"""

import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from filelock import FileLock

REFRESH_AGE_S = 3600.0  # younger files need no touch: an object store has none, there it is a copy of the file
OWN_FOLDER = 0o700
SECRETS = ("keys.json", "jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm", "uploads", "work")
TEMPORARY_PREFIX = ".new-"  # what a killed writer leaves behind begins so, and nothing reads it


log = logging.getLogger("mu2net.files")


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

    def close_to_others(self) -> None:
        """Take away what a umask gave to other users, where the folder is this user's; make it if it is missing."""
        make_folder(self.folder)
        wanted = folder_mode(self.folder)
        _narrow(self.folder, wanted)
        for name in SECRETS:
            path = self.path(name)
            with suppress(FileNotFoundError):
                _narrow(path, wanted if path.is_dir() else wanted & 0o666)

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
        temporary = _write_beside(target, data, folder_mode(self.folder))
        try:
            os.link(temporary, target)  # unlike a rename, a link never replaces
        finally:
            temporary.unlink()
        _sync_folder(target.parent)

    def replace(self, name: str, data: bytes) -> None:
        target = self.path(name)
        os.replace(_write_beside(target, data, folder_mode(self.folder)), target)
        _sync_folder(target.parent)

    def put_file(self, name: str, source: Path) -> None:
        copy_file(source, self.path(name), folder_mode(self.folder))

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
        if self.folder.is_dir():
            self.close_to_others()
        with FileLock(self.path("LOCK"), mode=folder_mode(self.folder) & 0o666):
            yield


def folder_mode(folder: Path) -> int:
    """Return the mode of folders in `folder`; less the right to enter, it is that of files.

    They are its user's alone. They are the group's as well, as far as `folder` is, if the operator chose that: then
    the folder hands its group on (setgid) or is closed to all others. A umask does neither by default.
    """
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        return OWN_FOLDER
    is_chosen = mode & stat.S_ISGID or not mode & stat.S_IRWXO
    return OWN_FOLDER | (mode & (stat.S_ISGID | stat.S_IRWXG) if is_chosen else 0)


def make_folder(folder: Path, mode: int = OWN_FOLDER) -> None:
    """Make a folder if it is missing, with those above it."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for found in reversed(missing):
        with suppress(FileExistsError):  # another process was faster
            found.mkdir(mode=OWN_FOLDER)
            found.chmod(mode)


def private(path: str, flags: int) -> int:
    """Open a file as `open` has it done by an opener; one that is made is this user's alone."""
    return os.open(path, flags, 0o600)


def _narrow(path: Path, wanted: int) -> None:
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~wanted & 0o077 and status.st_uid == os.geteuid():
        path.chmod(mode & ~0o077 | wanted & 0o077)
        log.warning(
            "%s was open to other users (mode %04o) and is not any more: to share a store with a group, see "
            "docs/operating.md", path, mode,
        )  # fmt: skip


def copy_file(source: Path, target: Path, mode: int = OWN_FOLDER) -> None:
    """Make `target` a copy with the rights of `mode`, see `folder_mode`; it appears whole and on disk."""
    temporary = _beside(target, mode)
    try:
        with source.open("rb") as reading, open(temporary, "xb", opener=private) as file:
            os.fchmod(file.fileno(), mode & 0o666)
            shutil.copyfileobj(reading, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _beside(target: Path, mode: int) -> Path:
    make_folder(target.parent, mode)
    return target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")


def _info(folder: str, entry: "os.DirEntry[str]") -> list[FileInfo]:
    """Return what is known of a file, nothing if it has been deleted or renamed since it was listed."""
    try:
        status = entry.stat()
    except FileNotFoundError:
        return []
    return [FileInfo(f"{folder}/{entry.name}", status.st_size, status.st_mtime)]


def _write_beside(target: Path, data: bytes, mode: int) -> Path:
    temporary = _beside(target, mode)
    with open(temporary, "xb", opener=private) as file:
        os.fchmod(file.fileno(), mode & 0o666)
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
