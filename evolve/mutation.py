"""From a parent to a child: clone, insert adapters, change depth, move hyperparameters (µ2Net, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evolve.ancestry import Ancestry
from evolve.candidate import Candidate, Part
from evolve.hparams import DataHParams, mutated
from evolve.pool import WeightPool
from evolve.rates import CLONE, Draws, MutationRates
from models.component import ComponentKind, ComponentRecord
from models.network import NetworkShape
from models.root import resized_pos_embed
from models.weights import Weights, num_parameters

ADAPTER_INIT_STD = 0.02  # of the down-projection, as a ViT's linear layers; the up-projection starts at zero

DEPTH = "depth="  # what the names of mutations of depth start with

Layer = tuple[Part, ...]  # a block with the adapter before it, if any


@dataclass(frozen=True, slots=True)
class Nursery:
    """What making children takes besides the parent: the root to fall back on and where new weights go."""

    root: Candidate
    network: NetworkShape
    labels: tuple[str, ...]
    pool: WeightPool
    ancestry: Ancestry
    min_depth: int
    max_depth: int
    inserts_adapters: bool = True
    learns_rates: bool = False
    clone_rate: float | None = None

    def draws(self, parent: Candidate, rng: np.random.Generator) -> Draws:
        """Return what decides about the mutations of a child of `parent`."""
        own = parent.rates if self.learns_rates else {}
        return Draws(MutationRates(parent.hparams.mutation_rate, own, self.learns_rates, self.clone_rate), rng)

    def new_part(self, kind: ComponentKind, weights: Weights) -> Part:
        record = ComponentRecord(kind, self.pool.put(weights), num_parameters(weights))
        return Part(record, is_own=True)

    def new_head(self) -> Part:
        """Return a head that knows nothing yet: zeros."""
        classes, dim = len(self.labels), self.network.embed_dim
        return self.new_part(
            "head", {"weight": np.zeros((classes, dim), np.float32), "bias": np.zeros(classes, np.float32)}
        )


def mutate(parent: Candidate, data: DataHParams, nursery: Nursery, name: str, rng: np.random.Generator) -> Candidate:
    """Return a child of `parent`, untrained.

    Each mutation happens with the parent's mutation rate µ, or with a rate of its own where rates are learnt;
    final norm and head are always the child's own.

    Args:
        parent: a kept candidate of the active task, or a seed.
        data: the generation's data hyperparameters.
        nursery: for the active task.
        name: of the child.
        rng: draws everything.
    """
    draws = nursery.draws(parent, rng)
    hparams, mutations = mutated(parent.hparams, draws.happens, rng)
    log = list(mutations)
    patch_embed, pos_embed, *middle, norm = (
        part for part in resized(parent, data, nursery).parts if part.component.kind != "head"
    )
    layers = _resized_depth(_layers(middle), nursery, draws, rng, log)
    if nursery.inserts_adapters:
        layers = [
            _with_adapter(layer, at, hparams.adapter_dim, nursery, draws, rng, log) for at, layer in enumerate(layers)
        ]
    embed = [_cloned(part, "", draws, log) for part in (patch_embed, pos_embed)]
    body = [_cloned(part, f" {at}", draws, log) for at, layer in enumerate(layers) for part in layer]
    parts = (*embed, *body, _owned(norm), _head(parent, nursery))
    return Candidate(name, parent.name, parts, nursery.labels, hparams, data, tuple(log), draws.own)


def shortened(candidate: Candidate, depth: int, name: str) -> Candidate:
    """Return `candidate` with its lowest `depth` blocks alone, as a start of its own."""
    patch_embed, pos_embed, *middle, norm = (part for part in candidate.parts if part.component.kind != "head")
    kept = _layers(middle)[:depth]
    parts = (patch_embed, pos_embed, *(part for layer in kept for part in layer), norm)
    return replace(candidate, name=name, parts=parts, mutations=(f"{DEPTH}{depth}",))


def _layers(middle: Sequence[Part]) -> list[Layer]:
    layers: list[Layer] = []
    pending: Layer = ()
    for part in middle:
        pending = (*pending, part)
        if part.component.kind == "block":
            layers.append(pending)
            pending = ()
    return layers


def resized(candidate: Candidate, data: DataHParams, nursery: Nursery) -> Candidate:
    """Return the candidate at another image size.

    Its position embedding is the nearest ancestor's of that size, its own first, else the root's resampled.
    """
    patch_embed, _, *others = candidate.parts
    return replace(candidate, data=data, parts=(patch_embed, _placed(candidate, data.image_size, nursery), *others))


def _placed(candidate: Candidate, image_size: int, nursery: Nursery) -> Part:
    for ancestor in nursery.ancestry.of(candidate):
        if ancestor.data.image_size == image_size:
            return ancestor.parts[1]
    root_part = nursery.root.parts[1]
    weights = nursery.pool.get(root_part.component.id)
    resampled = nursery.new_part("pos_embed", resized_pos_embed(weights, image_size, nursery.network.patch_size))
    return Part(resampled.component, is_own=False)  # follows from the root: shared unless it is cloned


def _resized_depth(
    layers: list[Layer], nursery: Nursery, draws: Draws, rng: np.random.Generator, log: list[str]
) -> list[Layer]:
    """Perhaps drop the top block, or put back the root's block that belongs there."""
    if not draws.happens("depth"):
        return layers
    if rng.random() < 0.5 and len(layers) > nursery.min_depth:
        log.append(f"{DEPTH}{len(layers) - 1}")
        return layers[:-1]
    root_layers = _layers([part for part in nursery.root.parts if part.component.kind == "block"])
    if len(layers) < min(len(root_layers), nursery.max_depth):
        log.append(f"{DEPTH}{len(layers) + 1}")
        return [*layers, root_layers[len(layers)]]
    return layers


