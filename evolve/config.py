"""How much an evolution may spend and how it judges: one frozen configuration, read from one TOML file."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import get_args, get_type_hints

from evolve.hparams import DataHParams, OptimiserHParams
from models.errors import InvalidConfig
from models.route import Scalar

PRESETS = Path(__file__).parent / "presets"
MUTATIONS = ("rate", "learned")
MAX_THREADS = 256  # of one candidate: more is a slip of the keyboard
MAX_DRAWN = 256  # children for each that is trained: each new adapter is written to disk until the run ends


@dataclass(frozen=True, slots=True)
class EvolveConfig:
    """Settings of one task iteration. The same configuration and seed give the same winner."""

    generations: int = 4
    children_per_generation: int = 4
    first_children: int | None = None  # of the first generation, where that is not to be as many: it tries the seeds
    minutes: float | None = None  # instead of a number of generations: go on while one more seems to fit
    epochs: float = 4.0  # training of one candidate, in passes over the training images
    max_images: int = 20_000  # training of one candidate, in images, however long an epoch is
    growth: float = 1.0  # each generation's candidates train this many times as long as those of the one before
    batch_size: int = 64
    validations: int = 4  # times a candidate is validated within its training; its best weights are kept
    image_size: int | None = None  # pixels, where the search starts; None: the root's own
    min_image_size: int = 0  # pixels, how small a candidate's images may become
    max_image_size: int | None = None  # pixels, how large: this and max_depth bound what a request costs
    depth: int | None = None  # blocks, where the search starts; None: all of the root's that max_depth allows
    min_depth: int = 0  # blocks, how short a candidate may become, but for a parent's own that `parents` names
    max_depth: int | None = None  # blocks, how long, with the same exception; None: all of the root's
    depth_jump: bool = False  # start also where a linear probe on the root, after each block, is good enough
    inserts_adapters: bool = True
    mutation: str = "rate"  # "rate": one probability µ for all actions; "learned": each action learns its own
    mutation_rate: float = 0.20  # µ, or where each action's probability starts
    clone_rate: float | None = None  # of cloning each component, where that is not to be µ; only with "rate"
    learning_rate: float = 0.01  # this and the following: where the search starts
    warmup_ratio: float = 0.1
    adapter_dim: int = 32
    crop_area_min: float = 1.0
    crop_aspect_min: float = 1.0
    flip: bool = False
    size_penalty: float = 0.99  # quality is multiplied by this to the power of accounted parameters / the root's
    compute_penalty: float = 0.99  # and by this to the power of FLOPs / the root's
    selection_margin: float = 0.0  # standard errors by which a cheaper candidate may be worse and still be chosen
    seed: int = 0
    threads: int = 1  # per candidate in training; part of the configuration because sums depend on it
    activation_mib: int = 4096  # of disk that activations of frozen components may take while a task evolves
    bf16_activations: bool = False  # keep them in half the bytes, rounded to bfloat16
    bf16_products: bool = False  # multiply matrices in bfloat16: fast on GPUs, with AMX, on AMD's Zen 5
    parents: str = ""  # tasks whose routes are tried first, however many blocks they have, separated by commas
    anytime: bool = False  # publish each candidate that is the best so far at once, once one beats guessing
    rank_parents: bool = False  # try only the seeds whose features suit the task best, by their H-score, not all
    rank_images: int = 128  # that each seed's features are computed for, to rank it
    rank_children: int = 1  # drawn for each that is trained: the one that by its recipe promises most
    probe_head: bool = False  # a new head starts from a linear probe's weights instead of zeros
    average_weights: bool = False  # a moving average of the weights is what is validated and kept
    halving: bool = False  # successive halving: at each validation the worse half of a generation is stopped for good
    halving_from: int = 1  # the first validation at which it is

    def __post_init__(self) -> None:
        for name in ("generations", "children_per_generation", "batch_size", "validations", "max_images"):
            self._require(name, getattr(self, name) >= 1, "a whole number from 1")
        self._require(
            "first_children", self.first_children is None or self.first_children >= 1, "a whole number from 1"
        )
        is_drawn = 1 <= self.rank_children <= MAX_DRAWN
        self._require("rank_children", is_drawn, f"a whole number from 1 (1 = rank none) to {MAX_DRAWN}")
        self._require("rank_images", self.rank_images >= 2, "a whole number from 2")
        is_a_validation = 1 <= self.halving_from <= self.validations
        self._require("halving_from", is_a_validation, f"a whole number from 1 to validations = {self.validations}")
        self._require("halving_from", self.halving or self.halving_from == 1, "1, or set halving = true as well")
        self._require("threads", 1 <= self.threads <= MAX_THREADS, f"a whole number from 1 to {MAX_THREADS}")
        self._require("seed", self.seed >= 0, "a whole number from 0")
        self._require("activation_mib", self.activation_mib >= 0, "a whole number from 0 (0 = keep none)")
        self._require("minutes", self.minutes is None or self.minutes > 0, "a number above 0")
        self._require("epochs", self.epochs > 0, "a number above 0")
        self._require("growth", self.growth >= 1, "a number from 1 (1 = all train equally long)")
        for name in ("size_penalty", "compute_penalty"):
            self._require(name, 0 < getattr(self, name) <= 1, "a number above 0 and up to 1 (1 = off)")
        self._require("selection_margin", self.selection_margin >= 0, "a number from 0")
        self._require("mutation", self.mutation in MUTATIONS, " or ".join(MUTATIONS))
        is_rate = self.clone_rate is None or (0 <= self.clone_rate <= 1 and self.mutation == "rate")
        self._require("clone_rate", is_rate, 'a number from 0 to 1, with mutation = "rate"')
        self._require("min_depth", self.min_depth >= 0, "a whole number from 0")
        largest = float("inf") if self.max_image_size is None else self.max_image_size
        self._require("min_image_size", self.min_image_size >= 0, "a whole number from 0")
        least = f"a whole number from min_image_size = {self.min_image_size}"
        self._require("max_image_size", largest >= self.min_image_size, least)
        longest = float("inf") if self.max_depth is None else self.max_depth
        self._require("max_depth", longest >= self.min_depth, f"a whole number from min_depth = {self.min_depth}")
        is_between = self.depth is None or self.min_depth <= self.depth <= longest
        self._require("depth", is_between, "a whole number between min_depth and max_depth")
        self.first_hparams()  # these check the values that are in ordered lists
        self.first_data(0 if self.image_size is None else self.image_size)

    def allowed(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return those of a root's image sizes that are within the bounds.

        Raises:
            InvalidConfig: none is.
        """
        largest = max(sizes) if self.max_image_size is None else self.max_image_size
        found = tuple(size for size in sizes if self.min_image_size <= size <= largest)
        if not found:
            raise InvalidConfig(
                f"min_image_size = {self.min_image_size}, max_image_size = {self.max_image_size}: this root takes "
                f"{', '.join(map(str, sizes))}, and none of these lies between"
            )
        return found

    def children(self, generation: int) -> int:
        """Return how many candidates a generation has."""
        if generation == 0 and self.first_children is not None:
            return self.first_children
        return self.children_per_generation

    def candidates(self, generations: int) -> int:
        """Return how many candidates the first so many generations have together."""
        return sum(map(self.children, range(generations)))

    def first_hparams(self) -> OptimiserHParams:
        """Return the hyperparameters that a search starts from."""
        return OptimiserHParams(
            mutation_rate=self.mutation_rate,
            learning_rate=self.learning_rate,
            warmup_ratio=self.warmup_ratio,
            adapter_dim=self.adapter_dim,
        )

    def first_data(self, image_size: int) -> DataHParams:
        """Return the data hyperparameters that a search starts from."""
        return DataHParams(image_size, self.crop_area_min, self.crop_aspect_min, self.flip)

    def settings(self) -> dict[str, Scalar]:
        """Return every setting with its value, but for those left to the root."""
        values = asdict(self)
        values |= {name: float(values[name]) for name, hint in get_type_hints(EvolveConfig).items() if hint is float}
        return {name: value for name, value in values.items() if value is not None}

    def _require(self, name: str, is_allowed: bool, allowed: str) -> None:
        if not is_allowed:
            raise InvalidConfig(f"{name} = {getattr(self, name)}: use {allowed}")


