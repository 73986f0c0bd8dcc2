"""The tables of measured bars in README and docs/, made from the result files.

uv run python -m benchmarks.tables   rewrites them
"""

import json
import re
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.evolve import gpu, search
from benchmarks.meanings import MEANINGS
from benchmarks.quality import bars as quality
from benchmarks.results import FOLDER

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"<!-- results:(?P<name>[\w-]+) -->\n.*?<!-- /results -->", re.DOTALL)
HEADLINES = "headlines"  # the mark of README's figures, out of several benchmarks


def pages() -> list[Path]:
    """Return the pages that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def with_tables(text: str) -> str:
    """Return `text` with what stands between `<!-- results:NAME -->` and `<!-- /results -->` made anew."""
    return MARKED.sub(lambda found: _marked(found["name"]), text)


def _marked(name: str) -> str:
    content = _headlines() if name == HEADLINES else _of_benchmark(name)
    return "\n".join([f"<!-- results:{name} -->", content, "<!-- /results -->"])


def _of_benchmark(name: str) -> str:
    results = _results(name)
    parts = [_table(results) if results else "Not measured yet."]
    if results and name == "quality":
        parts.append(quality.table(results["raw"]["streams"]))
    if results and name == "evolve":
        parts.append(search.table(results["raw"]))
    if results and name == "evolve-h100":
        parts.append(gpu.table(results["raw"]))
    return "\n\n".join(parts)


def _results(name: str) -> dict[str, Any] | None:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _headlines() -> str:
    """Return README's measured figures."""
    found = filter(None, map(_results, ("serving", "quality", "online")))
    values = {bar["bar"]: bar["value"] for results in found for bar in results["bars"]}
    sentences = [
        f"**Throughput.** 20 tasks on one server answer {values['serving-2']:.2f} times as many requests as with the "
        "best other server ([serving](docs/benchmarks/serving.md)).",
        f"**Memory.** 100 tasks need {values['serving-4']:.1%} of the best other server's memory.",
        f"**Accuracy.** On twelve real tasks the mean test accuracy is {100 * values['quality-1']:.1f} points above "
        f"the best of four tuned baselines, with {values['quality-2']:.0%} of the parameters of fine-tuning "
        "([quality](docs/benchmarks/quality.md)).",
        f"**Time.** A task sent over HTTP answers {values['online-1']:.0f} seconds after its upload "
        "([online](docs/benchmarks/online.md)).",
    ]
    return "\n".join(fill(f"- {sentence}", 120, subsequent_indent="  ") for sentence in sentences)


def _table(results: dict[str, Any]) -> str:
    machine = results["machine"]
    accelerator = machine["accelerator"] or "no accelerator"
    lines = [
        f"`{results['command']}` on {machine['cores']} cores ({machine['processor']}), {machine['memory_gib']:g} GiB, "
        f"{accelerator}; commit {results['commit']}.",
        "",
        "| bar | meaning | target | measured | met |",
        "|---|---|---|---|---|",
    ]
    for bar in results["bars"]:
        value = "not measured" if bar["value"] is None else f"{bar['value']:.3g}"
        about = MEANINGS[bar["bar"]]
        lines.append(f"| {bar['bar']} | {about} | {bar['target']} | {value} | {'yes' if bar['met'] else 'no'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for page in pages():
        page.write_text(with_tables(page.read_text()))
