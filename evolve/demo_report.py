"""What the demo measured, for people and for machines."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from evolve.demo_client import Steadiness
from models.commands import in_millions
from models.figures import TaskFigures

COLUMNS = ("task", "test accuracy", "added", "accounted", "FLOPs / root's", "latency p50")


@dataclass(frozen=True, slots=True)
class MeasuredTask:
    task: str
    test_accuracy: float  # 0 to 1, of the server's answers to the held-out images
    figures: TaskFigures
    latency_ms_p50: float  # of single requests, as the client sees them


def as_json(tasks: Sequence[MeasuredTask], seen: Steadiness) -> dict[str, object]:
    """Return the report as `mu2net demo --json` prints it."""
    rows = [
        {
            "task": row.task,
            "test_accuracy": round(row.test_accuracy, 4),
            "parameters_added": row.figures.parameters_added,
            "accounted_parameters": round(row.figures.accounted_parameters, 1),
            "flops": row.figures.flops,
            "root_flops": row.figures.root_flops,
            "latency_ms_p50": round(row.latency_ms_p50, 2),
        }
        for row in tasks
    ]
    reload = {
        "releases": len(seen.releases),
        "requests": seen.requests,
        "failed": seen.failed,
        "bit_identical": seen.is_bit_identical,
    }
    return {"tasks": rows, "reload": reload}


def show(tasks: Sequence[MeasuredTask], seen: Steadiness, console: Console) -> None:
    """Print the report as a table and two sentences."""
    table = Table(caption="added, accounted: parameters")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "task" else "right")
    for row in tasks:
        table.add_row(
            row.task,
            f"{row.test_accuracy:.3f}",
            in_millions(row.figures.parameters_added),
            in_millions(row.figures.accounted_parameters),
            f"{row.figures.flops / row.figures.root_flops:.2f}",
            f"{row.latency_ms_p50:.1f} ms",
        )
    console.print(table)
    first = tasks[0].task
    console.print(
        f"While releases {', '.join(map(str, seen.releases))} went live one after another, {seen.requests:,} requests "
        f"for {first!r} were sent: {seen.failed} failed."
    )
    same = "yes" if seen.is_bit_identical else "NO"
    console.print(f"Logits of fixed {first!r} images bit-identical from release to release: {same}.")
