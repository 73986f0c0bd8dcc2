"""Candidates of a run, and what became of them on two paths, for the tests that hold one against the other."""

from collections.abc import Iterator, Sequence

import numpy as np

from evolve.candidate import Candidate
from evolve.pool import WeightPool
from evolve.run import TaskRun
from evolve.train import Trained


def first_children(run: TaskRun) -> list[Candidate]:
    """Return the first generation's candidates, untrained."""
    population = run.start_population()
    return run.sample_children(population, run.sample_data(population, 0), 0)


def own_weights(
    found: Sequence[Trained], wanted: Sequence[Trained], pool: WeightPool
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the weights and the momentum of all own parts, each with its name, found and wanted.

    Holds that the candidates are the same, own the same parts, and share the same others.
    """
    assert [trained.candidate.name for trained in found] == [trained.candidate.name for trained in wanted]
    for mine, other in zip(found, wanted, strict=True):
        for part, expected in zip(mine.candidate.parts, other.candidate.parts, strict=True):
            assert part.is_own == expected.is_own
            if not part.is_own:
                assert part.component == expected.component
                continue
            assert part.momentum
            assert expected.momentum
            for ids in ((part.component.id, expected.component.id), (part.momentum, expected.momentum)):
                weights, theirs = (pool.get(component) for component in ids)
                for name, values in weights.items():
                    yield f"{mine.candidate.name}: {part.component.kind} {name}", values, theirs[name]
