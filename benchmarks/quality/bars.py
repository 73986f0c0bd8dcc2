"""The bars: evolution against the best baseline family by mean test accuracy."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from benchmarks.results import Bar, at_least, at_most

REFERENCE = "finetune"


def best_family(streams: Sequence[dict[str, Any]]) -> str:
    """Return the family with the best mean test accuracy over all tasks and seeds."""
    found = [baseline for stream in streams for baseline in stream["baselines"]]
    families: list[str] = sorted({baseline["family"] for baseline in found})
    return max(families, key=lambda family: mean(b["test_accuracy"] for b in found if b["family"] == family))


def quality_bars(streams: Sequence[dict[str, Any]]) -> list[Bar]:
    """Return quality-1 to quality-6. Accuracies and gaps are shares: 0.02 is 2 points."""
    best = best_family(streams)
    evolved = [part for stream in streams for part in stream["evolved"]]
    rivals = [_baseline(stream, part["task"], best) for stream in streams for part in stream["evolved"]]
    tuned = [_baseline(stream, part["task"], REFERENCE) for stream in streams for part in stream["evolved"]]
    accounted = [
        stream["final"]["accounted_parameters"][part["task"]] for stream in streams for part in stream["evolved"]
    ]
    accuracy = mean(part["test_accuracy"] for part in evolved)
    differences = [part["test_accuracy"] - other["test_accuracy"] for part, other in zip(evolved, tuned, strict=True)]
    return [
        at_least("quality-1", accuracy - mean(other["test_accuracy"] for other in rivals), 0.0),
        at_most("quality-2", mean(accounted) / mean(other["own_parameters"] for other in tuned), 0.5),
        at_most("quality-3", mean(part["flops"] for part in evolved) / mean(other["flops"] for other in rivals), 0.5),
        at_least("quality-4", min(differences), -0.02),
        at_least("quality-5", unchanged_share(streams), 1.0),
        at_most("quality-6", mean(part["validation_accuracy"] - part["test_accuracy"] for part in evolved), 0.02),
    ]


def unchanged_share(streams: Sequence[dict[str, Any]]) -> float:
    """Return the share of routes that answer after the stream bit by bit as on the day they were published."""
    is_same = [
        stream["final"]["test_logits"][part["task"]] == part["test_logits"]
        for stream in streams
        for part in stream["evolved"]
    ]
    return float(mean(is_same))


def corrected_gap(streams: Sequence[dict[str, Any]]) -> float:
    """Return the mean gap to test of the accuracy that routes say is to be expected."""
    gaps = [part["expected_accuracy"] - part["test_accuracy"] for stream in streams for part in stream["evolved"]]
    return float(mean(gaps))


def table(streams: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table: a row a task, and below the means of all; of several seeds, the means of these.

    Parameters, FLOPs, images and wall time are the evolution's.
    """
    families = sorted({baseline["family"] for stream in streams for baseline in stream["baselines"]})
    header = ["task", "pixels", "blocks", "evolved", *families, "accounted, M", "GFLOPs", "images seen", "wall s"]
    tasks = [part["task"] for part in streams[0]["evolved"]]
    figures = {task: _figures(streams, task, families) for task in tasks}
    means = [mean(column) for column in zip(*figures.values(), strict=True)]
    rows = [header, ["---"] * len(header)]
    for task in tasks:
        parts = [part for stream in streams for part in stream["evolved"] if part["task"] == task]
        shapes = ("/".join(str(part[key]) for part in parts) for key in ("image_size", "depth"))
        rows.append([task, *shapes, *_shown(figures[task])])
    rows.append(["mean", "", "", *_shown(means)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _figures(streams: Sequence[dict[str, Any]], task: str, families: Sequence[str]) -> list[float]:
    parts = [part for stream in streams for part in stream["evolved"] if part["task"] == task]
    return [
        mean(part["test_accuracy"] for part in parts),
        *(mean(_baseline(stream, task, family)["test_accuracy"] for stream in streams) for family in families),
        mean(stream["final"]["accounted_parameters"][task] for stream in streams) / 1e6,
        mean(part["flops"] for part in parts) / 1e9,
        mean(part["images_seen"] for part in parts),
        mean(part["seconds"] for part in parts),
    ]


def _shown(figures: Sequence[float]) -> list[str]:
    *accuracies, parameters, flops, images, seconds = figures
    return [
        *(f"{accuracy:.3f}" for accuracy in accuracies),
        f"{parameters:.2f}",
        f"{flops:.3f}",
        f"{images:,.0f}",
        f"{seconds:.0f}",
    ]


def _baseline(stream: dict[str, Any], task: str, family: str) -> dict[str, Any]:
    return next(b for b in stream["baselines"] if b["task"] == task and b["family"] == family)
