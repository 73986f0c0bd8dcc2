"""Real data sets and weights that are not part of the project: found where they are, else the test is skipped."""

import os
from pathlib import Path

import pytest

VARIABLE = "TEST_SHARED_DATA"  # not MU2NET_...: those are the server's settings, which refuses unknown ones


def shared_folder() -> Path:
    """Return where real data would be; it may not exist."""
    return Path(os.environ.get(VARIABLE, Path(__file__).parents[3] / "shared"))


def shared_file(name: str) -> Path:
    """Return the file `name` of the shared data folder; skips the calling test, with the reason, without it.

    Mark such tests with `@pytest.mark.shared_data`.
    """
    folder = shared_folder()
    if not (folder / name).is_file():
        pytest.skip(f"needs {name} in the folder that {VARIABLE} names, or in ../shared beside the checkout")
    return folder / name
