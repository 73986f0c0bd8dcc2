"""`uv run python -m benchmarks.online`: a task is sent to a busy server; 7 minutes on 2 cores.

Needs the data folder that TEST_SHARED_DATA names, or ../shared.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.online.job import measure
from benchmarks.online.plot import plot

NAME = "online"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        raw = measure(Path(folder))
    results.write(NAME, command="uv run python -m benchmarks.online", seeds=[0], raw=raw, bars=bars(raw))
    plot(raw, results.FOLDER / "online.svg")
    for bar in bars(raw):
        print(bar)


def bars(raw: dict[str, Any]) -> list[results.Bar]:
    return [
        results.at_most("online-1", raw["seconds_to_080"], 60),
        results.at_least("online-2", raw["final_accuracy"], 0.92),
        results.at_most("online-3", raw["p99_ratio"], 2.0),
        results.at_most("online-4", raw["changed_answers"], 0),
        results.at_most("online-5", None, 0),
        results.at_least("online-6", None, 1.6),
        results.at_least("online-7", None, 0.85),
    ]


if __name__ == "__main__":
    main()
