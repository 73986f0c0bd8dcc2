"""Pin every package that this project installs, transitive ones too, without naming a registry.

    uv run python .ci/pins.py             pin what the dependencies need, keeping the versions pinned already
    uv run python .ci/pins.py --upgrade   the same with the newest versions that the dependencies allow
    uv run python .ci/pins.py --check     change nothing; exit with 1 if a pin is missing, left over or wrong

A `uv.lock` would pin as well, but it names the registry of whoever wrote it. So the versions stand in
pyproject.toml as constraints, which `uv run` obeys, and with hashes in the requirements that the images install.
Beside the requirements of the serving images lie their bills of materials in CycloneDX's form.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1]
PYPROJECT = FOLDER / "pyproject.toml"
REQUIREMENTS = {  # of the images, with the extras that each has
    FOLDER / "service" / "requirements.txt": ["postgres", "s3"],
    FOLDER / "service" / "requirements-gpu.txt": ["postgres", "s3", "gpu"],
    FOLDER / "deploy" / "requirements-worker.txt": ["evolve", "postgres", "ray", "s3"],
}
BILLS = {  # of materials, of the serving images
    FOLDER / "service" / "sbom.cdx.json": FOLDER / "service" / "requirements.txt",
    FOLDER / "service" / "sbom-gpu.cdx.json": FOLDER / "service" / "requirements-gpu.txt",
}
EMPTY_BILL = '{"components": []}'
COMMAND = "uv run python .ci/pins.py"
EXPORT = ["uv", "export", "--quiet", "--frozen", "--no-emit-project", "--no-header", "--no-annotate"]
BILL = ["uv", "export", "--quiet", "--frozen", "--no-emit-project", "--format", "cyclonedx1.5"]
COMPILE = ["uv", "pip", "compile", "--quiet", "--universal", "--no-header", "--no-annotate"]


@dataclass(frozen=True, slots=True)
class Pins:
    """The text of the files with every package pinned."""

    pyproject: str
    requirements: dict[Path, str]
    bills: dict[Path, str]


def pinned(pyproject: str) -> Pins:
    """Resolve the dependencies of `pyproject`, within its own pins, on all platforms and Python versions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pyproject.toml").write_text(pyproject)
        (folder / "README.md").touch()
        tables = tomllib.loads(pyproject)
        (folder / "build.in").write_text("\n".join(tables["build-system"]["requires"]))
        (folder / "build.txt").write_text("\n".join(tables["tool"]["uv"]["build-constraint-dependencies"]))
        _run(folder, ["uv", "lock", "--quiet"])
        packages = _run(folder, [*EXPORT, "--all-extras", "--all-groups", "--no-hashes"])
        serving = {path: _run(folder, [*EXPORT, "--no-dev", *_extras(path)]) for path in REQUIREMENTS}
        bills = {path: _run(folder, [*BILL, "--no-dev", *_extras(listed)]) for path, listed in BILLS.items()}
        tools = _run(folder, [*COMPILE, "build.in", "--constraints", "build.txt"])
    text = with_list(pyproject, "constraint-dependencies", as_constraints(packages))
    text = with_list(text, "build-constraint-dependencies", as_constraints(tools))
    head = f"# An image's packages. Written by: {COMMAND}\n"
    return Pins(
        text,
        {path: head + lines for path, lines in serving.items()},
        {path: without_places(bill) for path, bill in bills.items()},
    )


def _extras(path: Path) -> list[str]:
    return [f"--extra={extra}" for extra in REQUIREMENTS[path]]


def without_places(bill: str) -> str:
    """Return a bill of materials without where its packages were found, when, and by a number of its own."""
    found = json.loads(bill)
    found.pop("serialNumber", None)
    found["metadata"].pop("timestamp", None)
    for component in found["components"]:
        component.pop("externalReferences", None)
    return json.dumps(found, indent=1) + "\n"


def packages(bill: str) -> list[str]:
    """Return what a bill of materials lists: the tool that wrote it may be another."""
    return sorted(component["purl"] for component in json.loads(bill)["components"] if "purl" in component)


def as_constraints(requirements: str) -> list[str]:
    """Return pins without markers, except where a package has different versions on different platforms."""
    lines = [line for line in requirements.splitlines() if "==" in line]
    counts = Counter(line.split("==")[0] for line in lines)
    return [line if counts[line.split("==")[0]] > 1 else line.split(";")[0].strip() for line in lines]


def with_list(pyproject: str, key: str, values: list[str]) -> str:
    """Return `pyproject` with the list `key` of its table [tool.uv] replaced."""
    block = "".join([f"{key} = [\n", *(f'    "{value}",\n' for value in values), "]\n"])
    return re.sub(rf"^{key} = \[\n?(?:    .*\n)*\]\n", lambda _: block, pyproject, flags=re.MULTILINE)


def without_pins(pyproject: str) -> str:
    return with_list(with_list(pyproject, "constraint-dependencies", []), "build-constraint-dependencies", [])


def versions(requirements: str) -> list[str]:
    """Return the pins without hashes: a release may get further files, for a new Python say, after it was pinned."""
    return [line.removesuffix(" \\") for line in requirements.splitlines() if "==" in line]


def _run(folder: Path, command: list[str]) -> str:
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="change nothing, exit with 1 if something is not pinned")
    mode.add_argument("--upgrade", action="store_true", help="take the newest versions that are allowed")
    arguments = parser.parse_args()
    before = PYPROJECT.read_text()
    pins = pinned(without_pins(before) if arguments.upgrade else before)
    if not arguments.check:
        PYPROJECT.write_text(pins.pyproject)
        for path, lines in (pins.requirements | pins.bills).items():
            path.write_text(lines)
    elif (
        pins.pyproject != before
        or any(versions(lines) != versions(_text(path)) for path, lines in pins.requirements.items())
        or any(packages(bill) != packages(_text(path) or EMPTY_BILL) for path, bill in pins.bills.items())
    ):
        sys.exit(f"the pins do not fit the dependencies of pyproject.toml: run '{COMMAND}' and commit the change")


if __name__ == "__main__":
    main()
