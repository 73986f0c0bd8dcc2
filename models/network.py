"""The shape of a plain ViT as numbers, and what running it costs; torch-free, so that the service can tell."""

from dataclasses import dataclass

from models.errors import InvalidRoot

LAYER_NORM_EPS = 1e-6  # timm's for every plain ViT and DeiT


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """Shape of the shared network. `image_size` and `patch_size` are in pixels, square."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    image_size: int
    mlp_dim: int

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise InvalidRoot(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        check_image_size(self.image_size, self.patch_size)

    def num_tokens(self, image_size: int) -> int:
        """Return the sequence length at `image_size`: one class token and one token per patch."""
        return 1 + (image_size // self.patch_size) ** 2


def check_image_size(image_size: int, patch_size: int) -> None:
    """Raise InvalidRoot unless square patches of `patch_size` tile a square image of `image_size`."""
    if patch_size < 1 or image_size < patch_size or image_size % patch_size:
        raise InvalidRoot(
            f"image size {image_size} is not a positive multiple of the patch size {patch_size}: "
            f"use one of {patch_size}, {2 * patch_size}, {3 * patch_size}, ..."
        )


def flops(shape: NetworkShape, *, image_size: int, adapter_dims: tuple[int | None, ...], num_classes: int) -> int:
    """Return the floating-point operations of one image through a route: two for each multiply-add.

    Counted are the matrix products (patch embedding, attention, MLP, adapters, head); norms, activations
    and additions are below one percent of these and left out.

    Args:
        shape: the network's shape.
        image_size: pixels, square.
        adapter_dims: one entry for each block of the route, None where no adapter precedes it.
        num_classes: width of the head.
    """
    dim, tokens = shape.embed_dim, shape.num_tokens(image_size)
    patch_embed = (tokens - 1) * 3 * shape.patch_size**2 * dim
    attention = tokens * dim * 4 * dim + 2 * tokens * tokens * dim
    mlp = 2 * tokens * dim * shape.mlp_dim
    adapters = sum(2 * tokens * dim * width for width in adapter_dims if width is not None)
    return 2 * (patch_embed + len(adapter_dims) * (attention + mlp) + adapters + dim * num_classes)
