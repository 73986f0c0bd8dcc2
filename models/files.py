"""Files of a store by name: what any place must be able to do, and folders of a local file system.

A place has no rename and no append, only what object stores have as well: a file appears whole, is
created only where there is none, and the pointer is replaced only if it is still what was read.
`models/remote_files.py` is the other kind of place.

What is written here is its user's alone, whatever the umask says: a store holds private tasks' images and hashes
of keys. It is the group's too where the operator gave the folder to one, see `folder_mode`.
"""

import errno
import fcntl
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from filelock import FileLock

from models.errors import DamagedObject
from models.storage import CACHE, STORE, writing

ATTEMPTS = 20  # of a writer whom others are faster than
REFRESH_AGE_S = 3600.0  # younger files need no touch: an object store has none, there it is a copy of the file
OWN_FOLDER = 0o700
SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # no link is followed, and opening a pipe does not wait
SECRETS = ("keys.json", "jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm", "uploads", "work")
TEMPORARY_PREFIX = ".new-"  # what a killed writer leaves behind begins so, and nothing reads it

KIB, MIB, GIB = 2**10, 2**20, 2**30
# Largest size of a file by the beginning and the end of its name; the first that fits counts. What is read into
# memory must be bounded before it is known to be what its name promises.
LARGEST = (
    ("CURRENT", "", MIB),
    ("keys.json", "", 16 * MIB),
    ("releases/", "", 16 * MIB),
    ("signatures/", "", MIB),
    ("gc/", "", 64 * MIB),
    ("objects/", ".json", 16 * MIB),
    ("objects/", ".onnx", 64 * MIB),  # its weights lie in files of their own
    ("objects/", "", 2 * GIB),  # one component: a block of the largest known ViT has 0.8 GiB
    ("journal/", "", GIB),
)
LARGEST_OTHER = 2 * GIB


log = logging.getLogger("mu2net.files")


class FileChanged(Exception):
    """A file to be replaced is no longer what was read: read it again and decide anew."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file's size in bytes, and when it was written or touched last, in seconds of Unix time."""

    name: str
    size: int
    modified_at: float


def largest(name: str) -> int:
    """Return the most bytes that a file of a store may have to be read into memory."""
    return next((size for begin, end, size in LARGEST if name.startswith(begin) and name.endswith(end)), LARGEST_OTHER)


def too_large(shown: str, size: int, limit: int) -> DamagedObject:
    return DamagedObject(
        f"{shown} has {size:,} bytes; at most {limit:,} are read of such a file: restore it from a copy, or delete it"
    )


