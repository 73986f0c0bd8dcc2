"""The plot for README: test accuracy and cost of every task, evolved and by each family of baselines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.results import FOLDER

PATH = FOLDER / "quality.svg"
MARKERS = "s^vD<>"


def draw(streams: Sequence[Mapping[str, Any]], path: Path = PATH) -> None:
    """Draw means over seeds; the same figures make the same file."""
    tasks = [part["task"] for part in streams[0]["evolved"]]
    families = sorted({baseline["family"] for stream in streams for baseline in stream["baselines"]})
    rows = range(len(tasks), 0, -1)  # the first task on top
    figure = Figure(figsize=(9, 1 + 0.3 * len(tasks)), layout="constrained")
    accuracy, cost = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for family, marker in zip(families, MARKERS, strict=False):
        for axes, figure_name in ((accuracy, "test_accuracy"), (cost, "flops")):
            values = [_mean(streams, "baselines", task, figure_name, family) for task in tasks]
            axes.plot(values, rows, marker, markersize=5, alpha=0.7, label=family)
    for axes, figure_name in ((accuracy, "test_accuracy"), (cost, "flops")):
        values = [_mean(streams, "evolved", task, figure_name) for task in tasks]
        axes.plot(values, rows, "ko", markersize=6, label="evolved")
        axes.grid(axis="both", alpha=0.3)
    accuracy.set_yticks(list(rows), tasks)
    accuracy.set_xlabel("test accuracy")
    cost.set_xlabel("FLOPs of a request")
    cost.set_xscale("log")
    accuracy.legend(fontsize="small")
    with rc_context({"svg.hashsalt": "quality"}):
        figure.savefig(path, metadata={"Date": None})


def _mean(
    streams: Sequence[Mapping[str, Any]], kind: str, task: str, figure_name: str, family: str | None = None
) -> float:
    parts = [part for stream in streams for part in stream[kind] if part["task"] == task]
    return mean(float(part[figure_name]) for part in parts if family is None or part["family"] == family)
