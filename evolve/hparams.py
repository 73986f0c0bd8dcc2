"""The hyperparameters that evolve: each moves one step at a time along an ordered list of values.

The lists are those of the reference (Gesmundo & Dean 2022, table 1 and the published notebook).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np

from models.errors import InvalidConfig
from models.route import Scalar

MUTATION_RATES = tuple(round(0.02 * place, 2) for place in range(1, 16))
COLOUR_STEPS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
YES_NO = (False, True)


@dataclass(frozen=True, slots=True)
class OptimiserHParams:
    """What each candidate has for itself."""

    mutation_rate: float = 0.10  # the paper's µ: probability of each mutation
    learning_rate: float = 0.01
    warmup_ratio: float = 0.1  # share of the steps over which the learning rate grows from 0
    momentum: float = 0.9
    nesterov: bool = False
    schedule: str = "cosine"
    adapter_dim: int = 32  # inner width of adapters to be inserted

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, slots=True)
class DataHParams:
    """What all candidates of a generation share, so that they can share batches. Sizes are in pixels."""

    image_size: int
    crop_area_min: float = 1.0  # 1 = no crop
    crop_aspect_min: float = 1.0
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def is_plain(self) -> bool:
        """Whether every epoch sees the same pixels: no random augmentation."""
        return self == DataHParams(self.image_size)


ORDERED_VALUES: dict[str, tuple[Scalar, ...]] = {
    "mutation_rate": MUTATION_RATES,
    "learning_rate": (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    "warmup_ratio": (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4),
    "momentum": (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99),
    "nesterov": YES_NO,
    "schedule": ("cosine", "constant", "restarts"),
    "adapter_dim": (8, 16, 32, 64, 128),
    "crop_area_min": (0.05, 0.2, 0.5, 0.8, 0.95, 1.0),
    "crop_aspect_min": (0.5, 0.75, 1.0),
    "flip": YES_NO,
    "brightness": COLOUR_STEPS,
    "contrast": COLOUR_STEPS,
    "saturation": COLOUR_STEPS,
    "hue": COLOUR_STEPS,
}  # image_size is missing: its values follow from the root, see `image_sizes`

HParams = TypeVar("HParams", OptimiserHParams, DataHParams)
Value = TypeVar("Value", bound=Scalar)


def image_sizes(*, patch_size: int, largest: int) -> tuple[int, ...]:
    """Return the ordered image sizes: multiples of the patch size up to the root's own size."""
    return tuple(range(patch_size, largest + 1, patch_size))


def mutated(
    hparams: HParams, happens: Callable[[str], bool], rng: np.random.Generator, *, sizes: tuple[int, ...] = ()
) -> tuple[HParams, tuple[str, ...]]:
    """Move each hyperparameter for which `happens` says so one step up or down; say what moved.

    A step beyond either end of a list stays there, so the ends are no more likely than the middle.
    """
    moves: dict[str, Scalar] = {}
    for field in fields(hparams):
        if not happens(field.name):
            continue
        values = sizes if field.name == "image_size" else ORDERED_VALUES[field.name]
        old = getattr(hparams, field.name)
        new = step(old, values, rng)
        if new != old:
            moves[field.name] = new
    child = replace(hparams, **moves)  # type: ignore[arg-type]  # each value comes from its own field's list
    return child, tuple(f"{name}={value}" for name, value in moves.items())


def step(value: Value, values: tuple[Value, ...], rng: np.random.Generator) -> Value:
    """Return the neighbour of `value` above or below, the value itself beyond an end of the list."""
    index = values.index(value) + (1 if rng.random() < 0.5 else -1)
    return values[min(max(index, 0), len(values) - 1)]


def check_values(hparams: OptimiserHParams | DataHParams) -> None:
    """Raise InvalidConfig for a value that is not in its ordered list."""
    for name, values in ORDERED_VALUES.items():
        if hasattr(hparams, name) and getattr(hparams, name) not in values:
            raise InvalidConfig(f"{name} = {getattr(hparams, name)!r}: use one of {', '.join(map(str, values))}")
