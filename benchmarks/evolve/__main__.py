"""Evolution at speed: `uv run python -m benchmarks.evolve`, some 90 minutes on 2 cores.

A run that was stopped is taken up again. Needs the data folder that TEST_SHARED_DATA names, or ../shared.
`--minutes` stops early, `--afresh` forgets what was measured before. `--results` keeps another machine's figures apart:

    uv run python -m benchmarks.evolve --part gpu --results evolve-h100      where there is a GPU
    CUDA_VISIBLE_DEVICES= taskset -c 0,1 uv run python -m benchmarks.evolve --part clones --results evolve-amx
    uv run python -m benchmarks.evolve --part clones --results evolve-xeon      on Intel's cores without AMX
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.evolve import clones, gpu, scale, search

NAME = "evolve"
Part = Callable[[Path], Iterator[tuple[str, Callable[[], Any]]]]
PARTS: dict[str, Part] = {
    "clones": clones.measurements,
    "search": search.measurements,
    "scale": scale.measurements,
    "gpu": gpu.measurements,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=100.0)
    parser.add_argument("--part", choices=sorted(PARTS), help="Only one of the parts.")
    parser.add_argument("--results", default=NAME, metavar="NAME", help="Where figures of another machine go.")
    parser.add_argument("--afresh", action="store_true")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    command = "uv run python -m benchmarks.evolve"
    if arguments.results != NAME and arguments.part is None:
        parser.error("--results goes with --part: name the part to be measured")
    if arguments.results != NAME:
        command += f" --part {arguments.part} --results {arguments.results}"
    raw: dict[str, Any] = {} if arguments.afresh else results.read_raw(arguments.results)

    def wanted() -> list[results.Bar]:
        """Return the bars; of another machine only those that were measured on it."""
        return [bar for bar in bars(raw) if arguments.results == NAME or bar.value is not None]

    def measured(key: str, measure: Callable[[], Any]) -> bool:
        """Measure what is missing, write it down, and say whether there is time for more."""
        if key not in raw:
            raw[key] = measure()
            results.write(arguments.results, command=command, seeds=search.SEEDS, raw=raw, bars=wanted())
            print(key, raw[key], flush=True)
        is_time_left: bool = time.monotonic() < until
        return is_time_left

    with tempfile.TemporaryDirectory() as folder:
        for part in [PARTS[arguments.part]] if arguments.part else PARTS.values():
            if not all(measured(key, measure) for key, measure in part(Path(folder))):
                break
    for bar in wanted():
        print(bar)


def bars(raw: dict[str, Any]) -> list[results.Bar]:
    float32, bf16 = clones.ratios(raw)
    return [
        results.at_least("evolve-1", float32, 1.5),
        results.at_least("evolve-2", bf16, 2.0),
        results.at_most("evolve-3", search.mean_ratio(raw, search.RANKED_STOPPED, search.SEEDS), 0.5),
        results.at_most("evolve-3, averaged too", search.mean_ratio(raw, search.ALL_THREE, search.SEEDS), 0.5),
        results.at_most("evolve-4", scale.time_ratio(raw), 1.1),
        results.at_most("evolve-5", search.bytes_ratio(raw), 1.1),
        results.at_least("evolve-6", gpu.ratio(raw), 2.0),
    ]


if __name__ == "__main__":
    main()
