"""`uv run python -m benchmarks.inspection`: reading 100,000 small images, and inspecting them; about 5 minutes.

Both take turns on the same folder. Inspection is all that `evolve` does with images before it trains: it finds classes
and parts, reads and decodes every image, and splits them. Its cache is empty each time.

Before each measurement the files are dropped from the system's memory, as those of a data set that is used for the
first time are not there yet: `inspection-1` is of these. The same with all files in memory stands in the raw figures:
there, reading is little more than copying, and the ratio says what decoding costs.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from benchmarks import results
from evolve.task import load_task
from models.names import TaskName

COMMAND = "uv run python -m benchmarks.inspection"
IMAGES, CLASSES, REPEATS = 100_000, 100, 3
SMOKE_IMAGES = 2_000
SIDE = 32  # pixels
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help=f"{SMOKE_IMAGES:,} images, and no results file")
    arguments = parser.parse_args()
    images = SMOKE_IMAGES if arguments.smoke else IMAGES
    with tempfile.TemporaryDirectory() as name:
        data = draw(Path(name) / "data", images)
        total = read(data)
        seconds = measure(data, Path(name))
    raw = {
        "images": images,
        "bytes": total,
        "seconds": {kind: [round(value, 3) for value in its] for kind, its in dataclasses.asdict(seconds).items()},
        "ratio_in_memory": round(median(seconds.inspecting_warm) / median(seconds.reading_warm), 3),
    }
    ratio = median(seconds.inspecting_cold) / median(seconds.reading_cold)
    bars = [results.at_most("inspection-1", ratio, 2.0)]
    if not arguments.smoke:
        results.write("inspection", command=COMMAND, seeds=[SEED], raw=raw, bars=bars)
    for line in [*raw.items(), *map(dataclasses.astuple, bars)]:
        print(*line)


def draw(folder: Path, images: int) -> Path:
    """Write small images of noise, half of them PNG, half JPEG, in class folders."""
    rng = np.random.default_rng(SEED)
    for number in range(images):
        place = folder / f"class{number % CLASSES:03d}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(128, 30, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:06d}{'.jpg' if number // CLASSES % 2 else '.png'}")
    os.sync()  # what is not on disk cannot be dropped from memory
    return folder


@dataclasses.dataclass(frozen=True, slots=True)
class Seconds:
    """Of each turn."""

    reading_cold: list[float]
    reading_warm: list[float]
    inspecting_cold: list[float]
    inspecting_warm: list[float]


def measure(data: Path, folder: Path) -> Seconds:
    seconds = Seconds([], [], [], [])
    for turn in range(REPEATS):
        drop(data)
        seconds.reading_cold.append(timed(lambda: read(data)))
        seconds.reading_warm.append(timed(lambda: read(data)))
        drop(data)
        seconds.inspecting_cold.append(timed(partial(inspect, data, folder / f"cold{turn}")))
        seconds.inspecting_warm.append(timed(partial(inspect, data, folder / f"warm{turn}")))
    return seconds


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read(data: Path) -> int:
    """Read every file once, and return the bytes of all."""
    total = 0
    for folder, _, names in os.walk(data):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                total += len(file.read())
    return total


def inspect(data: Path, cache: Path) -> None:
    load_task(TaskName("noise"), data, seed=SEED, cache_folder=cache)


def drop(data: Path) -> None:
    """Drop the files' content from the system's memory; no other file's."""
    for folder, _, names in os.walk(data):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


if __name__ == "__main__":
    main()
