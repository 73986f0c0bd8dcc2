"""A transformer block whose training step is written out: what `Block` computes, up to rounding, in less time.

On a core most of a step goes into products with a block's matrices, and much of the rest into moving what
lies between them, which is larger than the core's cache. So:

- products are made by the library that is fastest (`evolve/products.py`), and a small frozen matrix is kept in both
  layouts, since values are multiplied faster with the one that `Linear` does not have;
- biases and residuals are added where the product goes, the gradient of GELU takes the place of what comes in;
- of a frozen block nothing is kept that only gradients of its weights need;
- into the frozen prefix nothing goes back, not even to the layer norm's own gradients (see `_norm_gradients`);
- where matrices are to be multiplied in bfloat16, that is all that is done in it: autocast would have attention go
  back in it too, which takes 16 times as long as in float32 (ViT-Ti at 64 pixels on a core with AMX).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from evolve.products import SMALL_MATRIX, add_product, product, product_over_rows
from models.network import LAYER_NORM_EPS
from models.vit import Block

Matrix = tuple[Tensor, Tensor]  # [inputs, outputs] and [outputs, inputs]: for values and for gradients


class FastBlock(Block):
    """A block on a CPU, made of another's modules: names and weights are the same.

    All of it trains or is frozen; the weights of one that ran frozen may not change while it stays so. Tokens are
    float32, whatever matrices are multiplied in.
    """

    def __init__(self, block: Block, *, bf16_products: bool = False) -> None:
        nn.Module.__init__(self)
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp
        self._dtype = torch.bfloat16 if bf16_products else torch.float32
        self._frozen: tuple[Matrix, ...] = ()

    def forward(self, tokens: Tensor) -> Tensor:
        """Take tokens to tokens, [batch, tokens, dim] each."""
        is_frozen = not self.norm1.weight.requires_grad
        matrices = (self._frozen if is_frozen else ()) or self._matrices(is_frozen)
        self._frozen = matrices if is_frozen else ()
        with torch.autocast("cpu", enabled=False):
            return _BlockStep.apply(tokens, self.attn.num_heads, matrices, *self.parameters())  # type: ignore[no-any-return]

    def first_token(self, tokens: Tensor) -> Tensor:
        """Return `forward`'s result for the first token alone: [batch, dim] of [batch, tokens, dim]; in float32."""
        with torch.autocast("cpu", enabled=False):
            return super().first_token(tokens)

    def _matrices(self, is_frozen: bool) -> "tuple[Matrix, ...]":
        """Return the block's four matrices as they are multiplied with."""
        made = []
        for linear in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            weight = linear.weight.detach().to(self._dtype)
            transposed = weight.t()
            if is_frozen and weight.dtype == torch.float32 and weight.numel() <= SMALL_MATRIX:
                transposed = transposed.contiguous()
            made.append((transposed, weight))
        return tuple(made)


