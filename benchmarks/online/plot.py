"""Accuracy of the new task's answers over time, as a small SVG."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot(raw: dict[str, Any], path: Path) -> None:
    """Draw what `benchmarks.online.job.measure` returned."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    seconds = [point["seconds"] for point in raw["curve"]]
    axes.step([*seconds, raw["job_seconds"]], [*(p["accuracy"] for p in raw["curve"]), raw["final_accuracy"]],
              where="post")  # fmt: skip
    axes.axhline(0.8, linestyle=":", color="grey")
    axes.set(xlabel="seconds since the zip was sent", ylabel="test accuracy over HTTP", xlim=(0, None), ylim=(0, 1))
    figure.savefig(path, metadata={"Date": None})
