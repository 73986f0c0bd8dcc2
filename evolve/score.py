"""The score: quality after the size and compute factors (µ2Net, section 3.3, equation 1)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """score = quality x size_penalty^(accounted parameters / P) x compute_penalty^(FLOPs / F).

    P and F are the root's own. A penalty of 1 switches its factor off.
    """

    size_penalty: float
    compute_penalty: float
    root_parameters: int
    root_flops: int

    def score(self, quality: float, *, accounted_parameters: float, flops: int) -> float:
        size: float = self.size_penalty ** (accounted_parameters / self.root_parameters)
        compute: float = self.compute_penalty ** (flops / self.root_flops)
        return quality * size * compute
