"""What every benchmark's result file has: command, machine, commit, raw figures, bars. One file for each benchmark."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.cores import usable_cores

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Bar:
    """A numbered bar. `value` is None where it could not be measured, and then it is not met."""

    bar: str
    target: str
    value: float | None
    met: bool


def at_most(bar: str, value: float | None, limit: float) -> Bar:
    return Bar(bar, f"at most {limit:g}", _rounded(value), value is not None and value <= limit)


def at_least(bar: str, value: float | None, limit: float) -> Bar:
    return Bar(bar, f"at least {limit:g}", _rounded(value), value is not None and value >= limit)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def read_raw(name: str) -> dict[str, Any]:
    """Return the raw figures of the last run of benchmark `name`; nothing if there was none."""
    path = FOLDER / f"{name}.json"
    return dict(json.loads(path.read_text())["raw"]) if path.exists() else {}


def write(name: str, *, command: str, seeds: Sequence[int], raw: Mapping[str, Any], bars: Sequence[Bar]) -> None:
    """Write `results/<name>.json`."""
    content = {
        "command": command,
        "machine": machine(),
        "commit": commit(),
        "seeds": list(seeds),
        "raw": raw,
        "bars": [asdict(bar) for bar in bars],
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def machine() -> dict[str, str | int | float | None]:
    """Return what the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": usable_cores(),
        "processor": _processor(),
        "memory_gib": round(memory / 2**30, 1),
        "accelerator": _accelerator(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _accelerator() -> str | None:
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def commit() -> str:
    """Return the commit that was measured, with a mark if other files than results differ from it.

    BENCHMARK_COMMIT names it in a copy that was taken to another machine.
    """
    if named := os.environ.get("BENCHMARK_COMMIT"):
        return named
    folder = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