class _BlockStep(Function):
    """`Block.forward` with its gradients, by the formulas of its parts."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, num_heads: int, matrices: tuple[Matrix, ...], *weights: Tensor) -> Tensor:
        scale1, shift1, qkv_weight, qkv_bias, _, proj_bias, scale2, shift2, _, fc1_bias, _, fc2_bias = weights
        (qkv_t, _), (proj_t, _), (fc1_t, _), (fc2_t, _) = matrices
        dim, dtype = tokens.shape[-1], qkv_t.dtype
        ctx.matrices = matrices
        ctx.is_own = scale1.requires_grad
        ctx.is_first = ctx.is_own and not ctx.needs_input_grad[0]
        if ctx.is_first:
            whitened, mean1, rstd1 = torch.native_layer_norm(tokens, (dim,), None, None, LAYER_NORM_EPS)
            normed = torch.addcmul(shift1, whitened, scale1).to(dtype)
            whitened = whitened.to(dtype)
        else:
            normed, mean1, rstd1 = torch.native_layer_norm(tokens, (dim,), scale1, shift1, LAYER_NORM_EPS)
            whitened = normed = normed.to(dtype)
        qkv = product(normed, qkv_t, qkv_bias)
        mixed, weighting = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*_heads(qkv, num_heads))
        attended = add_product(tokens, _side_by_side(mixed).to(dtype), proj_t, proj_bias)
        normed, mean2, rstd2 = torch.native_layer_norm(attended, (dim,), scale2, shift2, LAYER_NORM_EPS)
        normed = normed.to(dtype)
        hidden = product(normed, fc1_t, fc1_bias)
        active = F.gelu(hidden).to(dtype)
        inputs = (whitened, normed, active) if ctx.is_own else (None, None, None)
        between = (tokens, mean1, rstd1, qkv, mixed, weighting, attended, mean2, rstd2, hidden)
        ctx.save_for_backward(scale1, shift1, qkv_weight, scale2, shift2, *between, *inputs)
        return add_product(attended, active, fc2_t, fc2_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved = ctx.saved_tensors
        scale1, shift1, qkv_weight, scale2, shift2 = saved[:5]
        tokens, mean1, rstd1, qkv, mixed, weighting, attended, mean2, rstd2, hidden = saved[5:15]
        whitened, normed, active = saved[15:]
        (_, qkv_matrix), (_, proj_matrix), (_, fc1_matrix), (_, fc2_matrix) = ctx.matrices
        dim, is_own, dtype = tokens.shape[-1], ctx.is_own, qkv_matrix.dtype
        norm_backward = torch.ops.aten.native_layer_norm_backward

        grad = grad.contiguous()
        rounded = grad.to(dtype)
        of_fc2 = _linear_gradients(grad, rounded, active)
        into = product(rounded, fc2_matrix)
        torch.ops.aten.gelu_backward.grad_input(into, hidden, grad_input=into)
        rounded = into.to(dtype)
        of_fc1 = _linear_gradients(into, rounded, normed)
        into = product(rounded, fc1_matrix)
        into, *of_norm2 = norm_backward(into, attended, (dim,), mean2, rstd2, scale2, shift2, [True, is_own, is_own])
        residual = into.add_(grad)

        rounded = residual.to(dtype)
        of_proj = _linear_gradients(residual, rounded, _side_by_side(mixed).to(dtype) if is_own else None)
        into = product(rounded, proj_matrix).view_as(mixed.transpose(1, 2)).transpose(1, 2)
        of_heads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            into, *_heads(qkv, mixed.shape[1]), mixed, weighting, dropout_p=0.0, is_causal=False
        )
        into = torch.stack([values.transpose(1, 2) for values in of_heads], dim=2).view_as(qkv)
        rounded = into.to(dtype)
        of_qkv = _linear_gradients(into, rounded, whitened)
        if ctx.is_first:
            of_norm1, of_qkv = _norm_gradients(scale1, shift1, qkv_weight, *of_qkv)
            return None, None, None, *of_norm1, *of_qkv, *of_proj, *of_norm2, *of_fc1, *of_fc2
        into = product(rounded, qkv_matrix)
        into, *of_norm1 = norm_backward(into, tokens, (dim,), mean1, rstd1, scale1, shift1, [True, is_own, is_own])
        return into.add_(residual), None, None, *of_norm1, *of_qkv, *of_proj, *of_norm2, *of_fc1, *of_fc2


def _linear_gradients(
    grad: Tensor, rounded: Tensor, values: Tensor | None
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return the gradients of a linear layer's weight and bias; None if frozen.

    Args:
        grad: of its output, [batch, tokens, outputs].
        rounded: the same as it is multiplied.
        values: its input, as it is multiplied; None if the layer is frozen.
    """
    if values is None:
        return None, None
    return product_over_rows(rounded, values).to(grad.dtype), grad.flatten(0, 1).sum(0)


def _norm_gradients(
    scale: Tensor, shift: Tensor, weight: Tensor, of_whitened: Tensor, of_bias: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the gradients of a layer norm's scale and shift, and of the linear layer's after it, without the rows.

    Args:
        scale, shift: of the layer norm, [dim].
        weight: of the linear layer, [outputs, dim].
        of_whitened: its gradient if the layer norm had neither scale nor shift, [outputs, dim].
        of_bias: gradient of its bias, [outputs].
    """
    of_norm = (weight * of_whitened).sum(0), of_bias @ weight
    return of_norm, (torch.addr(of_whitened * scale, of_bias, shift), of_bias)


def _heads(qkv: Tensor, num_heads: int) -> list[Tensor]:
    """Return queries, keys and values, [batch, heads, tokens, width] each, of [batch, tokens, 3 * dim]."""
    parts = qkv.view(*qkv.shape[:2], 3, num_heads, -1).unbind(2)
    return [values.transpose(1, 2) for values in parts]


def _side_by_side(mixed: Tensor) -> Tensor:
    """Return what the heads mixed, [batch, tokens, dim], of [batch, heads, tokens, width]."""
    return mixed.transpose(1, 2).flatten(2)
