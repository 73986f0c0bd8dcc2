"""Weights of one component as safetensors bytes, and where each tensor lies in them; torch-free.

ONNX external data points straight at these offsets, so training and serving share one file.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save

from models.errors import DamagedObject

Weights = Mapping[str, np.ndarray]  # tensor name below the component -> values, float32 as trained


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one tensor lies in a safetensors file; `offset` and `length` in bytes."""

    dtype: str  # as safetensors calls it: F32, F16, I8
    shape: tuple[int, ...]
    offset: int
    length: int


def serialize(weights: Weights) -> bytes:
    """Return the safetensors file of `weights`; equal weights give equal bytes."""
    return save({name: np.ascontiguousarray(values) for name, values in weights.items()})


def deserialize(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file; DamagedObject, naming the file, if it is none."""
    try:
        return load(data)
    except Exception as error:  # safetensors raises its own type, not exported by its numpy module
        raise DamagedObject(f"{name} is not a safetensors file ({error}): restore it from a copy") from error


def tensor_slots(data: bytes) -> dict[str, TensorSlot]:
    """Return where each tensor of a safetensors file lies."""
    (header_length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_length])
    header.pop("__metadata__", None)
    return {
        name: TensorSlot(
            entry["dtype"],
            tuple(entry["shape"]),
            8 + header_length + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


def num_parameters(weights: Weights) -> int:
    return sum(values.size for values in weights.values())
