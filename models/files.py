"""Files of a store on a local file system: atomic creation and replacement, and the lock of a publish."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

TEMPORARY_PREFIX = ".new-"  # what a killed writer leaves behind begins so, and nothing reads it


class LocalFiles:
    """A folder, addressed by names with forward slashes. Every write is on disk before its name appears."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / name

    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    def read(self, name: str) -> bytes:
        """Return the whole file; FileNotFoundError if there is none."""
        return self.path(name).read_bytes()

    def names(self, folder: str) -> list[str]:
        """Return the names of all complete files in `folder`, sorted."""
        if not self.path(folder).is_dir():
            return []
        return sorted(
            f"{folder}/{entry.name}"
            for entry in os.scandir(self.path(folder))
            if entry.is_file() and not entry.name.startswith(TEMPORARY_PREFIX)
        )

    def folders(self, folder: str) -> list[str]:
        """Return the bare names of the folders in `folder`, sorted."""
        if not self.path(folder).is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(self.path(folder)) if entry.is_dir())

    def create(self, name: str, data: bytes) -> None:
        """Write a file that must not exist yet: FileExistsError if it does, and then nothing has changed."""
        target = self.path(name)
        temporary = _write_beside(target, data)
        try:
            os.link(temporary, target)  # unlike a rename, a link never replaces
        finally:
            temporary.unlink()
        _sync_folder(target.parent)

    def replace(self, name: str, data: bytes) -> None:
        """Write a file in one step, in place of the one there may be."""
        target = self.path(name)
        os.replace(_write_beside(target, data), target)
        _sync_folder(target.parent)

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store's one writer lock, freed by the system if this process dies."""
        with FileLock(self.path("LOCK")):
            yield


def _write_beside(target: Path, data: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
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
