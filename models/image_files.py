"""The files of a folder or of a zip, addressed by name: what labelled images are read from.

Nothing is extracted: members of a zip are read in place, and a name from a zip is never used as a path.
"""

import os
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from models.errors import ImageTooLarge, InvalidData, InvalidImage

ENCRYPTED, UTF8_NAME = 0x1, 0x800  # bits of a zip member's flags
UNICODE_PATH = 0x7075  # the extra field of a zip member with its name in UTF-8
HEAD_BYTES = 16  # that tell an image's format
EXPANSION_FREE_BYTES = 100 * 2**20  # a zip may unpack to this much, however small it is itself
MAX_DEPTH = 32  # folders in each other
MAX_NAME = 1_000  # characters of one file's name, its folders included
MAX_NAMES = 2**28  # characters of all names and folders together: they are held in memory
MEMBER_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)


class Names:
    """The files and folders found so far, as names with forward slashes; their depth and length are bounded."""

    def __init__(self, shown_as: str) -> None:
        self.sizes: dict[str, int] = {}  # bytes of each file when unpacked
        self.folders: set[str] = set()
        self._shown = shown_as
        self._length = 0

    def add_file(self, name: str, size: int) -> None:
        """Add a file and the folders it lies in; InvalidData beyond a limit."""
        self.check(name)
        self.sizes[name] = size
        self._count(name)
        self.add_folder(name.rpartition("/")[0])

    def add_folder(self, name: str) -> None:
        """Add a folder and those it lies in; InvalidData beyond a limit."""
        self.check(name)
        while name and name not in self.folders:  # what holds a known folder is known as well
            self.folders.add(name)
            self._count(name)
            name = name.rpartition("/")[0]

    def check(self, name: str) -> None:
        """Raise InvalidData for a name that is too long or too deep; costs no more than the limits."""
        if len(name) > MAX_NAME:
            raise InvalidData(
                f"{self._shown} has a name of {len(name):,} characters, {name[:80]!r}...; at most {MAX_NAME:,} are "
                "allowed: shorten the names of its folders"
            )
        if name.count("/") > MAX_DEPTH:
            raise InvalidData(
                f"{self._shown} has {name.count('/'):,} folders in each other, {name[:80]!r}...; at most {MAX_DEPTH} "
                "are allowed: move the class folders up"
            )

    def _count(self, name: str) -> None:
        self._length += len(name)
        if self._length > MAX_NAMES:
            raise InvalidData(
                f"{self._shown} has names of more than {MAX_NAMES:,} characters in all: shorten the names of its "
                "folders, or leave some images out"
            )


class FolderFiles:
    """A folder on disk. Links are followed, each folder is visited once."""

    def __init__(self, folder: Path, shown_as: str) -> None:
        self._folder = folder
        self._names = Names(shown_as)
        self.sizes = self._names.sizes  # by name below the folder; 0 for a link to nothing
        self.folders = self._names.folders
        self.special: list[str] = []  # devices, pipes and sockets: reading them might never end
        self.dead_links: dict[str, str] = {}  # links to what is not there, with their targets
        self._seen: set[tuple[int, int]] = set()
        try:
            self._scan("")
        except OSError as error:
            raise InvalidData(f"{shown_as} cannot be read ({error}): make all of it readable") from error

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a file's content; ImageTooLarge beyond `max_bytes`, InvalidImage if it cannot be read."""
        try:
            with (self._folder / name).open("rb") as file:
                data = read_bounded(file, max_bytes)
        except OSError as error:
            target = self.dead_links.get(name)
            what = "the file" if target is None else f"the link's target {target!r}"
            raise InvalidImage(f"{what} cannot be read ({error.strerror})") from error
        if len(data) > max_bytes:
            raise too_many_bytes(self.sizes[name], max_bytes)
        return data

    def path(self, name: str) -> str:
        """Return where a file lies."""
        return os.path.join(self._folder.absolute(), name)

    def head(self, name: str) -> bytes:
        """Return a file's first bytes; none if it cannot be read."""
        try:
            with (self._folder / name).open("rb") as file:
                return file.read(HEAD_BYTES)
        except OSError:
            return b""

    def close(self) -> None:
        """Nothing is held open."""

    def _scan(self, below: str) -> None:
        status = (self._folder / below).stat()
        if (status.st_dev, status.st_ino) in self._seen:  # a link back up
            return
        self._seen.add((status.st_dev, status.st_ino))
        # by name: what several links reach belongs to the same one of them each time
        for entry in sorted(os.scandir(self._folder / below), key=lambda entry: entry.name):
            name = f"{below}{entry.name}"
            if entry.is_dir():
                self._names.add_folder(name)
                self._scan(f"{name}/")
            elif entry.is_file():
                self._names.add_file(name, entry.stat().st_size)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                self._names.add_file(name, 0)
                self.dead_links[name] = os.readlink(entry.path)
            else:
                self.special.append(name)


