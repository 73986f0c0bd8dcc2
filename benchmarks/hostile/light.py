"""The light route's requests a second of this commit and of another one, in turns."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.hostile.pictures import tiny_photo
from benchmarks.reload.__main__ import free_port, wait_until_ready
from benchmarks.serving.client import Load
from benchmarks.serving.routes import LIGHT, make_store, task_name

TASKS = 20
CONCURRENCY = 16
SECONDS = 4.0
REPOSITORY = Path(__file__).parents[2]


def measure(folder: Path, before: str, *, rounds: int) -> dict[str, Any]:
    """Return the throughput of both in each round, and the median of their ratios."""
    store = make_store(folder, LIGHT, TASKS)
    image = folder / "light.jpg"
    image.write_bytes(tiny_photo(size=32))
    other = folder / "before"
    subprocess.run(["git", "worktree", "add", "--detach", str(other), before], cwd=REPOSITORY, check=True)
    try:
        found = _measure({"before": other, "after": REPOSITORY}, folder, store.folder, image, rounds)
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=REPOSITORY, check=True)
    ratios = [after / earlier for after, earlier in zip(found["after"], found["before"], strict=True)]
    return {
        "compared_with": before,
        "requests_a_second": found,
        "ratios": [round(ratio, 4) for ratio in ratios],
        "ratio": median(ratios),
    }


def _measure(checkouts: dict[str, Path], folder: Path, store: Path, image: Path, rounds: int) -> dict[str, list[float]]:
    servers = {name: _start(checkout, folder / f"home-{name}", store) for name, checkout in checkouts.items()}
    try:
        for _, port in servers.values():
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                wait_until_ready(client)
        found: dict[str, list[float]] = {name: [] for name in servers}
        for turn in range(rounds):
            names: Sequence[str] = list(servers) if turn % 2 else list(servers)[::-1]
            for name in names:
                found[name].append(_throughput(servers[name][1], image))
        return found
    finally:
        for process, _ in servers.values():
            process.terminate()
        for process, _ in servers.values():
            process.wait(90)


def _start(checkout: Path, home: Path, store: Path) -> tuple["subprocess.Popen[bytes]", int]:
    home.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "models", "serve", str(store), "--port", str(port)]
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(checkout)}
    with (home / "server.log").open("wb") as log:
        return subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log), port


def _throughput(port: int, image: Path) -> float:
    load = Load(
        url=f"http://127.0.0.1:{port}/v1/tasks/{{task}}/classify?logits=1",
        image=str(image),
        tasks=[task_name(index) for index in range(TASKS)],
        answers_per_request=1,
        multipart=False,
        concurrency=CONCURRENCY,
        seconds=SECONDS,
        warmup_s=1.0,
        seed=0,
    )
    command = [sys.executable, "-m", "benchmarks.serving.client", json.dumps(asdict(load))]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout)
    assert not figures["failures"], f"{figures['failures']} requests failed"
    throughput: float = figures["throughput"]
    return throughput
