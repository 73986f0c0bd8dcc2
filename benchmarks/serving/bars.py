"""The numbered bars, out of the raw figures of all parts; what was not measured is not met."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.results import Bar, at_least, at_most
from benchmarks.serving.systems import PEERS

Raw = Mapping[str, Any]
# Bytes of what a task of the fixed mix owns: two blocks of ViT-Ti, a norm and a head of 10 classes, in float32.
OWN_BYTES = 4 * (2 * (12 * 192 * 192 + 13 * 192) + 2 * 192 + 10 * 192 + 10)
ALLOWED_MIB = (1.2 * OWN_BYTES + 64 * 1024) / 2**20 + 2  # serving-10: 1 MiB for each own block's subgraph


def bars(raw: Raw) -> list[Bar]:
    return [
        at_most("serving-1", _of(raw, _chain), 1.10),
        at_least("serving-2", _of(raw, lambda r: _against_peers(r["fixed-20"]["random"])), 1.0),
        at_most("serving-3", _of(raw, lambda r: _memory(r, "fixed-20")), 0.33),
        at_most("serving-4", _of(raw, lambda r: _memory(r, "fixed-100")), 0.20),
        at_least("serving-5", _of(raw, lambda r: _against_peers(r["fixed-20"]["many"])), 2.0),
        at_least("serving-6", _of(raw, lambda r: _ratio(r["heavy"]["hot"], "ours", "engine")), 0.90),
        at_least("serving-7", _of(raw, lambda r: _ratio(r["light"]["random"], "ours", "fastapi")), 0.60),
        at_least("serving-8", _of(raw, lambda r: r["int8-speed"]["speedup"]), 2.0),
        at_most("serving-9", _of(raw, lambda r: r["int8-accuracy"]["most_points_lost"]), 0.5),
        at_most("serving-10", _of(raw, _one_more), 1.0),
        at_most("serving-11", _of(raw, lambda r: r["gpu"]["nodes_on_cpu"]), 0),
        at_least("serving-12", _of(raw, lambda r: r["gpu"]["mixed"] / r["gpu"]["one_task"]), 0.70),
        at_most("serving-13", _of(raw, lambda r: r["gpu"]["memory_mib"]["50"] / r["gpu"]["memory_mib"]["5"]), 1.05),
    ]


def _of(raw: Raw, rule: Callable[[Raw], float]) -> float | None:
    """Return a bar's value, None while a part that it needs has not been measured."""
    try:
        return rule(raw)
    except KeyError:
        return None


def _chain(raw: Raw) -> float:
    figures = [figure for key, figure in raw["chain"].items() if key.startswith("fixed")]
    return max(float(figure["subgraphs_s"] / figure["whole_s"]) for figure in figures)


def _throughput(windows: Raw, name: str) -> float:
    return float(np.median([window["throughput"] for window in windows[name]]))


def _ratio(windows: Raw, ours: str, other: str) -> float:
    return _throughput(windows, ours) / _throughput(windows, other)


def _against_peers(windows: Raw) -> float:
    return _throughput(windows, "ours") / max(_throughput(windows, peer) for peer in PEERS)


def _loaded_mib(raw: Raw, part: str, name: str) -> float:
    return float(raw[part]["systems"][name]["memory_mib"] - raw["empty"][name]["memory_mib"])


def _memory(raw: Raw, part: str) -> float:
    return _loaded_mib(raw, part, "ours") / min(_loaded_mib(raw, part, peer) for peer in PEERS)


def _one_more(raw: Raw) -> float:
    added = _loaded_mib(raw, "fixed-100", "ours") - _loaded_mib(raw, "fixed-20", "ours")
    return added / 80 / ALLOWED_MIB
