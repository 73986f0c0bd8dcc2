"""What accuracy a child may be expected to reach, told from its recipe before anything of it is trained.

A performance predictor (White et al. 2021, "How Powerful are Performance Predictors in Neural Architecture Search?",
arXiv 2104.01177) of the simplest kind: ridge regression on what is written down of a candidate, fitted to the journal's
candidates of other tasks and to the task's own so far. It looks at no image.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evolve.candidate import Candidate
from evolve.journal import CandidateRecord, Journal, trained_whole
from evolve.population import Member
from models.names import TaskName
from models.release import Release
from models.route import Route
from models.store import Store

PENALTY = 10.0  # of the squared weights, on features of unit variance: on other tasks 3 to 100 rank alike
OWN_WEIGHT = 3.0  # of an example of the task itself; those of others count 1. On other tasks 3 and 10 rank alike
BARREN_DECAY = 0.5  # of what a parent's next child is expected to gain, by a child that scored less
SAME = 1e-9  # standard deviation of a feature up to which it is the same for all, but for rounding
UNKNOWN = 0.5  # accuracy that is assumed where there is none to go by
LARGEST_GAIN = 0.5  # and loss: a training that failed is to say no more than that

Features = Float[np.ndarray, " features"]
Linear = Callable[[Features], float]


@dataclass(frozen=True, slots=True)
class Example:
    """What tells a candidate from its like, and the share of the baseline's errors that it took away, or added."""

    features: Features
    gain: float


@dataclass(frozen=True, slots=True)
class Examples:
    """What trained candidates teach.

    A kept candidate's child is held against its parent. If it is less accurate it has gained nothing, however much it
    lost: hardly ever is it kept then, and what is not kept does no harm (in the manner of expected improvement, Mockus
    et al. 1978, but over the parent). Of a seed nobody knows the accuracy on the task, so a seed's child is held
    against the mean of its like in the iteration, its recipe against the mean recipe.
    """

    of_seeds: tuple[Example, ...] = ()
    of_members: tuple[Example, ...] = ()

    def __len__(self) -> int:
        return len(self.of_seeds) + len(self.of_members)

    def __add__(self, other: "Examples") -> "Examples":
        return Examples(self.of_seeds + other.of_seeds, self.of_members + other.of_members)


@dataclass(frozen=True, slots=True)
class Level:
    """What an iteration's children of seeds came to, and what they were like, in the mean."""

    accuracy: float
    recipe: Features

    @classmethod
    def of(cls, records: Sequence[CandidateRecord]) -> "Level":
        accuracy = float(np.mean([record.quality for record in records]))
        return cls(accuracy, _mean_recipe([record.candidate for record in records]))


def expected_accuracies(
    children: Sequence[Candidate],
    kept: Mapping[str, Member],
    records: Sequence[CandidateRecord],
    *,
    own: Examples,
    earlier: Examples,
) -> list[float]:
    """Return the accuracy that each child may be expected to reach; far from all recipes known it may leave 0 to 1.

    Of a kept candidate's child it is that of the better of the two, child or parent: what there is to go on from. What
    is expected to be gained halves with each child of the same parent that scored less than the parent: children of
    parents with no such child gained .05 of the errors, with two .006 (the five other tasks of benchmarks/evolve).
    Before any child of a seed was trained, what such children come to is not known: then half are taken to be right,
    which tells them apart from each other only.

    Args:
        children: untrained, of one task.
        kept: candidates by name; other parents are seeds.
        records: of the iteration's candidates so far.
        own: what these teach.
        earlier: what other iterations teach.
    """
    of_seeds = _ridge(own=own.of_seeds, earlier=earlier.of_seeds)
    of_members = _ridge(own=own.of_members, earlier=earlier.of_members)
    whole = trained_whole(records)
    worse = Counter(one.candidate.parent for one in whole if _is_worse(one, kept))
    trained = _children_of_seeds(whole, kept)
    level = Level.of(trained) if trained else Level(UNKNOWN, _mean_recipe(children))

    def expected(child: Candidate) -> float:
        parent = kept.get(child.parent)
        if parent is not None:
            gain = max(of_members(changes(child, parent.candidate)), 0.0)
            return _after(parent.quality, gain * BARREN_DECAY ** worse[child.parent])
        return _after(level.accuracy, of_seeds(recipe(child) - level.recipe))

    return [expected(child) for child in children]


