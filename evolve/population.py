"""The candidates kept so far for the active task, and how parents are chosen among them (µ2Net, section 3.2)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evolve.candidate import Candidate

OFFSPRING_DECAY = 0.5  # reference notebook: a parent is taken with probability 0.5 ** its children so far


@dataclass(frozen=True, slots=True)
class Member:
    """A trained candidate with its measured quality (validation accuracy) and score."""

    candidate: Candidate
    quality: float
    score: float


class Population:
    """Kept candidates and seeds. Seeds are the root and other tasks' routes, in the order they are tried."""

    def __init__(self, seeds: Sequence[Candidate]) -> None:
        self._seeds = list(seeds)
        self._members: list[Member] = []
        self._children: Counter[str] = Counter()

    @property
    def best(self) -> Member | None:
        """The member with the best score, the newest on ties; None as long as none was kept."""
        return next(iter(self._ranked()), None)

    @property
    def ranked(self) -> tuple[Member, ...]:
        """The members from the best score down, the newest first among equals."""
        return tuple(self._ranked())

    @property
    def seeds(self) -> tuple[Candidate, ...]:
        """The seeds in the order in which they will be tried."""
        return tuple(self._seeds)

    def sample_parent(self, rng: np.random.Generator) -> Candidate:
        """Choose a parent, best members first, and count one more child for it.

        Walk the members from the best score down and take each with a probability that halves with every
        child it has; then the seeds in the same way, the one taken going to the end; else draw uniformly.
        """
        parent = self._walk(rng)
        self._children[parent.name] += 1
        return parent

    def propose_parents(self, rng: np.random.Generator, number: int) -> list[Candidate]:
        """Choose so many parents one after another, but count no child: not all are to have one."""
        seeds, children = list(self._seeds), self._children.copy()
        proposed = [self.sample_parent(rng) for _ in range(number)]
        self._seeds, self._children = seeds, children
        return proposed

    def count_child(self, parent: str) -> None:
        """Count one more child for a parent that was proposed; a seed goes to the end of the seeds."""
        self._children[parent] += 1
        self._seeds.sort(key=lambda seed: seed.name == parent)

    def has_child(self, parent: str) -> bool:
        return self._children[parent] > 0

    def consider(self, member: Member) -> bool:
        """Keep a trained child if it scores at least what its parent did on this task; say whether it stays."""
        parents = [kept.score for kept in self._members if kept.candidate.name == member.candidate.parent]
        is_kept = not parents or member.score >= parents[0]
        if is_kept:
            self._members.append(member)
        return is_kept

    def _walk(self, rng: np.random.Generator) -> Candidate:
        ranked = self._ranked()
        for member in ranked:
            if self._accepts(member.candidate, rng):
                return member.candidate
        for seed in list(self._seeds):
            if self._accepts(seed, rng):
                self._seeds.remove(seed)
                self._seeds.append(seed)
                return seed
        everyone = [member.candidate for member in ranked] + self._seeds
        return everyone[rng.integers(len(everyone))]

    def _accepts(self, candidate: Candidate, rng: np.random.Generator) -> bool:
        return bool(rng.random() < OFFSPRING_DECAY ** self._children[candidate.name])

    def _ranked(self) -> list[Member]:
        """Return the members from the best score down, the newest first among equals."""
        numbered = sorted(enumerate(self._members), key=lambda pair: (pair[1].score, pair[0]), reverse=True)
        return [member for _, member in numbered]