@runtime_checkable  # shapes and types of models/ are checked in tests
class Files(Protocol):
    """A place addressed by names with forward slashes. What it cannot reach is a StoreUnreachable."""

    def shown(self, name: str = "") -> str:
        """Return where a file lies, for people."""
        ...

    def exists(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """Return the whole file.

        Raises:
            FileNotFoundError: there is none.
            DamagedObject: a link, a folder or a device stands there, or it is larger than `largest` allows.
        """
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
    """A folder. Every write is on disk before its name appears.

    Who may write into the folder may put anything there: a pipe that never ends, a device, a link to a file outside.
    So below the folder no link is followed, and only regular files of a bounded size are read. The folder itself is
    the operator's choice and may be a link.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def close_to_others(self) -> None:
        """Take away what a umask gave to other users, where the folder is this user's; make it if it is missing."""
        make_folder(self.folder)
        wanted = folder_mode(self.folder)
        _narrow(self.folder, wanted)
        for name in SECRETS:
            path = self.path(name)
            if path.is_symlink():  # who may write the folder put it there, and its target is another's matter
                continue
            with suppress(FileNotFoundError):
                _narrow(path, wanted if path.is_dir() else wanted & 0o666)

    def path(self, name: str) -> Path:
        return self.folder / name

    def shown(self, name: str = "") -> str:
        return str(self.path(name))

    def exists(self, name: str) -> bool:
        """Tell whether anything but a folder stands there; whether it may be read is told by `read`."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return not stat.S_ISDIR(self.path(name).lstat().st_mode)
        return False

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return _read_bounded(file, self.shown(name), largest(name))

    def open(self, name: str) -> BufferedReader:
        """Open a regular file for reading, without following a link below the folder and without waiting.

        Raises:
            FileNotFoundError: there is none.
            DamagedObject: a link or something else than a regular file stands there.
        """
        *folders, last = name.split("/")
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        for folder in folders:
            descriptor = self._open_within(descriptor, folder, os.O_DIRECTORY, name)
        file = self._open_within(descriptor, last, 0, name)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise self._not_regular(name)
        return os.fdopen(file, "rb")

    def _open_within(self, descriptor: int, part: str, flags: int, name: str) -> int:
        """Open one part of `name` in the folder that `descriptor` is, and close that."""
        try:
            return os.open(part, os.O_RDONLY | flags | SAFELY, dir_fd=descriptor)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._not_regular(name, error) from error
        finally:
            os.close(descriptor)

    def _not_regular(self, name: str, error: OSError | None = None) -> DamagedObject:
        reason = f" ({error.strerror})" if error is not None else ""
        return DamagedObject(
            f"{self.shown(name)} is no regular file that can be read here{reason}: links, pipes and devices in a store "
            "are not followed; restore it from a copy, or delete it"
        )

    def infos(self, folder: str) -> list[FileInfo]:
        found: list[FileInfo] = []
        for entry in self._entries(folder):
            if not entry.name.startswith(TEMPORARY_PREFIX):
                found += _info(folder, entry)
        return sorted(found, key=lambda info: info.name)

    def folders(self, folder: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(folder) if entry.is_dir(follow_symlinks=False))

    def leftovers(self, folder: str = "", *, older_than_s: float = 0.0) -> list[FileInfo]:
        """Return what killed writers left below `folder` at any depth, files and folders; see `abandoned`."""
        found = abandoned(self.path(folder), older_than_s=older_than_s)
        return [FileInfo(path.relative_to(self.folder).as_posix(), size, at) for path, size, at in found]

    def delete_leftovers(self, folder: str = "", *, older_than_s: float) -> int:
        """Delete what `leftovers` returns; return the bytes."""
        found = self.leftovers(folder, older_than_s=older_than_s)
        for info in found:
            remove(self.path(info.name))
        return sum(info.size for info in found)

    def _entries(self, folder: str) -> list["os.DirEntry[str]"]:
        """Return what is in a folder; DamagedObject if a link leads to it, since its files are not the store's."""
        path = self.folder
        for part in folder.split("/"):
            path /= part
            if path.is_symlink():
                raise self._not_regular(folder)
        return list(os.scandir(path)) if path.is_dir() else []

    def create(self, name: str, data: bytes) -> None:
        target = self.path(name)
        with self._written_beside(target) as temporary:
            _fill(temporary, data)
            os.link(temporary, target)  # unlike a rename, a link never replaces
            _sync_folder(target.parent)

    def replace(self, name: str, data: bytes) -> None:
        target = self.path(name)
        with self._written_beside(target) as temporary:
            _fill(temporary, data)
            os.replace(temporary, target)
            _sync_folder(target.parent)

    def put_file(self, name: str, source: Path) -> None:
        copy_file(source, self.path(name), mode=folder_mode(self.folder), place=STORE)

    def fetch(self, name: str, target: Path) -> None:
        with self.open(name) as source:
            _copy(source, target, place=CACHE)

    def swap(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """As everywhere; the caller holds `lock`, so nobody can be faster."""
        self.replace(name, change(self.read(name)))

    def touch(self, name: str) -> None:
        path = self.path(name)
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise self._not_regular(name)
        if time.time() - status.st_mtime > REFRESH_AGE_S:
            with self._writing():
                os.utime(path, follow_symlinks=False)

    def delete(self, name: str) -> None:
        with self._writing():
            self.path(name).unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store's one writer lock, freed by the system if this process dies."""
        if self.folder.is_dir():
            self.close_to_others()
        lock = FileLock(self.path("LOCK"), mode=folder_mode(self.folder) & 0o666)
        with self._writing():
            try:
                lock.acquire()
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.EISDIR):
                    raise self._not_regular("LOCK", error) from error
                raise
        try:
            yield
        finally:
            lock.release()

    def _written_beside(self, target: Path) -> AbstractContextManager[Path]:
        return written_beside(target, mode=folder_mode(self.folder), place=STORE)

    def _writing(self) -> AbstractContextManager[None]:
        return writing(STORE, self.folder)


def change_file(files: Files, name: str, change: Callable[[bytes | None], bytes]) -> bool:
    """Put what `change` makes of a file's content in its place; the content is None where there is no file.

    Returns whether that was done: not if other writers were faster each of `ATTEMPTS` times.
    """
    for _ in range(ATTEMPTS):
        with suppress(FileChanged, FileExistsError):  # another writer was faster: what it wrote must not get lost
            if files.exists(name):
                files.swap(name, change)
            else:
                files.create(name, change(None))
            return True
    return False


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


def copy_file(source: Path, target: Path, *, mode: int = OWN_FOLDER, place: str) -> None:
    """Make `target` a copy with the rights of `mode`; it appears whole and on disk. Errors as `written_beside`."""
    with source.open("rb") as reading:
        _copy(reading, target, mode=mode, place=place)


def _copy(reading: BinaryIO, target: Path, *, mode: int = OWN_FOLDER, place: str) -> None:
    with written_beside(target, mode=mode, place=place) as temporary:
        with temporary.open("r+b") as file:
            shutil.copyfileobj(reading, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)


@contextmanager
def written_beside(
    target: Path, *, mode: int = OWN_FOLDER, is_folder: bool = False, place: str = CACHE
) -> Iterator[Path]:
    """Make an empty file or folder beside `target`, to be filled and then renamed or linked to it.

    If it is still there when the block ends, it is deleted. Until then this process holds a lock on it, which the
    system frees if the process dies: so `abandoned` knows what nobody writes any more.

    Args:
        target: what it is to become; its folder is made if missing.
        mode: see `folder_mode`; by default only this user may read or enter.
        is_folder: make a folder instead.
        place: what messages call the folder that it is written in.

    Raises:
        StorageFull: there is no space left for it.
        StorageReadOnly: it may not be written there.
    """
    with writing(place, target.parent):
        make_folder(target.parent, mode)
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
        if is_folder:
            make_folder(temporary, mode)
        else:
            file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            os.fchmod(file, mode & 0o666)
            os.close(file)
    try:
        with writing(place, target.parent, is_full_only=True), held(temporary):
            yield temporary
    finally:
        remove(temporary)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock on a file or folder by which `abandoned` knows that it has a writer."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks: there the age alone decides
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _read_bounded(file: BinaryIO, shown: str, limit: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        raise too_large(shown, size, limit)
    return file.read(size)  # what is appended meanwhile is none of what was written


def abandoned(
    folder: Path, *, older_than_s: float, prefixes: Sequence[str] = (TEMPORARY_PREFIX,), is_deep: bool = True
) -> list[tuple[Path, int, float]]:
    """Return what killed writers left: what begins with one of `prefixes`, is old enough, and has no writer.

    Returns:
        Of each file or folder the path, the bytes, and when it was written last in seconds of Unix time.
    """
    limit = time.time() - older_than_s
    found = []
    for place, folders, files in os.walk(folder):
        inside = [name for name in folders if name.startswith(tuple(prefixes))]
        for name in [*inside, *(name for name in files if name.startswith(tuple(prefixes)))]:
            path = Path(place, name)
            with suppress(OSError):  # gone meanwhile, or another user's
                parts = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
                states = [part.lstat() for part in parts]
                written_at = max(state.st_mtime for state in states)
                if written_at <= limit and not _has_writer(path):
                    found.append((path, sum(state.st_size for state in states), written_at))
        folders[:] = [name for name in folders if is_deep and name not in inside]
    return sorted(found)


def _has_writer(path: Path) -> bool:
    """Whether a process holds the lock of `held` on a file or folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here
        return False
    finally:
        os.close(descriptor)
    return False


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _info(folder: str, entry: "os.DirEntry[str]") -> list[FileInfo]:
    """Return what is known of a regular file, nothing if it is none or is gone since it was listed."""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return []
    if not stat.S_ISREG(status.st_mode):
        return []
    return [FileInfo(f"{folder}/{entry.name}", status.st_size, status.st_mtime)]


def _fill(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
