"""Successive halving: at validations the worse half of a generation's candidates is stopped for good."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

from evolve.candidate import Candidate
from evolve.fast_train import Checkpoint, finished
from evolve.pool import WeightPool
from evolve.train import Trained, TrainPlan, validation_steps

StartTraining = Callable[[int, Checkpoint | None, int], "Future[Checkpoint]"]


def train_halved(
    candidates: Sequence[Candidate], start: StartTraining, pool: WeightPool, plan: TrainPlan
) -> Iterator[Trained]:
    """Train a generation, stopping the worse half at each validation from the plan's on; yield all in the same order.

    Args:
        candidates: of one generation.
        start: begins to train the candidate at a place, from a checkpoint of it, up to so many validations.
        pool: takes the trained weights in.
        plan: the generation's.
    """
    checkpoints: dict[int, Checkpoint] = {}
    going_on = list(range(len(candidates)))
    for validations in range(1, len(validation_steps(plan)) + 1):
        futures = {place: start(place, checkpoints.get(place), validations) for place in going_on}
        checkpoints |= {place: future.result() for place, future in futures.items()}
        if validations >= plan.halving_from:
            going_on = better_half({place: checkpoints[place].quality for place in going_on})
    for place, candidate in enumerate(candidates):
        yield finished(candidate, checkpoints[place], pool, plan)


def better_half(qualities: Mapping[int, float]) -> list[int]:
    """Return the places of the candidates that go on, in order (Jamieson & Talwalkar 2016).

    Args:
        qualities: of the candidates that were trained so far, by place: the best of their validations.
    """
    ranked = sorted(qualities, key=lambda place: (-qualities[place], place))
    return sorted(ranked[: num_going_on(len(ranked))])


def num_going_on(candidates: int) -> int:
    """Return how many of so many candidates go on after a validation."""
    return math.ceil(candidates / 2)
