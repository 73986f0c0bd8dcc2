"""From a parent to a child: clone, insert adapters, change depth, move hyperparameters (µ2Net, section 3.1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evolve.candidate import Candidate, Part
from evolve.hparams import DataHParams, mutated
from evolve.pool import WeightPool
from models.component import ComponentKind, ComponentRecord
from models.network import NetworkShape
from models.root import resized_pos_embed
from models.weights import Weights, num_parameters

ADAPTER_INIT_STD = 0.02  # of the down-projection, as a ViT's linear layers; the up-projection starts at zero

Layer = tuple[Part, ...]  # a block with the adapter before it, if any


@dataclass(frozen=True, slots=True)
class Nursery:
    """What making children takes besides the parent: the root to fall back on and where new weights go."""

    root: Candidate
    network: NetworkShape
    labels: tuple[str, ...]
    pool: WeightPool

    def new_part(self, kind: ComponentKind, weights: Weights) -> Part:
        record = ComponentRecord(kind, self.pool.put(weights), num_parameters(weights))
        return Part(record, is_own=True)


def mutate(parent: Candidate, data: DataHParams, nursery: Nursery, name: str, rng: np.random.Generator) -> Candidate:
    """Return a child of `parent`, untrained.

    Each mutation happens with the parent's mutation rate µ; final norm and head are always the child's own.

    Args:
        parent: a kept candidate of the active task, or a seed.
        data: the generation's data hyperparameters.
        nursery: for the active task.
        name: of the child.
        rng: draws everything.
    """
    rate = parent.hparams.mutation_rate
    hparams, mutations = mutated(parent.hparams, rate, rng)
    log = list(mutations)

    def happens() -> bool:
        return bool(rng.random() < rate)

    patch_embed, pos_embed, *middle, norm = (part for part in parent.parts if part.component.kind != "head")
    pos_embed = _placed(pos_embed, parent, data, nursery)
    layers = _resized_depth(_layers(middle), nursery, happens, rng, log)
    layers = [
        _with_adapter(layer, at, hparams.adapter_dim, nursery, happens, rng, log) for at, layer in enumerate(layers)
    ]
    body = [patch_embed, pos_embed, *(part for layer in layers for part in layer)]
    body = [_cloned(part, at, happens, log) for at, part in enumerate(body)]
    parts = (*body, _owned(norm), _head(parent, nursery))
    return Candidate(name, parent.name, parts, nursery.labels, hparams, data, tuple(log))


def _layers(middle: Sequence[Part]) -> list[Layer]:
    layers: list[Layer] = []
    pending: Layer = ()
    for part in middle:
        pending = (*pending, part)
        if part.component.kind == "block":
            layers.append(pending)
            pending = ()
    return layers


def _placed(pos_embed: Part, parent: Candidate, data: DataHParams, nursery: Nursery) -> Part:
    """Return the position embedding for the child's image size: the parent's, else the root's resampled."""
    if data.image_size == parent.data.image_size:
        return pos_embed
    root_part = nursery.root.parts[1]
    if data.image_size == nursery.root.data.image_size:
        return root_part
    weights = nursery.pool.get(root_part.component.id)
    resampled = nursery.new_part("pos_embed", resized_pos_embed(weights, data.image_size, nursery.network.patch_size))
    return Part(resampled.component, is_own=False)  # follows from the root: shared unless it is cloned


def _resized_depth(
    layers: list[Layer], nursery: Nursery, happens: Callable[[], bool], rng: np.random.Generator, log: list[str]
) -> list[Layer]:
    """Perhaps drop the top block, or put back the root's block that belongs there."""
    if not happens():
        return layers
    if rng.random() < 0.5 and layers:
        log.append(f"depth={len(layers) - 1}")
        return layers[:-1]
    root_layers = _layers([part for part in nursery.root.parts if part.component.kind == "block"])
    if len(layers) < len(root_layers):
        log.append(f"depth={len(layers) + 1}")
        return [*layers, root_layers[len(layers)]]
    return layers


def _with_adapter(
    layer: Layer,
    at: int,
    adapter_dim: int,
    nursery: Nursery,
    happens: Callable[[], bool],
    rng: np.random.Generator,
    log: list[str],
) -> Layer:
    if len(layer) > 1 or not happens():
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


def _cloned(part: Part, at: int, happens: Callable[[], bool], log: list[str]) -> Part:
    if part.is_own or not happens():
        return part
    log.append(f"clone {part.component.kind} at {at}")
    return _owned(part)


def _owned(part: Part) -> Part:
    return Part(part.component, is_own=True, momentum=part.momentum)


def _head(parent: Candidate, nursery: Nursery) -> Part:
    """Return the parent's head if it tells the same labels apart and is this task's, else a new one of zeros."""
    last = parent.parts[-1]
    if last.component.kind == "head" and last.is_own and parent.labels == nursery.labels:
        return last
    classes = len(nursery.labels)
    zeros = {
        "weight": np.zeros((classes, nursery.network.embed_dim), np.float32),
        "bias": np.zeros(classes, np.float32),
    }
    return nursery.new_part("head", zeros)
