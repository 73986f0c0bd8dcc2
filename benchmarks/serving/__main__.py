"""The serving benchmark: us and what a user would run instead, in the same run, taking turns.

    uv run --group bench python -m benchmarks.serving                 the parts that have no figures yet
    uv run --group bench python -m benchmarks.serving light chain     these parts, anew

Each part takes some minutes on 2 cores. Its figures go into benchmarks/results/serving.json at once.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks import results
from benchmarks.serving.bars import bars
from benchmarks.serving.parts import PARTS
from benchmarks.serving.routes import SEED
from models.errors import InvalidConfig

NAME = "serving"
COMMAND = "uv run --group bench python -m benchmarks.serving"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--folder", type=Path, help="where stores and whole models are made and kept for the next run")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.gettempdir()) / "mu2net-benchmark-serving"
    folder.mkdir(parents=True, exist_ok=True)
    raw = results.read_raw(NAME)
    for part in arguments.parts or [part for part in PARTS if part not in raw]:
        try:
            raw[part] = PARTS[part](folder) | {"commit": results.commit(), "machine": results.machine()}
        except InvalidConfig as error:
            print(f"part {part} cannot be measured: {error}")
            continue
        results.write(NAME, command=COMMAND, seeds=[SEED], raw=raw, bars=bars(raw))
    for bar in bars(raw):
        print(f"{bar.bar:12} {bar.target:16} {bar.value}  {'met' if bar.met else 'not met'}")


if __name__ == "__main__":
    main()
