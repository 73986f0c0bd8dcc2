"""Run the stream of tasks and its baselines, and judge the bars (of a smoke run they mean nothing).

Needs the data folder that TEST_SHARED_DATA names, or ../shared, but for a smoke run.

uv run python -m benchmarks.quality                      about 45 minutes on 2 cores; stopped, it goes on
uv run python -m benchmarks.quality --budget 2 --seeds 0 1
uv run python -m benchmarks.quality --smoke              two tiny tasks: does it work at all?
"""

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks.quality.bars import best_family, corrected_gap, quality_bars, table
from benchmarks.quality.plan import real_plan, smoke_plan
from benchmarks.quality.plot import draw
from benchmarks.quality.stream import Stream
from benchmarks.results import FOLDER, write

PARTS = FOLDER / "quality"  # saved as they are done, and committed: another machine goes on from there
CACHE = Path(__file__).parents[2] / ".cache" / "quality"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--budget", type=float, default=1.0, help="times the training images of each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each a stream of its own")
    parser.add_argument("--smoke", action="store_true", help="two tiny tasks; nothing is written to results/")
    parser.add_argument("--folder", type=Path, default=CACHE, help="for stores, and a smoke run's parts")
    arguments = parser.parse_args()
    name = "smoke" if arguments.smoke else f"budget-{arguments.budget:g}"
    folder = arguments.folder / name
    plan = smoke_plan(folder / "data") if arguments.smoke else real_plan(arguments.budget)
    parts = folder / "parts" if arguments.smoke else PARTS / name
    console = Console(stderr=True)
    streams = [
        Stream(plan, folder / f"seed-{seed}", parts / f"seed-{seed}", seed=seed, console=console).run()
        for seed in arguments.seeds
    ]
    bars = quality_bars(streams)
    print(table(streams))
    for bar in bars:
        print(f"{bar.bar}: {bar.value} ({bar.target}): {'met' if bar.met else 'missed'}")
    print(f"best family {best_family(streams)}; gap of the accuracy to be expected: {corrected_gap(streams):+.4f}")
    if arguments.smoke:
        return
    seeds = " ".join(map(str, arguments.seeds))
    write(
        "quality",
        command=f"python -m benchmarks.quality --budget {arguments.budget:g} --seeds {seeds}",
        seeds=arguments.seeds,
        raw={
            "best_family": best_family(streams),
            "corrected_gap": corrected_gap(streams),
            "streams": streams,
        },
        bars=bars,
    )
    draw(streams)


if __name__ == "__main__":
    main()
