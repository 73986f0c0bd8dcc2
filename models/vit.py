"""A plain Vision Transformer as separate parts (Dosovitskiy et al. 2021), with optional residual adapters.

The names are timm's: the parameters of each part have the names that timm gives them below that part,
so a timm checkpoint falls apart into these without renaming.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from models.network import LAYER_NORM_EPS


class PatchEmbed(nn.Module):
    """Patches to tokens, the class token before them; positions are added by `PosEmbed`."""

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.proj = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch tokens dim"]:
        patches = self.proj(images).flatten(2).transpose(1, 2)  # (B, N, D)
        return torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)


class PosEmbed(nn.Module):
    """One learnt vector added to each token."""

    def __init__(self, embed_dim: int, num_tokens: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, embed_dim))

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        return tokens + self.pos_embed


class Attention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        batch, length, dim = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, D/H) each
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, dim))  # type: ignore[no-any-return]

    def first_token(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """Return `forward`'s result for the first token alone: every key and value, one query."""
        batch, length, dim = tokens.shape
        weight, bias, width = self.qkv.weight, self.qkv.bias, dim // self.num_heads
        query = F.linear(tokens[:, 0], weight[:dim], bias[:dim]).view(batch, self.num_heads, 1, width)
        key_value = F.linear(tokens, weight[dim:], bias[dim:]).view(batch, length, 2, self.num_heads, width)
        key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, D/H) each
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.reshape(batch, dim))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.fc2(F.gelu(self.fc1(tokens)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(embed_dim, mlp_dim)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]

    def first_token(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """Return `forward`'s result for the first token alone: in the last block the others lead nowhere."""
        token = tokens[:, 0] + self.attn.first_token(self.norm1(tokens))
        return token + self.mlp(self.norm2(token))  # type: ignore[no-any-return]


class Adapter(nn.Module):
    """Residual adapter (Houlsby et al. 2019): layer norm, down, GELU, up.

    The up-projection starts at zero, so a new adapter changes nothing.
    """

    def __init__(self, embed_dim: int, adapter_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.down = nn.Linear(embed_dim, adapter_dim)
        self.up = nn.Linear(adapter_dim, embed_dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        return tokens + self.up(F.gelu(self.down(self.norm(tokens))))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """The parts in order: `layers` holds adapters and blocks as they follow one another."""

    def __init__(
        self,
        patch_embed: PatchEmbed,
        pos_embed: PosEmbed,
        layers: Sequence[nn.Module],
        norm: nn.LayerNorm,
        head: nn.Linear | None,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.pos_embed = pos_embed
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head

    def forward(self, images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch outputs"]:
        """Return logits, or without a head the normalised class token."""
        tokens = self.pos_embed(self.patch_embed(images))
        for layer in self.layers:
            tokens = layer(tokens)
        features = self.norm(tokens[:, 0])
        return features if self.head is None else self.head(features)  # type: ignore[no-any-return]


def resample_pos_embed(
    pos_embed: Float[Tensor, "1 tokens dim"], *, image_size: int, patch_size: int
) -> Float[Tensor, "1 resampled dim"]:
    """Return the position embedding for another image size: bicubic on the patch grid.

    What timm's `resample_abs_pos_embed` computes. It is not imported because timm takes as long to import as
    torch, and a worker is to train within seconds.
    """
    old_side, side = math.isqrt(pos_embed.shape[1] - 1), image_size // patch_size
    if side == old_side:
        return pos_embed
    grid = pos_embed[:, 1:].reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)  # (1, D, H, W)
    resampled = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    return torch.cat([pos_embed[:, :1], resampled.flatten(2).transpose(1, 2)], dim=1)


def load_part(part: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` into `part`; every name and shape must fit."""
    part.load_state_dict({name: values.to(torch.float32) for name, values in weights.items()}, strict=True)
