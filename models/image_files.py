"""The files of a folder or of a zip, addressed by name: what labelled images are read from.

Nothing is extracted: members of a zip are read in place, and a name from a zip is never used as a path.
"""

import os
import re
import stat
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from models.errors import ImageTooLarge, InvalidData, InvalidImage

ENCRYPTED, UTF8_NAME = 0x1, 0x800  # bits of a zip member's flags
EXPANSION_FREE_BYTES = 100 * 2**20  # a zip may unpack to this much, however small it is itself
MEMBER_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)


class FolderFiles:
    """A folder on disk. Links are followed, each folder is visited once."""

    def __init__(self, folder: Path, shown_as: str) -> None:
        self._folder = folder
        self.sizes: dict[str, int] = {}  # bytes of each file, by name below the folder, with forward slashes
        self.folders: set[str] = set()
        self._seen: set[tuple[int, int]] = set()
        try:
            self._scan("")
        except OSError as error:
            raise InvalidData(f"{shown_as} cannot be read ({error}): make all of it readable") from error

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a file's content; ImageTooLarge beyond `max_bytes`, InvalidImage if it cannot be read."""
        try:
            with (self._folder / name).open("rb") as file:
                data = file.read(max_bytes + 1)
        except OSError as error:
            raise InvalidImage(f"the file cannot be read ({error.strerror})") from error
        if len(data) > max_bytes:
            raise too_many_bytes(self.sizes[name], max_bytes)
        return data

    def close(self) -> None:
        """Nothing is held open."""

    def _scan(self, below: str) -> None:
        status = (self._folder / below).stat()
        if (status.st_dev, status.st_ino) in self._seen:  # a link back up
            return
        self._seen.add((status.st_dev, status.st_ino))
        for entry in os.scandir(self._folder / below):
            name = f"{below}{entry.name}"
            if entry.is_dir():
                self.folders.add(name)
                self._scan(f"{name}/")
            elif entry.is_file():  # a device or a pipe is not: reading it might never end
                self.sizes[name] = entry.stat().st_size


class ZipFiles:
    """An open zip. All members are checked before any is read."""

    def __init__(self, path: Path, shown_as: str, *, max_members: int, max_expansion: int) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except MEMBER_ERRORS as error:
            raise InvalidData(f"{shown_as} is a damaged zip ({error}): make or upload it again") from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.sizes: dict[str, int] = {}  # bytes of each member when unpacked
        self.folders: set[str] = set()
        try:
            self._check_total(shown_as, path.stat().st_size, max_members, max_expansion)
            for member in self._zip.infolist():
                self._add(member, shown_as)
        except BaseException:
            self.close()
            raise

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a member's content; ImageTooLarge beyond `max_bytes`, InvalidImage if it is damaged."""
        if self.sizes[name] > max_bytes:
            raise too_many_bytes(self.sizes[name], max_bytes)
        try:
            return self._zip.read(self._members[name])  # never more than its declared size
        except MEMBER_ERRORS as error:
            raise InvalidImage(f"damaged within the zip ({error})") from error

    def close(self) -> None:
        self._zip.close()

    def _check_total(self, shown_as: str, packed: int, max_members: int, max_expansion: int) -> None:
        members = self._zip.infolist()
        unpacked = sum(member.file_size for member in members)
        if len(members) > max_members:
            raise InvalidData(f"{shown_as} has {len(members):,} members; at most {max_members:,} are allowed")
        if unpacked > max(EXPANSION_FREE_BYTES, max_expansion * packed):
            raise InvalidData(
                f"{shown_as} unpacks from {packed:,} to {unpacked:,} bytes; at most {max_expansion} times its own "
                "size is allowed: images hardly shrink in a zip, so check what is in it"
            )

    def _add(self, member: zipfile.ZipInfo, shown_as: str) -> None:
        raw = _member_name(member)
        name = "/".join(part for part in raw.split("/") if part not in {"", "."})
        problem = _problem(member, raw, is_repeated=name in self._members)
        if problem is not None:
            raise InvalidData(f"{shown_as} has the member {raw[:200]!r}, which {problem}")
        parents = name.split("/") if member.is_dir() else name.split("/")[:-1]
        self.folders.update("/".join(parents[: depth + 1]) for depth in range(len(parents)))
        if not member.is_dir():
            self._members[name] = member
            self.sizes[name] = member.file_size


def too_many_bytes(size: int, max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"the image has {size:,} bytes; at most {max_bytes:,} are allowed: send a smaller file")


def _member_name(member: zipfile.ZipInfo) -> str:
    """Return the name with forward slashes; some writers use UTF-8 without the flag that says so."""
    name = member.filename
    if not member.flag_bits & UTF8_NAME:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def _problem(member: zipfile.ZipInfo, name: str, *, is_repeated: bool) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return "points outside of the zip: make it again with relative names"
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        return "is a link or a device: put the image itself in its place"
    if member.flag_bits & ENCRYPTED:
        return "is encrypted: make the zip again without a password"
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return f"is compressed by method {member.compress_type}; stored (0) or deflated (8) is allowed: make it again"
    if is_repeated:
        return "is there twice: make the zip again with unique names"
    return None
