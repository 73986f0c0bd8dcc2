"""The journal: every candidate ever sampled, in the store, one immutable segment a generation.

    journal/<task>/<iteration>/start.json       what the iteration began with
    journal/<task>/<iteration>/<generation>.jsonl
    journal/<task>/<iteration>/end.json         what it ended with

An iteration without an end was interrupted; the same command takes it up again from these segments.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from evolve.candidate import Candidate
from evolve.config import EvolveConfig
from evolve.population import Member
from evolve.throughput import Phases
from models.errors import DamagedObject, UnknownRelease
from models.names import RouteId, TaskName
from models.records import decode, encode
from models.store import Store

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class IterationStart:
    """All that the outcome of an iteration follows from."""

    task: TaskName
    iteration: int  # of this task, from 1
    release: int  # whose routes are the seeds
    data_digest: str
    labels: tuple[str, ...]
    device: str
    private: bool
    config: EvolveConfig
    replaces: bool = False  # whether the active release had a route for this task then
    format_version: int = 1


@dataclass(frozen=True, slots=True)
class IterationEnd:
    winner: str  # candidate name
    route: RouteId
    release: int
    format_version: int = 1


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """One candidate as it was sampled and what came of it."""

    candidate: Candidate  # with its trained parts
    quality: float
    score: float
    accounted_parameters: float
    flops: int
    curve: tuple[float, ...]
    images: int
    seconds: float
    device: str
    phases: Phases = Phases()
    wall_seconds: float = 0.0  # since the candidate before it was done: side by side, less than `seconds`
    format_version: int = 1

    @property
    def member(self) -> Member:
        """The candidate as a population has it."""
        return Member(self.candidate, self.quality, self.score)


class Journal:
    """The journal of one task iteration."""

    def __init__(self, store: Store, task: TaskName, iteration: int) -> None:
        self._store = store
        self._files = store.files
        self._folder = f"journal/{task}/{iteration:04d}"

    def start(self) -> IterationStart | None:
        return self._read(IterationStart, "start.json")

    def end(self) -> IterationEnd | None:
        return self._read(IterationEnd, "end.json")

    def write_start(self, start: IterationStart) -> None:
        """Write with which release the iteration begins: garbage collection keeps it until the end is written.

        Raises:
            UnknownRelease: it has just been deleted, and the iteration has not begun.
        """
        name = f"{self._folder}/start.json"
        self._files.create(name, encode(start))
        try:
            self._store.require_kept(start.release)
        except UnknownRelease:
            self._files.delete(name)
            raise

    def write_end(self, end: IterationEnd) -> None:
        self._files.replace(f"{self._folder}/end.json", encode(end))

    def write_generation(self, generation: int, records: Sequence[CandidateRecord]) -> None:
        lines = b"".join(encode(record) for record in records)
        self._files.create(f"{self._folder}/{generation:04d}.jsonl", lines)

    def generation(self, generation: int) -> list[CandidateRecord] | None:
        """Return the records of a generation, None if it was not finished."""
        name = f"{self._folder}/{generation:04d}.jsonl"
        if not self._files.exists(name):
            return None
        return [self._decode(CandidateRecord, line, name) for line in self._files.read(name).splitlines()]

    def records(self) -> list[CandidateRecord]:
        """Return the records of all generations that were finished."""
        found: list[CandidateRecord] = []
        for generation in itertools.count():
            records = self.generation(generation)
            if records is None:
                return found
            found += records
        return found

    def _read(self, kind: type[Record], name: str) -> Record | None:
        path = f"{self._folder}/{name}"
        return self._decode(kind, self._files.read(path), path) if self._files.exists(path) else None

    def _decode(self, kind: type[Record], data: bytes, name: str) -> Record:
        try:
            return decode(kind, data, self._files.shown(name))
        except DamagedObject as error:
            raise DamagedObject(
                f"{error}, or delete the folder {self._files.shown(self._folder)}: no release needs it, and the task "
                "is evolved anew"
            ) from error


def trained_whole(records: Sequence[CandidateRecord]) -> list[CandidateRecord]:
    """Return those that were trained as long as any of their generation: the others were stopped early."""
    longest: Counter[str] = Counter()
    for record in records:
        generation = _generation(record)
        longest[generation] = max(longest[generation], len(record.curve))
    return [record for record in records if len(record.curve) == longest[_generation(record)]]


def _generation(record: CandidateRecord) -> str:
    return record.candidate.name.rpartition("/")[0]


def iterations(store: Store, task: TaskName) -> list[int]:
    """Return the numbers of all iterations of a task that were ever started."""
    folders = store.files.folders(f"journal/{task}")
    return sorted(int(folder) for folder in folders if folder.isascii() and folder.isdigit())
