"""Files of a store behind a URL, through fsspec: an object is one atomic PUT, and there are no locks.

Writing needs two things that fsspec has no common word for, so they are spelt out for each protocol:
creating only where there is nothing, and replacing only what is still what was read. Protocols without
an entry below can be read from; writing there is refused instead of being sometimes lost.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.utils import get_protocol

from models.errors import DamagedObject, InvalidConfig, StoreUnreachable
from models.files import REFRESH_AGE_S, FileChanged, FileInfo, largest, too_large, written_beside
from models.storage import FULL

WRITABLE = ("memory", "s3")
UNASKED_BYTES = 16 * 2**20  # of a smaller kind of file a part is asked for, of a larger one its size first
MEMORY_LOCK = threading.Lock()  # of the one memory:// that a process has
# Of S3, for questions and small files: a store that accepts and never answers is told within READ_S times ATTEMPTS.
CONNECT_S, READ_S, ATTEMPTS = 2, 3, 2
TRANSFER_READ_S, TRANSFER_ATTEMPTS = 20, 3  # for objects and all that is written: S3 may work before it answers


def s3_options(read_s: float) -> dict[str, Any]:
    """Return s3fs's options; s3fs itself tries again, so botocore does not."""
    limits = {"connect_timeout": CONNECT_S, "read_timeout": read_s, "retries": {"total_max_attempts": 1}}
    return {"use_listings_cache": False, "config_kwargs": limits}


class RemoteFiles:
    """A URL that fsspec knows.

    Raises:
        InvalidConfig: no package for this protocol is installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._protocol = get_protocol(url)
        try:
            self._system = self._opened(READ_S, ATTEMPTS)
            self._transfer = self._opened(TRANSFER_READ_S, TRANSFER_ATTEMPTS)
        except (ImportError, ValueError) as error:
            raise InvalidConfig(
                f"{url}: the protocol {self._protocol!r} cannot be used here ({error}); for s3:// install mu2net[s3]"
            ) from error
        self._base = str(self._system._strip_protocol(self.url)).rstrip("/")

    def _opened(self, read_s: float, attempts: int) -> Any:
        if self._protocol != "s3":
            return fsspec.filesystem(self._protocol)
        system = fsspec.filesystem("s3", **s3_options(read_s))
        system.retries = attempts  # s3fs has no option for it
        return system

    def shown(self, name: str = "") -> str:
        return f"{self.url}/{name}" if name else self.url

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    def exists(self, name: str) -> bool:
        with self._reaching(name):
            try:
                self._system.info(self._path(name))
            except FileNotFoundError:
                return False
        return True

    def read(self, name: str) -> bytes:
        limit = largest(name)
        with self._reaching(name):
            system = self._transfer if name.startswith("objects/") else self._system
            if limit > UNASKED_BYTES:
                size = int(system.info(self._path(name))["size"])
                if size > limit:
                    raise too_large(self.shown(name), size, limit)
                data: bytes = system.cat_file(self._path(name))
            else:
                data = system.cat_file(self._path(name), start=0, end=limit + 1)
        if len(data) > limit:
            raise too_large(self.shown(name), len(data), limit)
        return data

    def infos(self, folder: str) -> list[FileInfo]:
        found = [
            FileInfo(f"{folder}/{_base_name(entry)}", entry["size"], _modified_at(entry))
            for entry in self._entries(folder)
            if entry["type"] == "file"
        ]
        return sorted(found, key=lambda info: info.name)

    def folders(self, folder: str) -> list[str]:
        return sorted(_base_name(entry) for entry in self._entries(folder) if entry["type"] == "directory")

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        with self._reaching(folder):
            try:
                entries: list[dict[str, Any]] = self._system.ls(self._path(folder), detail=True, refresh=True)
            except FileNotFoundError:
                return []
        return [entry for entry in entries if _base_name(entry)]

    def create(self, name: str, data: bytes) -> None:
        self._check_writable()
        with self._reaching(name):
            self._transfer.pipe_file(self._path(name), data, mode="create")

    def replace(self, name: str, data: bytes) -> None:
        self._check_writable()
        with self._reaching(name):
            self._transfer.pipe_file(self._path(name), data)

    def put_file(self, name: str, source: Path) -> None:
        self._check_writable()
        with self._reaching(name):
            self._transfer.put_file(str(source), self._path(name))

    def fetch(self, name: str, target: Path) -> None:
        with written_beside(target) as temporary:
            with self._reaching(name):
                self._transfer.get_file(self._path(name), str(temporary))
            os.replace(temporary, target)

    def swap(self, name: str, change: Callable[[bytes], bytes]) -> None:
        self._check_writable()
        if self._protocol == "memory":
            self._swap_in_memory(name, change)
            return
        with self._reaching(name):
            before = self._system.info(self._path(name))["ETag"]  # first: a later content then fails, not an older
        data = change(self.read(name))
        with self._reaching(name):
            try:
                self._transfer.pipe_file(self._path(name), data, IfMatch=before)
            except OSError as error:
                if not _is_precondition(error):
                    raise
                if self.read(name) != data:  # else it was ours, and only its reply was lost
                    raise FileChanged(name) from error

    def _swap_in_memory(self, name: str, change: Callable[[bytes], bytes]) -> None:
        before = self.read(name)
        data = change(before)
        with MEMORY_LOCK:
            if self.read(name) != before:
                raise FileChanged(name)
            self.replace(name, data)

    def touch(self, name: str) -> None:
        with self._reaching(name):
            age_s = time.time() - _modified_at(self._system.info(self._path(name)))
        if age_s > REFRESH_AGE_S:
            self.replace(name, self.read(name))

    def delete(self, name: str) -> None:
        with self._reaching(name), suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def lock(self) -> nullcontext[None]:
        return nullcontext()

    def _check_writable(self) -> None:
        if self._protocol not in WRITABLE:
            raise InvalidConfig(
                f"{self.url}: stores behind {self._protocol}:// can only be read, because conditional writes are "
                f"known for {', '.join(WRITABLE)} only: push to one of these, or to a folder"
            )

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        """Turn every way in which a network fails into one error; each library has its own."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, FileChanged, DamagedObject):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:  # of this machine, where a copy was written
                raise
            raise StoreUnreachable(
                f"{self.shown(name)} cannot be reached ({type(error).__name__}: {error}): check the network, the "
                "address and the credentials"
            ) from error


def _is_precondition(error: OSError) -> bool:
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") in {"PreconditionFailed", "ConditionalRequestConflict"}


def _base_name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def _modified_at(entry: dict[str, Any]) -> float:
    for key in ("LastModified", "created", "mtime", "updated", "last_modified"):
        moment = entry.get(key)
        if isinstance(moment, datetime):
            return moment.timestamp()
        if isinstance(moment, int | float):
            return float(moment)
    return time.time()  # unknown counts as new: garbage collection then leaves it alone
