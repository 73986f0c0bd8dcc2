"""What a component is, without its weights: the unit of sharing, freezing and storage."""

from dataclasses import dataclass
from typing import Literal

from models.names import ComponentId

ComponentKind = Literal["patch_embed", "pos_embed", "adapter", "block", "norm", "head"]

COMPONENT_KINDS: tuple[ComponentKind, ...] = ("patch_embed", "pos_embed", "adapter", "block", "norm", "head")


@dataclass(frozen=True, slots=True)
class ComponentRecord:
    """One component of a route.

    `id` is the sha256 of its safetensors file, whose tensors have timm's names below the component
    (`attn.qkv.weight` for a block at any depth), so equal weights are one component wherever they stand.
    """

    kind: ComponentKind
    id: ComponentId
    parameters: int  # number of weights
