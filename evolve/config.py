"""How much an evolution may spend and how it judges: one frozen configuration, read from one TOML file."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from evolve.hparams import OptimiserHParams
from models.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class EvolveConfig:
    """Settings of one task iteration. The same configuration and seed give the same winner."""

    generations: int = 4
    children_per_generation: int = 4
    epochs: float = 4.0  # training of one candidate, in passes over the training images
    max_images: int = 20_000  # training of one candidate, in images, however long an epoch is
    batch_size: int = 64
    validations: int = 4  # times a candidate is validated within its training; its best weights are kept
    image_size: int | None = None  # pixels, where the search starts; None: the root's own
    mutation_rate: float = 0.20
    learning_rate: float = 0.01
    size_penalty: float = 0.99  # quality is multiplied by this to the power of accounted parameters / the root's
    compute_penalty: float = 0.99  # and by this to the power of FLOPs / the root's
    seed: int = 0
    threads: int = 2  # per candidate in training; part of the configuration because sums depend on it

    def __post_init__(self) -> None:
        for name in ("generations", "children_per_generation", "batch_size", "validations", "max_images", "threads"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} = {getattr(self, name)}: use a whole number from 1")
        if not self.epochs > 0:
            raise InvalidConfig(f"epochs = {self.epochs}: use a number above 0")
        for name in ("size_penalty", "compute_penalty"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidConfig(f"{name} = {getattr(self, name)}: use a number above 0 and up to 1 (1 = off)")
        self.first_hparams()  # checks the values that are in ordered lists

    def first_hparams(self) -> OptimiserHParams:
        """Return the hyperparameters that a search starts from."""
        return OptimiserHParams(mutation_rate=self.mutation_rate, learning_rate=self.learning_rate)


def load_config(path: Path | None, assignments: Sequence[str] = ()) -> EvolveConfig:
    """Return the configuration of a TOML file, its keys the fields of `EvolveConfig`, with `assignments` on top.

    Args:
        path: the file; None for the defaults.
        assignments: `key=value`, the value in TOML's notation.

    Raises:
        InvalidConfig: unreadable, an unknown key (the message lists the known), or a value of a wrong type or range.
    """
    values = {} if path is None else _parse(_read(path), source=str(path))
    for assignment in assignments:
        values |= _parse(assignment, source=f"--set {assignment}")
    return EvolveConfig(**values)  # type: ignore[arg-type]  # each was checked by _parse


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"the configuration {path} cannot be read: {error}") from error


def _parse(text: str, *, source: str) -> dict[str, object]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{source} is not TOML: {error}; write key = value") from error
    known = {field.name: field for field in fields(EvolveConfig)}
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        raise InvalidConfig(f"{source}: unknown key {', '.join(unknown)}; known keys: {', '.join(known)}")
    for name, value in values.items():
        takes_fractions = isinstance(known[name].default, float)
        if isinstance(value, bool) or not isinstance(value, (int, float) if takes_fractions else int):
            kind = "a number" if takes_fractions else "a whole number"
            raise InvalidConfig(f"{source}: {name} = {value!r}: {kind} is needed")
    return values
