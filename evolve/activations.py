"""Activations of frozen components, computed once for a whole set of images and kept in mapped files.

A file holds one row an image: the tokens behind some frozen components, or, behind the last block, only
the class token. It is named by all that its content follows from, so workers and later generations find
it, and nothing in it ever changes.
"""

import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.files import make_folder, private
from models.vit import Block

CHUNK = 64  # rows computed together: fixed, so that no row's rounding depends on how work is dealt out
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Activations:
    """A file of rows of one shape. Can be pickled; every process maps the file for itself."""

    path: Path
    rows: int
    row_shape: tuple[int, ...]  # (tokens, dim), or (dim,) for the class token alone
    dtype: str  # a key of DTYPES

    @property
    def num_bytes(self) -> int:
        return self.rows * int(np.prod(self.row_shape)) * DTYPES[self.dtype].itemsize

    @property
    def is_complete(self) -> bool:
        return self.path.is_file()

    def read(self, rows: np.ndarray | slice) -> Tensor:
        """Return rows as float32 [rows, *row_shape], a copy."""
        return self.stored(rows).to(torch.float32)

    def stored(self, rows: np.ndarray | slice = slice(None)) -> Tensor:
        """Return rows as they are kept, a copy."""
        stored = np.memmap(self.path, self._stored_type, "r", shape=(self.rows, *self.row_shape))
        return torch.from_numpy(np.array(stored[rows])).view(DTYPES[self.dtype])

    def begin(self) -> Path:
        """Make room for all rows in a file that nobody reads yet, and return it."""
        make_folder(self.path.parent)
        unfinished = self.path.with_name(f".new-{secrets.token_hex(8)}")
        with open(unfinished, "xb", opener=private) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an OSError here, not a bus error when writing
                os.posix_fallocate(file.fileno(), 0, self.num_bytes)
            file.truncate(self.num_bytes)
        return unfinished

    def write(self, unfinished: Path, start: int, values: Tensor) -> None:
        """Write rows from `start` on into the file that `begin` made."""
        stored = np.memmap(unfinished, self._stored_type, "r+", shape=(self.rows, *self.row_shape))
        as_stored = values.cpu().to(DTYPES[self.dtype]).contiguous().view(_bits(self.dtype))
        stored[start : start + len(values)] = as_stored.numpy()

    def finish(self, unfinished: Path) -> None:
        """Show the file, now that all rows are written."""
        os.replace(unfinished, self.path)

    @property
    def _stored_type(self) -> type[np.int32] | type[np.int16]:
        return np.int32 if self.dtype == "float32" else np.int16


def _bits(dtype: str) -> torch.dtype:
    """Return the integers that stand for values in the file: numpy has no bfloat16."""
    return torch.int32 if dtype == "float32" else torch.int16


def activations_name(facts: Sequence[str]) -> str:
    """Return the file name for activations that follow from `facts`."""
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def run_modules(modules: Sequence[nn.Module], values: Tensor, *, ends_body: bool) -> Tensor:
    """Run body modules one after another.

    Args:
        modules: consecutive ones of a network's body: embeddings, adapters, blocks.
        values: what the first of them takes.
        ends_body: whether the body ends with them; then the class token alone is returned, [batch, dim].
    """
    if not ends_body:
        for module in modules:
            values = module(values)
        return values
    if not modules:
        return values if values.ndim == 2 else values[:, 0]
    for module in modules[:-1]:
        values = module(values)
    last = modules[-1]
    return last.first_token(values) if isinstance(last, Block) else last(values)[:, 0]
