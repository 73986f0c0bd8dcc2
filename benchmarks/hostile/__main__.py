"""`uv run python -m benchmarks.hostile`: a server under attack beside a healthy client; about 25 minutes on 2 cores.

    uv run python -m benchmarks.hostile attacks           each attack alone, then all together (bars 1 to 5)
    uv run python -m benchmarks.hostile fuzz              mutated uploads and request heads (bar 7)
    uv run python -m benchmarks.hostile kills             processes killed at random moments (bar 6), 30 minutes more
    uv run python -m benchmarks.hostile growth            memory after 200,000 requests, beside that after 20,000
    uv run python -m benchmarks.hostile light --before C  the light route's requests a second, beside commit C's

Without a part: `attacks` and `fuzz`. What is measured already is measured again only if its part is named.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.hostile import fuzz, growth, kills, light, siege

NAME = "hostile"
COMMAND = "uv run python -m benchmarks.hostile"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="attacks, fuzz, kills, growth or light")
    parser.add_argument("--before", metavar="COMMIT", help="what the part 'light' compares with")
    parser.add_argument("--smoke", action="store_true", help="a few minutes to see that it works; nothing is kept")
    parser.add_argument("--only", action="append", metavar="ATTACK", help="with --smoke: only this attack; may repeat")
    arguments = parser.parse_args()
    is_smoke: bool = arguments.smoke
    measures = {
        "attacks": lambda folder: siege.measure(folder, is_smoke=is_smoke, only=arguments.only),
        "fuzz": lambda folder: fuzz.measure(folder, 4_000 if is_smoke else 100_000),
        "kills": lambda folder: kills.measure(folder, 30 if is_smoke else 1000),
        "growth": lambda folder: growth.measure(folder, 4_000 if is_smoke else 200_000),
        "light": lambda folder: light.measure(folder, arguments.before, rounds=2 if is_smoke else 15),
    }
    unknown = set(arguments.parts) - measures.keys()
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known parts: {', '.join(measures)}")
    if "light" in arguments.parts and arguments.before is None:
        parser.error("the part light needs --before COMMIT")
    raw: dict[str, Any] = {} if is_smoke else results.read_raw(NAME)
    wanted = arguments.parts or [part for part in ("attacks", "fuzz") if part not in raw]
    for part in wanted:
        with tempfile.TemporaryDirectory() as folder:
            raw[part] = measures[part](Path(folder)) | {"commit": results.commit()}
        print(part, raw[part], flush=True)
        if not is_smoke:
            results.write(NAME, command=COMMAND, seeds=[0], raw=raw, bars=bars(raw))
    for bar in bars(raw):
        print(bar)


def bars(raw: dict[str, Any]) -> list[results.Bar]:
    parts = ("attacks", "kills", "fuzz", "growth", "light")
    attacks, killed, fuzzed, grown, light_route = (raw.get(part, {}) for part in parts)
    broken = ("releases_lost", "jobs_lost", "jobs_done_twice", "wrong_answers")
    return [
        results.at_most("hostile-1", attacks.get("failed"), 0),
        results.at_most("hostile-2", attacks.get("p99_ratio"), 10),
        results.at_most("hostile-3", attacks.get("peak_mib_above"), 512),
        results.at_most("hostile-4", attacks.get("server_errors"), 0),
        results.at_most("hostile-5", attacks.get("afterwards_ratio"), 1.1),
        results.at_most("hostile-6", sum(killed[what] for what in broken) if killed else None, 0),
        results.at_most("hostile-7", fuzzed.get("server_errors"), 0),
        results.at_most("hostile-growth", grown.get("growth_mib"), 5),
        results.at_least("hostile-light", light_route.get("ratio"), 0.95),
    ]


if __name__ == "__main__":
    main()
