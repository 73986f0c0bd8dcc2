"""How probable each mutation is: one number for all, or one for each action, learnt as the evolution goes.

Learnt rates are those of µ2Net's later version (Gesmundo 2022, arXiv 2209.07326, the "learned µ function"):
every action has a probability of its own, which travels with the candidate and moves along µ's ordered list.
Ours is the order: rates move first and then decide about the child that carries them, so what makes good
children is inherited with them (self-adaptation, as in evolution strategies).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evolve.hparams import MUTATION_RATES, step

CLONE = "clone "  # what the names of actions that clone a component start with


@dataclass(frozen=True, slots=True)
class MutationRates:
    """Probabilities of a candidate's actions. An action is named for what it does: "depth", "clone block 3"."""

    common: float  # µ: of each action without a rate of its own
    own: Mapping[str, float] = field(default_factory=dict)
    is_learned: bool = False
    cloning: float | None = None  # of cloning a component; None: as all others

    def happens(self, action: str, rng: np.random.Generator) -> bool:
        """Draw whether an action happens; one draw, whatever the rate."""
        rate = self.own.get(action, self.common)
        if self.cloning is not None and action.startswith(CLONE):
            rate = self.cloning
        return bool(rng.random() < rate)

    def moved(self, action: str, rng: np.random.Generator) -> float:
        """Return the action's rate for a child: with probability µ one step up or down the list."""
        rate = self.own.get(action, self.common)
        return step(rate, MUTATION_RATES, rng) if rng.random() < self.common else rate


class Draws:
    """Draws the mutations of one child, and remembers the rates that the child takes along."""

    def __init__(self, rates: MutationRates, rng: np.random.Generator) -> None:
        self._rates = rates
        self._rng = rng
        self.own: dict[str, float] = dict(rates.own)  # rates of the child that differ from µ

    def happens(self, action: str) -> bool:
        if not self._rates.is_learned:
            return self._rates.happens(action, self._rng)
        if action == "mutation_rate":  # µ itself stays: it is where each action's rate starts
            return False
        rate = self._rates.moved(action, self._rng)
        self.own.pop(action, None)
        if rate != self._rates.common:
            self.own[action] = rate
        return bool(self._rng.random() < rate)
