"""The tables of measured bars in README and docs/, out of the result files.

uv run python -m benchmarks.tables   rewrites them
"""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.evolve import gpu, search
from benchmarks.quality import bars as quality
from benchmarks.results import FOLDER

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"<!-- results:(?P<name>[\w-]+) -->\n.*?<!-- /results -->", re.DOTALL)


def pages() -> list[Path]:
    """Return the pages that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def with_tables(text: str) -> str:
    """Return `text` with what stands between `<!-- results:NAME -->` and `<!-- /results -->` made anew."""
    return MARKED.sub(lambda found: _marked(found["name"]), text)


def _marked(name: str) -> str:
    path = FOLDER / f"{name}.json"
    results = json.loads(path.read_text()) if path.exists() else None
    parts = [_table(results) if results else "Not measured yet."]
    if results and name == "quality":
        parts += [
            quality.table(results["raw"]["streams"]),
            "![Test accuracy and cost by task](benchmarks/results/quality.svg)",
        ]
    if results and name == "evolve":
        parts.append(search.table(results["raw"]))
    if results and name == "evolve-h100":
        parts.append(gpu.table(results["raw"]))
    return "\n".join([f"<!-- results:{name} -->", "\n\n".join(parts), "<!-- /results -->"])


def _table(results: dict[str, Any]) -> str:
    machine = results["machine"]
    accelerator = machine["accelerator"] or "no accelerator"
    lines = [
        f"`{results['command']}` on {machine['cores']} cores ({machine['processor']}), {machine['memory_gib']:g} GiB, "
        f"{accelerator}; commit {results['commit']}.",
        "",
        "| bar | target | measured | met |",
        "|---|---|---|---|",
    ]
    for bar in results["bars"]:
        value = "not measured" if bar["value"] is None else f"{bar['value']:.3g}"
        lines.append(f"| {bar['bar']} | {bar['target']} | {value} | {'yes' if bar['met'] else 'no'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for page in pages():
        page.write_text(with_tables(page.read_text()))