def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def setting_names() -> tuple[str, ...]:
    return tuple(field.name for field in fields(EvolveConfig))


def load_config(path: Path | None, assignments: Sequence[str] = (), *, preset: str | None = None) -> EvolveConfig:
    """Return the configuration of a preset, with a TOML file's keys on top and `assignments` above all.

    Args:
        path: a file whose keys are fields of `EvolveConfig`; None for none.
        assignments: `key=value`, the value in TOML's notation; a text may go without quotes.
        preset: the name of a file in `evolve/presets`; None for the defaults.

    Raises:
        InvalidConfig: unreadable, an unknown key or preset (the message lists the known), or a value of a wrong
            type or range.
    """
    values: dict[str, object] = {}
    if preset is not None:
        values |= _parse(_read_preset(preset), source=f"preset {preset}")
    if path is not None:
        values |= _parse(_read(path), source=str(path))
    for assignment in assignments:
        values |= _parse(_quoted(assignment), source=f"--set {assignment}")
    return EvolveConfig(**values)  # type: ignore[arg-type]  # each was checked by _parse


def _read_preset(name: str) -> str:
    if name not in preset_names():
        meant = get_close_matches(name, preset_names(), n=1)
        hint = f" (did you mean {meant[0]}?)" if meant else ""
        raise InvalidConfig(f"there is no preset {name!r}{hint}; presets: {', '.join(preset_names())}")
    return _read(PRESETS / f"{name}.toml")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"the configuration {path} cannot be read: {error}") from error


def _quoted(assignment: str) -> str:
    """Put quotes around the value of a text setting, which a shell has taken away, and around what is no value."""
    name, equals, value = (part.strip() for part in assignment.partition("="))
    is_text = get_type_hints(EvolveConfig).get(name) is str and not value.startswith(('"', "'"))
    if equals and (is_text or not _is_toml(assignment)):
        return f"{name} = {json.dumps(value, ensure_ascii=False)}"
    return assignment


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _parse(text: str, *, source: str) -> dict[str, object]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{source} is not TOML: {error}; write key = value") from error
    known = setting_names()
    unknown = sorted(values.keys() - set(known))
    if unknown:
        named = ", ".join(unknown)
        meant = [name for name in known if unknown[0] in name] or get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean {' or '.join(meant[:3])}?)" if meant else ""
        raise InvalidConfig(f"{source}: unknown key {named}{hint}; known keys: {', '.join(known)}")
    hints = get_type_hints(EvolveConfig)
    for name, value in values.items():
        _check_type(name, value, hints[name], source)
    return values


def _check_type(name: str, value: object, hint: type, source: str) -> None:
    wanted = next(kind for kind in get_args(hint) or (hint,) if kind is not type(None))
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    accepted: tuple[type, ...] = (int, float) if wanted is float else (wanted,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        raise InvalidConfig(f"{source}: {name} = {value!r}: {kinds[wanted]} is needed")