class ZipFiles:
    """An open zip. All members are checked before any is read."""

    def __init__(self, path: Path, shown_as: str, *, max_members: int, max_expansion: int) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except MEMBER_ERRORS as error:
            raise InvalidData(f"{shown_as} is a damaged zip ({error}): make or upload it again") from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._names = Names(shown_as)
        self.sizes = self._names.sizes
        self.folders = self._names.folders
        self.special: list[str] = []  # refused in a zip, as links are
        self.dead_links: dict[str, str] = {}
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

    def head(self, name: str) -> bytes:
        """Return a member's first bytes; none if it is damaged."""
        try:
            with self._zip.open(self._members[name]) as file:
                return file.read(HEAD_BYTES)
        except MEMBER_ERRORS:
            return b""

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
        raw = _member_name(member, shown_as)
        self._names.check(raw.rstrip("/"))  # before it is cut into its folders
        name = "/".join(part for part in raw.split("/") if part not in {"", "."})
        problem = _problem(member, raw, is_repeated=name in self._members)
        if problem is not None:
            raise InvalidData(f"{shown_as} has the member {raw[:200]!r}, which {problem}")
        if member.is_dir():
            self._names.add_folder(name)
        else:
            self._members[name] = member
            self._names.add_file(name, member.file_size)


def read_bounded(file: BinaryIO, max_bytes: int) -> bytes:
    """Return a file's content, or more than `max_bytes` of it where there is more.

    It is asked for as many bytes as it has: Python makes room for all that is asked for, which for 20 MiB takes five
    times as long as to read a small file.
    """
    size = os.fstat(file.fileno()).st_size
    data = file.read(min(size, max_bytes) + 1)
    if size < len(data) <= max_bytes:  # it grew meanwhile
        data += file.read(max_bytes + 1 - len(data))
    return data


def too_many_bytes(size: int, max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"the image has {size:,} bytes; at most {max_bytes:,} are allowed: send a smaller file")


def _member_name(member: zipfile.ZipInfo, shown_as: str) -> str:
    """Return the name with forward slashes.

    It is UTF-8 where a flag or the Unicode path field (0x7075) says so; other writers use UTF-8 without saying so, or
    the code page of their system, which nothing tells: such names are refused, since guessing makes classes one.
    """
    name = member.orig_filename  # as the flag says: UTF-8, else each byte as a letter of code page 437
    if not member.flag_bits & UTF8_NAME:
        raw = name.encode("cp437")
        try:
            name = (_unicode_path(member.extra, raw) or raw).decode()
        except UnicodeDecodeError as error:
            raise InvalidData(
                f"{shown_as} has the member {raw[:200]!r}, whose name is not UTF-8: make the zip again with "
                "UTF-8 names, for example by '7z a -mcu=on DATA.zip FOLDER' or 'python -m zipfile -c "
                "DATA.zip FOLDER'"
            ) from error
    return name.replace("\\", "/")


def _unicode_path(extra: bytes, raw: bytes) -> bytes | None:
    """Return the UTF-8 name in a member's extra fields (APPNOTE 4.6.9); None without one, or one of another name."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and len(field) > 5 and field[0] == 1:
            (checksum,) = struct.unpack("<I", field[1:5])
            if checksum == zlib.crc32(raw):
                return field[5:]
    return None


def _problem(member: zipfile.ZipInfo, name: str, *, is_repeated: bool) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if "\0" in name:
        return "has a NUL character in its name: rename it"
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
