"""Frozen prefixes: the components before a candidate's first own one, and which of them to compute only once.

The candidates of a generation see the same batches, so a prefix that several share, or that one passes
in every epoch, is computed once for all images and kept (`evolve/activations.py`). What is kept follows
from the candidates and the plan alone, never from the machine: a resumed run computes the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evolve.activations import Activations, activations_name
from evolve.candidate import Candidate, Part
from evolve.hparams import DataHParams
from evolve.task import Task
from evolve.train import TrainPlan

ImageSet = Literal["train", "val"]


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first components of a route; `ends_body` if final norm and head are all that follows."""

    parts: tuple[Part, ...]
    ends_body: bool

    @property
    def key(self) -> tuple[str, ...]:
        """What the activations behind it follow from, but for the images."""
        return (*self.ids, "class token") if self.ends_body else self.ids

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(part.component.id for part in self.parts)

    def follows_from(self, other: "Prefix") -> bool:
        """Whether the activations behind this prefix can be computed from those behind `other`, or are those."""
        if other.ends_body:
            return self.key == other.key
        return self.ids[: len(other.parts)] == other.ids


@dataclass(frozen=True, slots=True)
class Shared:
    """Activations behind a prefix for a set of images, and the longest shorter one to compute them from."""

    prefix: Prefix
    images: ImageSet
    activations: Activations
    source: "Shared | None"


@dataclass(frozen=True, slots=True)
class Sharing:
    """What a generation shares, the shorter prefixes first."""

    data: DataHParams
    shared: tuple[Shared, ...]

    def longest(self, candidate: Candidate, images: ImageSet) -> Shared | None:
        """Return the longest shared prefix of a candidate for a set of images."""
        return _longest(frozen_prefix(candidate), images, self.shared)


def frozen_prefix(candidate: Candidate) -> Prefix:
    """Return the components before the first own one; none if an embedding is the candidate's own.

    Patches alone are cheap to embed, so a prefix that ends before the position embedding is not worth keeping.
    """
    owned = [at for at, part in enumerate(candidate.parts) if part.is_own]
    norm = next(at for at, part in enumerate(candidate.parts) if part.component.kind == "norm")
    first = min([*owned, norm])
    if first < 2:
        return Prefix((), ends_body=False)
    return Prefix(candidate.parts[:first], ends_body=first == norm)


def plan_sharing(candidates: Sequence[Candidate], task: Task, plan: TrainPlan, folder: Path) -> Sharing:
    """Return what the candidates of one generation share, within the plan's limit of bytes.

    Where every epoch sees the same pixels the rows are the images themselves, otherwise the images of all
    batches in turn, augmented.
    """
    data = candidates[0].data
    prefixes = {prefix.key: prefix for prefix in map(frozen_prefix, candidates) if prefix.parts}
    wanted: list[tuple[int, Shared]] = []
    for images in ("train", "val"):
        for prefix in prefixes.values():
            users = sum(frozen_prefix(candidate).follows_from(prefix) for candidate in candidates)
            activations = _activations(prefix, images, data, task, plan, folder)
            passes = plan.validations if images == "val" else plan.steps * plan.batch_size / activations.rows
            if users * passes > 1:
                saved = round(users * passes * activations.rows) * len(prefix.parts)
                wanted.append((saved, Shared(prefix, images, activations, source=None)))
    kept: list[Shared] = []
    room = plan.activation_bytes
    for _, shared in sorted(wanted, key=lambda pair: -pair[0]):
        if shared.activations.num_bytes <= room:
            room -= shared.activations.num_bytes
            kept.append(shared)
    return Sharing(data, _chained(kept, plan))


def _chained(kept: Sequence[Shared], plan: TrainPlan) -> tuple[Shared, ...]:
    """Give each prefix the longest shorter one as its source, unless storing has rounded that."""
    chained: list[Shared] = []
    for shared in sorted(kept, key=lambda shared: len(shared.prefix.key)):
        source = None
        if plan.activation_dtype == "float32":
            source = _longest(shared.prefix, shared.images, chained)
        chained.append(Shared(shared.prefix, shared.images, shared.activations, source))
    return tuple(chained)


def _longest(prefix: Prefix, images: ImageSet, among: Sequence[Shared]) -> Shared | None:
    fitting = [shared for shared in among if shared.images == images and prefix.follows_from(shared.prefix)]
    return max(fitting, key=lambda shared: len(shared.prefix.key), default=None)


def _activations(
    prefix: Prefix, images: ImageSet, data: DataHParams, task: Task, plan: TrainPlan, folder: Path
) -> Activations:
    labelled = task.val if images == "val" else task.train
    facts = [*prefix.key, str(data.image_size), str(plan.preprocessing), plan.activation_dtype]
    facts += [images, task.digest, *(["bfloat16 products"] if plan.bf16_products else [])]
    rows = len(labelled)
    if images == "train" and not data.is_plain:
        rows = plan.steps * plan.batch_size
        facts += [str(data), str(plan.seed), str(plan.batch_size), str(rows)]
    dim = plan.network.embed_dim
    shape = (dim,) if prefix.ends_body else (plan.network.num_tokens(data.image_size), dim)
    return Activations(folder / activations_name(facts), rows, shape, plan.activation_dtype)
