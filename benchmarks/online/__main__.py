"""`uv run python -m benchmarks.online`: tasks are sent to a busy server; 20 minutes on 2 cores.

Parts: `job` (a task beside others, bars 1 to 4), `kills` (bar 5), `executors` (bars 6 and 7). What is measured
already is not measured again, `--afresh` forgets it. Needs the data folder that TEST_SHARED_DATA names, or ../shared.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.online import executors, job, kills
from benchmarks.online.plot import plot

NAME = "online"
PARTS = ("job", "kills", "executors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="only one of the parts")
    parser.add_argument("--afresh", action="store_true", help="measure again what is measured already")
    parser.add_argument("--smoke", action="store_true", help="a few minutes to see that it works; nothing is kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts = {part: dict(measurements(part, Path(folder), arguments.smoke)) for part in PARTS}
        known = {key for part in parts.values() for key in part}
        before = {} if arguments.smoke else results.read_raw(NAME)
        raw = {key: value for key, value in before.items() if key in known}
        wanted = parts if arguments.part is None else {arguments.part: parts[arguments.part]}
        for key, measure in [pair for part in wanted.values() for pair in part.items()]:
            if arguments.afresh or key not in raw:
                raw[key] = measure() | {"commit": results.commit()}
                print(key, {name: value for name, value in raw[key].items() if name != "log"}, flush=True)
                if not arguments.smoke:
                    results.write(
                        NAME, command="uv run python -m benchmarks.online", seeds=[0], raw=raw, bars=bars(raw)
                    )
    if not arguments.smoke and "job" in raw:
        plot(raw["job"], results.FOLDER / "online.svg")
    for bar in bars(raw):
        print(bar)


def measurements(part: str, folder: Path, is_smoke: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield what a part measures, each with its name."""
    if part == "job":
        before_s, budget_s = (8.0, 20) if is_smoke else (job.BEFORE_S, job.BUDGET_S)
        yield "job", lambda: job.measure(folder / "job", before_s=before_s, budget_s=budget_s)
    elif part == "kills":
        yield "kills", lambda: kills.measure(folder / "kills", kills=3 if is_smoke else 20)
    else:
        yield from executors.measurements(folder, *((1, 64) if is_smoke else (3, 256)))


def bars(raw: dict[str, Any]) -> list[results.Bar]:
    job, kills = raw.get("job", {}), raw.get("kills")
    return [
        results.at_most("online-1", job.get("seconds_to_080"), 60),
        results.at_least("online-2", job.get("final_accuracy"), 0.92),
        results.at_most("online-3", job.get("p99_ratio"), 2.0),
        results.at_most("online-4", job.get("changed_answers"), 0),
        results.at_most("online-5", kills and kills["lost"] + kills["run_twice"], 0),
        results.at_least("online-6", executors.ratio(raw, "local 2", "local 1"), 1.6),
        results.at_least("online-7", executors.ratio(raw, "ray 2", "local 2"), 0.85),
    ]


if __name__ == "__main__":
    main()
