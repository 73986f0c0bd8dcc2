"""`uv run python -m benchmarks.online`: a task sent to a busy server; kills of workers; executors side by side.

Some 15 minutes on 2 cores, in parts (`--part`) whose figures are kept. Needs the data folder that
TEST_SHARED_DATA names, or ../shared.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.online import executors, job, kills
from benchmarks.online.plot import plot

NAME = "online"
PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "job": job.measure,
    "kills": kills.measure,
    "executors": executors.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=sorted(PARTS), help="Only one of the parts, measured anew.")
    part = parser.parse_args().part
    raw = results.read_raw(NAME)
    for name in [part] if part else PARTS:
        with tempfile.TemporaryDirectory() as folder:
            raw[name] = PARTS[name](Path(folder))
        results.write(NAME, command="uv run python -m benchmarks.online", seeds=[0], raw=raw, bars=bars(raw))
    if "job" in raw:
        plot(raw["job"], results.FOLDER / "online.svg")
    for bar in bars(raw):
        print(bar)


def bars(raw: dict[str, Any]) -> list[results.Bar]:
    sent, killed, rates = (raw.get(name, {}) for name in PARTS)
    return [
        results.at_most("online-1", sent.get("seconds_to_080"), 60),
        results.at_least("online-2", sent.get("final_accuracy"), 0.92),
        results.at_most("online-3", sent.get("p99_ratio"), 2.0),
        results.at_most("online-4", sent.get("changed_answers"), 0),
        results.at_most("online-5", killed.get("lost_or_twice"), 0),
        results.at_least("online-6", _ratio(rates, "two workers", "one worker"), 1.6),
        results.at_least("online-7", _ratio(rates, "ray", "two workers"), 0.85),
    ]


def _ratio(rates: dict[str, Any], one: str, other: str) -> float | None:
    return rates[one] / rates[other] if one in rates and other in rates else None


if __name__ == "__main__":
    main()
