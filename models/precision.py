"""Lower precisions than float32: what they are called, and what a component looks like in them.

Weights in a lower precision depend on the component alone, never on data or on a route, so whoever shares a
component shares its lowered form as well. Activations of int8 are scaled for each token by itself while the
subgraph runs: nothing is calibrated, and no image's answer depends on its neighbours.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from models.component import ComponentKind
from models.weights import Weights

Precision = Literal["int8", "float16"]  # int8 runs on CPUs, float16 on GPUs
PRECISIONS: tuple[Precision, ...] = ("int8", "float16")
DEFAULT_TOLERANCE = 0.5  # points of validation accuracy that a route may lose

# What is worth lowering. Beside the blocks all else takes one or two percent of the arithmetic; a GPU computes
# float32 so much more slowly than float16 that it is lowered there as well.
LOWERED: Mapping[Precision, frozenset[ComponentKind]] = {
    "int8": frozenset({"block"}),
    "float16": frozenset({"patch_embed", "adapter", "block"}),
}
LARGEST = 127  # of a symmetric int8


def lower(kind: ComponentKind, weights: Weights, precision: Precision) -> Weights | None:
    """Return what a component's matrices are in a lower precision; None for a component that stays float32.

    int8: `x.weight` turned to [in, out], with `x.scale` float32 [out], one for each output. float16: every
    matrix and kernel with its bias, shaped as they were. Norms and what belongs to them stay float32.
    """
    if kind not in LOWERED[precision]:
        return None
    matrices = [name for name, values in weights.items() if name.endswith(".weight") and values.ndim > 1]
    lowered: dict[str, np.ndarray] = {}
    for name in matrices:
        layer = name.removesuffix(".weight")
        if precision == "float16":
            lowered |= {full: weights[full].astype(np.float16) for full in (name, f"{layer}.bias")}
            continue
        scale = np.maximum(np.abs(weights[name]).max(axis=1) / LARGEST, np.finfo(np.float32).tiny)  # (out,)
        lowered[name] = np.rint(weights[name] / scale[:, None]).astype(np.int8).T
        lowered[f"{layer}.scale"] = scale.astype(np.float32)
    return lowered
