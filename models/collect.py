"""Garbage collection of a store: deletes what no kept release needs, beside a running server and a running evolution.

Kept are the newest releases, as many as wanted; the active one; pending ones and their parents; those that an
unfinished evolution began with; and every release and object that is younger than a grace time. What makes it safe
beside writers: whoever publishes makes the objects young again that it relies on, and publishing takes seconds; what
is to be deleted is marked before a last look (`models/doomed.py`), so that nobody begins to rely on it unnoticed. A
server that loads a release which is deleted meanwhile keeps its old one.
"""

import time
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass

from models.doomed import delete_old_marks, marked
from models.errors import InvalidConfig
from models.files import REFRESH_AGE_S, FileInfo, remove
from models.names import TaskName
from models.records import decode
from models.release import Release
from models.signatures import signature_name
from models.store import Store, object_name, release_name, release_number, route_objects

MIN_GRACE_S = 2 * REFRESH_AGE_S  # a writer may rely on an object that it last made young an hour ago


@dataclass(frozen=True, slots=True)
class RunStart:
    """What the journal's start of an iteration says that matters here; `evolve/journal.py` has all of it."""

    task: TaskName
    release: int
    format_version: int = 1


@dataclass(frozen=True, slots=True)
class Garbage:
    """What nothing needs. Sizes are in bytes."""

    releases: tuple[FileInfo, ...]
    objects: tuple[FileInfo, ...]
    leftovers: tuple[FileInfo, ...]  # of killed writers, files and folders at any depth
    kept_releases: tuple[int, ...]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(info.name for info in (*self.releases, *self.objects))

    @property
    def size(self) -> int:
        return sum(info.size for info in (*self.releases, *self.objects, *self.leftovers))


def collect(store: Store, *, keep: int | None, grace_s: float, dry_run: bool = False) -> Garbage:
    """Delete what no kept release needs, and return it.

    Args:
        store: any store.
        keep: how many of the newest releases stay; None keeps all.
        grace_s: what is younger stays in any case.
        dry_run: delete nothing.

    Raises:
        InvalidConfig: `keep` below 1, or a grace time too short to be safe beside writers.
        StoreError: a kept release is not complete; nothing was deleted.
    """
    if keep is not None and keep < 1:
        raise InvalidConfig(f"keep = {keep}: at least 1 release must stay")
    if grace_s < MIN_GRACE_S:
        raise InvalidConfig(f"a grace time of {grace_s:g} s is not safe beside writers: use {MIN_GRACE_S:g} s or more")
    young = time.time() - grace_s
    with store.files.lock():  # a folder's other writers wait
        planned = _find(store, keep, young)
        if dry_run:
            return planned
        delete_old_marks(store.files)
        with marked(store.files, planned.names) if store.is_remote else nullcontext():
            garbage = _find(store, keep, young, among=planned)
            for info in (*garbage.releases, *garbage.objects):  # in this order: no release names what is gone
                store.files.delete(info.name)
            for info in garbage.releases:
                number = release_number(info.name)
                if number is not None:
                    store.files.delete(signature_name(number))
        for info in garbage.objects:
            store.local_files.delete(info.name)  # of a remote store, what was kept of it here
        for info in garbage.leftovers:
            remove(store.local_files.path(info.name))
    return garbage


def _find(store: Store, keep: int | None, young: float, among: Garbage | None = None) -> Garbage:
    """Return what nothing needs; of what `among` has, if given, what still is so."""
    objects = store.files.infos("objects")  # first: what is stored from now on is not in the list
    releases = store.release_infos()
    kept = _kept_numbers(store, releases, keep, young)
    if among is not None:
        kept |= {number for number, info in releases.items() if info.name not in among.names}
        objects = [info for info in objects if info.name in among.names]
    needed: set[str] = set()
    for number in kept:
        needed |= release_objects(store, store.release(number))
    return Garbage(
        releases=tuple(info for number, info in sorted(releases.items()) if number not in kept),
        objects=tuple(info for info in objects if info.name not in needed and info.modified_at < young),
        leftovers=tuple(store.local_files.leftovers(older_than_s=time.time() - young)),
        kept_releases=tuple(sorted(kept)),
    )


def _kept_numbers(store: Store, releases: dict[int, FileInfo], keep: int | None, young: float) -> set[int]:
    numbers = sorted(releases)
    current = store.current()
    kept = set(numbers if keep is None else numbers[-keep:]) | {current.release, *current.pending}
    kept |= {parent for number in current.pending if (parent := store.release(number).parent) is not None}
    old = [number for number in numbers if releases[number].modified_at < young]
    kept |= {number for number in numbers if number not in old} | set(old[-1:])  # what was newest within the grace
    return kept | {number for number in _of_unfinished_runs(store) if number in releases}


def _of_unfinished_runs(store: Store) -> set[int]:
    """Return the releases that evolutions began with which have not ended: their seeds are not garbage."""
    found = set()
    for task in store.files.folders("journal"):
        for iteration in store.files.folders(f"journal/{task}"):
            folder = f"journal/{task}/{iteration}"
            names = {info.name for info in store.files.infos(folder)}
            start = f"{folder}/start.json"
            if start in names and f"{folder}/end.json" not in names:
                found.add(decode(RunStart, store.files.read(start), store.files.shown(start)).release)
    return found


def release_objects(store: Store, release: Release) -> set[str]:
    """Return the names of all files that a release needs besides its own; StoreError if a route is not readable."""
    names: set[str] = set()
    for owner, route_id in [*release.tasks.items(), ("the root", release.root)]:
        route = store.route(route_id, needed_by=f"{owner} of {release_name(release.number)}")
        names |= {object_name(route_id, "json")} | route_objects(route)
    return names


def trim_cache(store: Store, in_use: Collection[str], *, grace_s: float = MIN_GRACE_S) -> int:
    """Delete what lies here of a store behind a URL although the store has it no more; return the bytes.

    Kept are the names in `in_use`, and what is younger than the grace time: another process on this machine may
    just be storing it.
    """
    if not store.is_remote:
        return 0
    young = time.time() - grace_s
    copies = store.local_files.infos("objects")  # first, see `_find`
    present = {info.name for info in store.files.infos("objects")}.union(in_use)
    garbage = [info for info in copies if info.name not in present and info.modified_at < young]
    for info in garbage:
        store.local_files.delete(info.name)
    return sum(info.size for info in garbage)
