"""Writes docs/map.md: every Python file with the first line of its docstring.

uv run python -m docs.map   rewrites it
"""

import ast
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")
PACKAGES = ("models", "evolve", "service", "tests", "benchmarks", "deploy", "docs")


def page() -> str:
    """Return the page's text."""
    lines = [
        "# Map",
        "",
        "Every Python file and its purpose. `python -m docs.map` makes this page from the docstrings.",
        "",
    ]
    for package in PACKAGES:
        for folder, files in groupby(_files(package), key=lambda path: path.parent):
            lines += [f"## {folder.relative_to(ROOT)}", "", "| file | purpose |", "|---|---|"]
            lines += [f"| {path.name} | {_purpose(path)} |" for path in files]
            lines.append("")
    return "\n".join(lines)


def _files(package: str) -> list[Path]:
    """Return a package's files, those of one folder side by side."""
    found = (ROOT / package).rglob("*.py")
    files = [path for path in found if path.name != "__init__.py" and "__pycache__" not in path.parts]
    return sorted(files, key=lambda path: (path.parent, path.name))


def _purpose(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{path.relative_to(ROOT)} has no docstring: its first line says what the file is for"
    return docstring.partition("\n")[0].rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
