"""Products of matrices on a CPU: by which library, and in what pieces.

torch multiplies float32 matrices with MKL, which leaves AVX-512 unused on CPUs that are not Intel's. oneDNN, which
comes with torch too, uses it there: on a core of AMD's Zen 5 it makes 230 GFLOP/s of ViT-Ti's matrices, and MKL 100. On
Intel's own, MKL has a kernel for small matrices that is the fastest, if rows come in pieces of the right size.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

# Measured on one of Intel's cores with AVX-512: 170 GFLOP/s instead of 150 with matrices of ViT-Ti; less with ViT-B's.
PIECE_ROWS = range(48, 177)
SMALL_MATRIX = 2**18  # most numbers in a matrix whose products are taken in pieces

CPU_INFO = Path("/proc/cpuinfo")  # of Linux
INTEL = "GenuineIntel"


def cpu_words() -> frozenset[str]:
    """Return what Linux says of this machine's CPUs, its maker and its flags among it; nothing elsewhere."""
    try:
        return frozenset(CPU_INFO.read_text().split())
    except OSError:
        return frozenset()


@cache
def prefers_onednn() -> bool:
    """Whether float32 matrices are multiplied by oneDNN instead of MKL."""
    words = cpu_words()
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and "avx512f" in words and INTEL not in words


def product(values: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return values @ matrix, plus bias if there is one, in float32: [batch, tokens, outputs].

    Args:
        values: [batch, tokens, inputs] in the matrix's type.
        matrix: [inputs, outputs], in float32 or bfloat16.
        bias: [outputs], in float32.
    """
    if matrix.dtype == torch.float32 and prefers_onednn():
        return _by_onednn(values, matrix, bias)
    if matrix.dtype == torch.float32:
        pieces = _pieces(values, matrix)
        made = torch.bmm(pieces, matrix.expand(len(pieces), -1, -1))
    else:
        made = torch.mm(values.flatten(0, 1), matrix).float()
    made = made.view(*values.shape[:2], -1)
    return made if bias is None else made.add_(bias)


def add_product(total: Tensor, values: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """Return total + values @ matrix + bias in float32: [batch, tokens, outputs], as `total` is."""
    if matrix.dtype != torch.float32 or prefers_onednn():
        return product(values, matrix, bias).add_(total)
    pieces = _pieces(values, matrix)
    added = total + bias
    added.view(*pieces.shape[:2], -1).baddbmm_(pieces, matrix.expand(len(pieces), -1, -1))
    return added


def product_over_rows(left: Tensor, right: Tensor) -> Tensor:
    """Return left.T @ right over the tokens of all images, [outputs, inputs].

    Args:
        left: [batch, tokens, outputs].
        right: [batch, tokens, inputs] in the same type.
    """
    left, right = left.flatten(0, 1), right.flatten(0, 1)
    if left.dtype == torch.float32 and prefers_onednn():
        return _by_onednn(left.t(), right, None)
    return left.t() @ right


def _by_onednn(values: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    # what torch.compile calls for a linear layer; nothing public multiplies float32 by oneDNN
    made: Tensor = torch.ops.mkldnn._linear_pointwise(values, matrix.t(), bias, "none", [], "")
    return made


def _pieces(values: Tensor, matrix: Tensor) -> Tensor:
    """Return the rows of all images, [pieces, rows, inputs]."""
    images, tokens, inputs = values.shape
    count = _piece_count(images, tokens) if matrix.numel() <= SMALL_MATRIX else 1
    return values.view(count, -1, inputs)


@cache
def _piece_count(images: int, tokens: int) -> int:
    """Return into how many pieces of whole images and equal size to cut a batch; 1 if none has a size that gains."""
    counts = (count for count in range(1, images + 1) if images % count == 0)
    return next((count for count in counts if images // count * tokens in PIECE_ROWS), 1)
