"""The map is right: imports go one way, serving needs no torch, links lead somewhere, nothing private is tracked."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.map import PAGE, page

FOLDER = Path(__file__).parents[1]
DOCS = sorted(str(path.relative_to(FOLDER)) for path in (FOLDER / "docs").rglob("*.md"))
PACKAGES = ("models", "evolve", "service")
FORBIDDEN = {"models": {"evolve", "service"}, "evolve": {"service"}, "service": {"evolve"}}
TRAINING = {"torch", "torchvision", "timm", "onnx", "sklearn", "datasets", "matplotlib"}  # extra `evolve` brings them
TORCH_MODULES = {"models.root", "models.vit"}  # of models/: the network itself
LARGE_FILE_BYTES = 500_000


def modules(package: str) -> list[Path]:
    return sorted((FOLDER / package).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(FOLDER).with_suffix("").parts)


def imported(path: Path) -> Iterator[str]:
    """Return the modules that a file names in imports, those within functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively: name the package"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_from_service_and_evolve_to_models(package: str) -> None:
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in modules(package)
        for name in imported(path)
        if name.split(".")[0] in FORBIDDEN[package]
    ]
    assert not wrong


def test_serving_names_no_training_package() -> None:
    serving = [path for package in ("models", "service") for path in modules(package)]
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in serving
        if module_name(path) not in TORCH_MODULES
        for name in imported(path)
        if name.split(".")[0] in TRAINING or name in TORCH_MODULES
    ]
    assert not wrong


def test_serving_imports_no_training_package() -> None:
    serving = [
        module_name(path)
        for package in ("models", "service")
        for path in modules(package)
        if module_name(path) not in TORCH_MODULES and path.stem not in {"__init__", "__main__"}
    ]
    code = (
        f"import importlib, sys\nfor name in {serving!r}: importlib.import_module(name)\n"
        f"print(sorted({TRAINING!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


# files


@pytest.fixture(scope="module")
def files() -> list[str]:
    """Every file of the project: tracked by git, or new and not ignored."""
    if not (FOLDER / ".git").exists():
        pytest.skip("needs a git checkout to tell the project's files from others")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True, check=True).stdout
    return sorted(name for name in listed.split("\0") if name and (FOLDER / name).is_file())


def test_the_map_is_made_from_the_docstrings() -> None:
    assert PAGE.read_text() == page(), "docs/map.md is old: run 'uv run python -m docs.map'"


def test_readme_fits_on_a_page_and_names_every_folder(files: list[str]) -> None:
    readme = (FOLDER / "README.md").read_text()
    assert len(readme.splitlines()) <= 200
    folders = {name.partition("/")[0] for name in files if "/" in name and not name.startswith(".")}
    assert not {folder for folder in folders if f"| [{folder}]({folder}) |" not in readme}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", *DOCS])
def test_links_lead_to_files(name: str) -> None:
    here = FOLDER / name
    targets = re.findall(r"(?:\]\(|src=\")(?!https?:|#)([^)#\"]+)", here.read_text())
    assert not [target for target in targets if not (here.parent / target).exists()]


def test_no_lock_file_is_tracked(files: list[str]) -> None:
    assert not [name for name in files if Path(name).name in {"uv.lock", "poetry.lock", "Pipfile.lock"}]


def test_no_registry_and_no_path_of_a_machine_is_named(files: list[str]) -> None:
    # put together here, so that this file passes
    hosts = "|".join(["pypi" + r"\.org", "python" + r"hosted\.org", "download" + r"\.pytorch\.org", "index" + "-url"])
    folders = "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me", "o" + "pt", "Us" + "ers"])
    pattern = re.compile(rf"{hosts}|(?<![\w.)\]}}])/({folders})/")
    found = []
    for name in files:
        data = (FOLDER / name).read_bytes()
        if b"\0" not in data:
            found += [f"{name}: {match[0]}" for match in pattern.finditer(data.decode(errors="replace"))]
    assert not found


def test_large_files_are_not_tracked(files: list[str]) -> None:
    assert not [name for name in files if (FOLDER / name).stat().st_size > LARGE_FILE_BYTES]
