"""Marks of files that a garbage collection is about to delete, for those who might just begin to rely on them.

    gc/<random>.json   the names, there from before a collection looks a last time until it is done

A folder's writers have a lock. Object stores have none, but two sides cannot miss each other if each first
tells and then looks: a collection writes its mark, then looks at the pointer, the journal and the age of
objects; who relies on a release writes the pointer or the journal, who relies on an object makes it young,
and each then looks at the marks.
"""

import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from models.files import FileInfo, Files
from models.records import decode, encode

FOLDER = "gc"
MARK_AGE_S = 3600.0  # a collection takes minutes: one that has not ended by then was killed


@dataclass(frozen=True, slots=True)
class Doomed:
    names: tuple[str, ...]
    format_version: int = 1


def doomed(files: Files) -> set[str]:
    """Return the names of all files that are about to be deleted."""
    names: set[str] = set()
    for info in _marks(files, is_old=False):
        with suppress(FileNotFoundError):  # the collection has ended meanwhile
            names.update(decode(Doomed, files.read(info.name), files.shown(info.name)).names)
    return names


@contextmanager
def marked(files: Files, names: Iterable[str]) -> Iterator[None]:
    """Have a mark on these files while the block runs."""
    mark = f"{FOLDER}/{secrets.token_hex(8)}.json"
    files.create(mark, encode(Doomed(tuple(sorted(names)))))
    try:
        yield
    finally:
        files.delete(mark)


def delete_old_marks(files: Files) -> None:
    """Delete the marks of collections that were killed."""
    for info in _marks(files, is_old=True):
        files.delete(info.name)


def _marks(files: Files, *, is_old: bool) -> list[FileInfo]:
    limit = time.time() - MARK_AGE_S
    return [info for info in files.infos(FOLDER) if (info.modified_at < limit) is is_old]