def examples(records: Sequence[CandidateRecord], kept: Mapping[str, Member]) -> Examples:
    """Return what the candidates of one iteration teach: those that were trained to the end.

    Args:
        records: of the iteration.
        kept: candidates by name; other parents are seeds.
    """
    whole = trained_whole(records)
    of_members = tuple(
        Example(changes(one.candidate, parent.candidate), max(_gain(parent.quality, one.quality), 0.0))
        for one in whole
        if (parent := kept.get(one.candidate.parent)) is not None
    )
    of_seeds = _children_of_seeds(whole, kept)
    if not of_seeds:
        return Examples(of_members=of_members)
    level = Level.of(of_seeds)
    held = [Example(recipe(one.candidate) - level.recipe, _gain(level.accuracy, one.quality)) for one in of_seeds]
    return Examples(tuple(held), of_members)


def earlier_examples(store: Store, release: Release, routes: Mapping[TaskName, Route], *, own: TaskName) -> Examples:
    """Return what the journal tells of the iterations that routes came from.

    Those count that had ended by `release`, so that a run that is taken up again learns from the same.

    Args:
        store: has the journal.
        release: that the present iteration began from.
        routes: by the names that their tasks have now.
        own: the active task; of other private tasks nothing is learnt.
    """
    found = Examples()
    for task, route in routes.items():
        journal = Journal(store, route.lineage.searched_as, route.lineage.iteration)
        end = journal.end()
        if end is None or end.winner != route.lineage.candidate or end.release > release.number:
            continue
        if task == own or not route.private:
            records = journal.records()
            found += examples(records, {record.candidate.name: record.member for record in records})
    return found


def recipe(candidate: Candidate) -> Features:
    """Return what tells children of seeds apart: how fast they learn, how soon, and how much of them does."""
    own = sum(part.component.kind == "block" and part.is_own for part in candidate.parts)
    adapters = sum(part.component.kind == "adapter" for part in candidate.parts)
    hparams = candidate.hparams
    return np.array([math.log(hparams.learning_rate), hparams.warmup_ratio, adapters, own / max(candidate.depth, 1)])


def changes(child: Candidate, parent: Candidate) -> Features:
    """Return what tells children of kept candidates apart: larger or smaller steps than before, more or fewer blocks.

    The rest of the recipe was tried, and said nothing of how much such a child gains.
    """
    deeper = child.depth - parent.depth
    return np.array([_log_step(child) - _log_step(parent), max(deeper, 0), max(-deeper, 0)])


def _log_step(candidate: Candidate) -> float:
    """Return the logarithm of how far a gradient moves the weights in the long run."""
    return math.log(candidate.hparams.learning_rate / (1 - candidate.hparams.momentum))


def _mean_recipe(candidates: Sequence[Candidate]) -> Features:
    mean: Features = np.mean([recipe(candidate) for candidate in candidates], axis=0)
    return mean


def _children_of_seeds(records: Sequence[CandidateRecord], kept: Mapping[str, Member]) -> list[CandidateRecord]:
    """Return them, but for those of the task's own former route: it may be good at the task, unlike all others."""

    def is_former(parent: str, child: str) -> bool:
        return parent.startswith(f"{child.partition('/')[0]}@")

    return [
        record
        for record in records
        if record.candidate.parent not in kept and not is_former(record.candidate.parent, record.candidate.name)
    ]


def _gain(baseline: float, accuracy: float) -> float:
    gain = (accuracy - baseline) / max(1 - baseline, np.finfo(float).eps)
    return float(np.clip(gain, -LARGEST_GAIN, LARGEST_GAIN))


def _after(baseline: float, gain: float) -> float:
    return baseline + (1 - baseline) * gain


def _is_worse(record: CandidateRecord, kept: Mapping[str, Member]) -> bool:
    parent = kept.get(record.candidate.parent)
    return parent is not None and record.score < parent.score


def _ridge(*, own: Sequence[Example], earlier: Sequence[Example]) -> Linear:
    taught = (*own, *earlier)
    if not taught:
        return lambda _: 0.0
    inputs, gains = np.stack([one.features for one in taught]), np.array([one.gain for one in taught])
    weights = np.array([OWN_WEIGHT] * len(own) + [1.0] * len(earlier))
    mean, mean_gain = np.average(inputs, axis=0, weights=weights), np.average(gains, weights=weights)
    scale = np.sqrt(np.average((inputs - mean) ** 2, axis=0, weights=weights))
    scale[scale < SAME] = 1  # it tells nothing
    scaled = (inputs - mean) / scale
    weighted = scaled.T * weights
    slopes = np.linalg.solve(weighted @ scaled + PENALTY * np.eye(len(mean)), weighted @ (gains - mean_gain))
    return lambda features: float(mean_gain + (features - mean) / scale @ slopes)
