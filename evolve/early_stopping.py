"""Stopping candidates that promise nothing: successive halving within a generation, and giving up on what lies
behind the best so far.

Halving compares siblings. Giving up compares with the best member of the population: of 158 of its children on five
tasks, all trained to the end, those that lay more than .01 behind it after half of their training bettered it by .004
on average, those that were ahead by .005 or more by .048.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

from evolve.candidate import Candidate
from evolve.fast_train import Checkpoint, finished
from evolve.pool import WeightPool
from evolve.train import Trained, TrainPlan, validation_steps

StartTraining = Callable[[int, Checkpoint | None, int], "Future[Checkpoint]"]


def train_promising(
    candidates: Sequence[Candidate], start: StartTraining, pool: WeightPool, plan: TrainPlan
) -> Iterator[Trained]:
    """Train a generation, stopping candidates at validations as the plan says, and yield all in the same order.

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
        going_on = promising({place: checkpoints[place].quality for place in going_on}, validations, plan)
    for place, candidate in enumerate(candidates):
        yield finished(candidate, checkpoints[place], pool, plan)


def promising(qualities: Mapping[int, float], validations: int, plan: TrainPlan) -> list[int]:
    """Return the places of the candidates that go on after so many validations.

    Successive halving (Jamieson & Talwalkar 2016), from the plan's validation on: the better half. Of those, and at
    any validation, only what has the quality that the plan asks for.

    Args:
        qualities: of the candidates that were trained so far, by place: the best of their validations.
        validations: that they have had.
        plan: the generation's.
    """
    ranked = sorted(qualities, key=lambda place: (-qualities[place], place))
    if plan.halving and validations >= plan.halving_from:
        ranked = ranked[: better_half(len(ranked))]
    return sorted(place for place in ranked if not is_given_up(qualities[place], validations, plan))


def is_given_up(quality: float, validations: int, plan: TrainPlan) -> bool:
    """Say whether a candidate that had so many validations lies too far behind the best so far."""
    return bool(plan.needed) and quality < plan.needed[validations - 1]


def needed_qualities(best: float, images: int, plan: TrainPlan, margin: float) -> tuple[float, ...]:
    """Return what a candidate's best validation accuracy has to be at each of its validations.

    That of the best so far, less `margin` standard errors at the start of the training, falling evenly to none at
    its end: what is behind may still catch up.

    Args:
        best: validation accuracy of the best so far.
        images: that it was measured on.
        plan: of the generation.
        margin: standard errors.
    """
    error = math.sqrt(best * (1 - best) / images)
    shares = [step / plan.steps for step in sorted(validation_steps(plan))]
    return tuple(best - margin * error * (1 - share) for share in shares)


def margin_after(given_up_in_a_row: int, margin: float) -> float:
    """Return the standard errors to be used after so many candidates that were given up one after another.

    Twice as many after each: where training itself first costs accuracy, a fixed margin would stop everything.
    """
    return float(margin * 2**given_up_in_a_row)


def better_half(candidates: int) -> int:
    """Return how many of so many candidates go on after a validation."""
    return math.ceil(candidates / 2)
