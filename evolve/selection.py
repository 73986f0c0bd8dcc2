"""Choosing among the last candidates on few validation images, and what to expect of the one that was chosen.

The best of many candidates on a hundred images is best partly by luck. Two answers, both without further
training: a margin within which the cheaper candidate is taken, and an estimate of the chosen one's accuracy
that is corrected for the choosing, by bootstrap (BBC-CV: Tsamardinos et al. 2018, Machine Learning 107).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from evolve.population import Member

BOOTSTRAPS = 500
MAX_FINALISTS = 32
NO_CHANCE = 3.0  # standard errors below the best, from which on luck cannot have made the difference


@dataclass(frozen=True, slots=True)
class Finalist:
    """A kept candidate with what it got right, image by image of the validation split."""

    member: Member
    is_right: Bool[np.ndarray, " images"]
    cost: float  # accounted parameters and FLOPs, each over the root's

    @property
    def score_factor(self) -> float:
        """What the score makes of the accuracy."""
        return self.member.score / self.member.quality if self.member.quality else 0.0


def contenders(ranked: Sequence[Member], num_images: int, margin: float) -> tuple[Member, ...]:
    """Return the members, ranked by score, who might be the best on other validation images."""
    best = ranked[0]
    variance = max(best.quality * (1 - best.quality), 1 / num_images) / num_images
    reach = max(NO_CHANCE, margin) * (2 * variance) ** 0.5
    return tuple(member for member in ranked[:MAX_FINALISTS] if best.score - member.score <= reach)


def choose(finalists: Sequence[Finalist], margin: float) -> Finalist:
    """Return the cheapest finalist that is hardly worse than the best.

    Hardly worse: its score is lower by at most `margin` standard errors of the difference between the two,
    which is taken image by image, so that what both get right or wrong does not blur it.

    Args:
        finalists: the best one first.
        margin: 0 takes the best one.
    """
    best = finalists[0]

    def is_close(finalist: Finalist) -> bool:
        allowed = margin * standard_error(best.is_right, finalist.is_right)
        return best.member.score - finalist.member.score <= allowed

    close = [best, *(finalist for finalist in finalists[1:] if margin > 0 and is_close(finalist))]
    return min(close, key=lambda finalist: finalist.cost)  # the first, and so the better, of equals


def standard_error(one: np.ndarray, other: np.ndarray) -> float:
    """Return the standard error of the difference of two accuracies on the same images."""
    difference = one.astype(np.float64) - other.astype(np.float64)
    return float(difference.std() / len(difference) ** 0.5)


def expected_accuracy(
    finalists: Sequence[Finalist], chosen: Finalist, margin: float, rng: np.random.Generator
) -> float:
    """Return the accuracy on new images that the chosen finalist may be expected to have.

    The choosing is repeated on images drawn with replacement, and judged on those that were not drawn; by how
    much the first exceeds the second is what choosing on these images flatters. Choosing what does best on
    the drawn images cannot flatter by less than nothing: an estimate below zero is noise of the drawing, so the
    result is never above the accuracy that was measured.
    """
    count = len(chosen.is_right)
    flattery = []
    for _ in range(BOOTSTRAPS):
        drawn = rng.integers(count, size=count)
        left = np.setdiff1d(np.arange(count), drawn)
        if not len(left):
            continue
        again = sorted((_redrawn(finalist, drawn) for finalist in finalists), key=lambda f: -f.member.score)
        winner = choose(again, margin)
        original = next(f for f in finalists if f.member.candidate.name == winner.member.candidate.name)
        flattery.append(winner.member.quality - original.is_right[left].mean())
    return float(np.clip(chosen.member.quality - np.mean(flattery or [0.0]), 0, chosen.member.quality))


def _redrawn(finalist: Finalist, drawn: np.ndarray) -> Finalist:
    is_right = finalist.is_right[drawn]
    quality = float(is_right.mean())
    member = Member(finalist.member.candidate, quality, quality * finalist.score_factor)
    return Finalist(member, is_right, finalist.cost)
