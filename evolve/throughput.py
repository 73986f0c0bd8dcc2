"""Where the time of training goes: seconds by phase, for one candidate and for many."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds that a candidate's training spent in each phase.

    On a GPU a step is launched whole, with what is frozen but not kept: it counts as backward, with the time to wait
    for it before a validation.
    """

    frozen: float = 0.0  # its part of the activations that the generation computed once for all
    data: float = 0.0  # batches, augmentation, reading activations, and what is frozen but not kept
    forward: float = 0.0
    backward: float = 0.0  # gradients, clipping and the optimiser's step
    validation: float = 0.0
    saving: float = 0.0

    def __add__(self, other: "Phases") -> "Phases":
        return Phases(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Phases)))

    @property
    def total(self) -> float:
        return sum(seconds for _, seconds in shares(self))


class Stopwatch:
    """Adds up the seconds of each phase."""

    def __init__(self, start: Phases) -> None:
        self._seconds = {field.name: getattr(start, field.name) for field in fields(Phases)}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time in this context to the phase `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - started

    @property
    def phases(self) -> Phases:
        return Phases(**self._seconds)


@dataclass(frozen=True, slots=True)
class Throughput:
    """What an evolution has done so far, against the clock on the wall."""

    candidates: int = 0
    images: int = 0  # trained on, repetitions counted
    wall_seconds: float = 0.0
    phases: Phases = Phases()  # of all workers together

    @property
    def candidates_per_minute(self) -> float:
        return 60 * self.candidates / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.wall_seconds if self.wall_seconds else 0.0

    def after(self, *, images: int, wall_seconds: float, phases: Phases) -> "Throughput":
        """Return the figures with one more candidate."""
        return Throughput(
            self.candidates + 1, self.images + images, self.wall_seconds + wall_seconds, self.phases + phases
        )


def profile_table(throughput: Throughput) -> Table:
    """Return the phases' shares for a terminal."""
    title = f"{throughput.images_per_second:.0f} images/s, {throughput.candidates_per_minute:.1f} candidates/minute"
    table = Table(title=title, caption="training time of all workers together")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in shares(throughput.phases):
        share = seconds / throughput.phases.total if throughput.phases.total else 0.0
        table.add_row(name, f"{seconds:.1f}", f"{share:.0%}")
    return table


def shares(phases: Phases) -> list[tuple[str, float]]:
    """Return each phase's name and seconds, in the order of a training."""
    return [(field.name, getattr(phases, field.name)) for field in fields(Phases)]