def _with_adapter(
    layer: Layer,
    at: int,
    adapter_dim: int,
    nursery: Nursery,
    draws: Draws,
    rng: np.random.Generator,
    log: list[str],
) -> Layer:
    if len(layer) > 1 or not draws.happens(f"adapter {at}"):
        return layer
    log.append(f"adapter before block {at}")
    return (nursery.new_part("adapter", new_adapter(nursery.network.embed_dim, adapter_dim, rng)), *layer)


def new_adapter(embed_dim: int, adapter_dim: int, rng: np.random.Generator) -> Weights:
    """Return an adapter that changes nothing yet: its up-projection is zero."""
    down = rng.normal(0, ADAPTER_INIT_STD, (adapter_dim, embed_dim))
    return {
        "norm.weight": np.ones(embed_dim, np.float32),
        "norm.bias": np.zeros(embed_dim, np.float32),
        "down.weight": down.astype(np.float32),
        "down.bias": np.zeros(adapter_dim, np.float32),
        "up.weight": np.zeros((embed_dim, adapter_dim), np.float32),
        "up.bias": np.zeros(embed_dim, np.float32),
    }


def changes_nothing(part: Part, pool: WeightPool) -> bool:
    """Say whether a part is an adapter as `new_adapter` makes it."""
    return part.component.kind == "adapter" and not pool.get(part.component.id)["up.weight"].any()


def _cloned(part: Part, place: str, draws: Draws, log: list[str]) -> Part:
    action = f"{CLONE}{part.component.kind}{place}"
    if part.is_own or not draws.happens(action):
        return part
    log.append(action)
    return _owned(part)


def _owned(part: Part) -> Part:
    return Part(part.component, is_own=True, momentum=part.momentum)


def _head(parent: Candidate, nursery: Nursery) -> Part:
    """Return the parent's head if it tells the same labels apart and is this task's, else a new one of zeros."""
    last = parent.parts[-1]
    if last.component.kind == "head" and last.is_own and parent.labels == nursery.labels:
        return last
    return nursery.new_head()
