"""Threads are counted by the cores that a process may use, not by those that the machine has."""

import os
from pathlib import Path

import pytest

from models.cores import usable_cores


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000\n", 8), ("200000 100000\n", 2), ("250000 100000\n", 3), ("5000 100000\n", 1), ("6400000 100000\n", 8),
     ("nonsense\n", 8), (None, 8)],
)  # fmt: skip
def test_a_containers_share_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == cores
