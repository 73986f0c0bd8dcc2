"""A moving average of weights in training: what is validated and kept in their place, where that is wanted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from evolve.network import load_weights, weights_of
from models.weights import Weights

ETA = 8  # of the decay: 0 is the mean of all steps; 2 does as well on the tuning tasks of benchmarks/evolve, 24 worse


class MovingAverage:
    """Of the weights of modules: most of it from the last ninth of the steps so far.

    Averaging with polynomial decay (Shamir & Zhang 2013, "Stochastic Gradient Descent for Non-smooth Optimization",
    arXiv 1212.1824), which needs no horizon: after half the steps it has forgotten the beginning just as at the end.
    """

    def __init__(self, modules: Sequence[nn.Module], start: Sequence[Weights] = ()) -> None:
        """Begin with the weights that `modules` have, or go on from averages, one for each."""
        self._modules = modules
        self._parameters = [parameter for module in modules for parameter in module.parameters()]
        self._values = [parameter.detach().clone() for parameter in self._parameters]
        if start:
            with self.in_place():
                for module, weights in zip(modules, start, strict=True):
                    load_weights(module, weights)

    def add(self, step: int) -> None:
        """Take in the present weights, after so many steps; the first ones count whole."""
        share = (ETA + 1) / (step + ETA)
        for value, parameter in zip(self._values, self._parameters, strict=True):
            value.lerp_(parameter.detach(), share)

    def weights(self) -> tuple[Weights, ...]:
        """Return copies, one for each module."""
        with self.in_place():
            return tuple(map(weights_of, self._modules))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the modules have the average for weights meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for at, parameter in enumerate(self._parameters):
            self._values[at], parameter.data = parameter.data, self._values[at]
