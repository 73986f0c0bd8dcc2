"""From a candidate's recipe to a torch network and back."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from evolve.candidate import Part
from evolve.pool import WeightPool
from models.component import ComponentKind
from models.network import LAYER_NORM_EPS, NetworkShape
from models.vit import Adapter, Block, PatchEmbed, PosEmbed, ViT, load_part
from models.weights import Weights


def build_part(kind: ComponentKind, weights: Weights, network: NetworkShape) -> nn.Module:
    """Return the module of one component with its weights, frozen."""
    dim = network.embed_dim
    match kind:
        case "patch_embed":
            part: nn.Module = PatchEmbed(dim, network.patch_size)
        case "pos_embed":
            part = PosEmbed(dim, weights["pos_embed"].shape[1])
        case "adapter":
            part = Adapter(dim, weights["down.weight"].shape[0])
        case "block":
            part = Block(dim, network.num_heads, network.mlp_dim)
        case "norm":
            part = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        case "head":
            part = nn.Linear(dim, weights["weight"].shape[0])
    load_weights(part, weights)
    return part.requires_grad_(False)


def load_weights(module: nn.Module, weights: Weights) -> None:
    """Copy weights by their names below a component's module into it; every name and shape must fit."""
    load_part(module, {name: torch.from_numpy(np.array(values)) for name, values in weights.items()})


def build_network(parts: Sequence[Part], pool: WeightPool, network: NetworkShape) -> tuple[ViT, list[nn.Module]]:
    """Return the network of a candidate's parts, and its modules one for each part in the same order.

    Parts that are the task's own can be trained, the others are frozen.
    """
    modules = [build_part(part.component.kind, pool.get(part.component.id), network) for part in parts]
    for part, module in zip(parts, modules, strict=True):
        module.requires_grad_(part.is_own)
    return assemble([part.component.kind for part in parts], modules), modules


def assemble(kinds: Sequence[ComponentKind], modules: Sequence[nn.Module]) -> ViT:
    """Put modules together in the order of computation; a head may be missing."""
    patch_embed, pos_embed, *layers = modules
    head = layers.pop() if kinds[-1] == "head" else None
    norm = layers.pop()
    return ViT(patch_embed, pos_embed, layers, norm, head)  # type: ignore[arg-type]  # each by its kind


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Return a copy of the module's weights by their names below it."""
    return as_weights(module.state_dict())


def as_weights(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: values.detach().to("cpu", torch.float32).numpy().copy() for name, values in tensors.items()}
