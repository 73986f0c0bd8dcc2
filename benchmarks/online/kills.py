"""online-5: workers are killed over and over; every job must be done in the end, and nobody's at the same time.

Two workers share six small jobs. Each is killed at a moment of its first seconds drawn at random, whatever it does
then: importing, reading images, training, publishing, ending a job; and another starts at once.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.online.job import images, send
from benchmarks.reload.__main__ import be_own_user, free_port
from evolve.journal import iterations
from evolve.publish import create_store
from models.names import TaskName
from models.root import load_root
from models.store import Store

ROOT = "random:embed_dim=48,depth=4,num_heads=3,patch_size=8,image_size=64"
JOBS = 6
WORKERS = 2
BUDGET_S = 20
FIRST_S, LAST_S = 1.0, 14.0  # of a worker's life, in which it is killed
DEADLINE_S = 600.0
TAKEN_UP = re.compile(r"^(?P<at>\S+) taken up by \S+:(?P<pid>\d+), start \d+$", re.MULTILINE)


@dataclass(slots=True)
class Life:
    """A worker's process, from its start to when it was killed."""

    process: "subprocess.Popen[bytes]"
    dies_at: float  # Unix time
    ended_at: float | None = None


def measure(folder: Path, kills: int) -> dict[str, Any]:
    """Return how often workers were killed, and what became of the jobs."""
    store = create_store(folder / "store", load_root(ROOT))
    with serving(store, folder) as client:
        whole = list(images("train").items())
        jobs = [send(client, f"part-{at}", dict(whole[at :: 2 * JOBS]), BUDGET_S) for at in range(JOBS)]
        started = time.time()
        lives = kill_workers(store, client, kills)
        found = {job: client.get(f"/v1/jobs/{job}").json() for job in jobs}
        logs = {job: client.get(f"/v1/jobs/{job}/log").text for job in jobs}
        live = [task["task"] for task in client.get("/v1/tasks").json()["tasks"]]
    lost = [job for job, view in found.items() if view["state"] != "done" or view["task"] not in live]
    died_at = {life.process.pid: life.ended_at for life in lives}
    return {
        "kills": sum(life.ended_at is not None for life in lives),
        "jobs": len(jobs),
        "lost": len(lost),
        "run_twice": sum(run_twice(store, view["task"], logs[job], died_at) for job, view in found.items()),
        "starts": [len(TAKEN_UP.findall(log)) for log in logs.values()],
        "candidates": [view["candidates"] for view in found.values()],
        "seconds": round(time.time() - started, 1),
        "logs": {job: logs[job].splitlines() for job in lost},
    }


def kill_workers(store: Store, client: httpx.Client, kills: int) -> list[Life]:
    """Keep two workers up, kill so many, then let the last ones do what is left; return all of them."""
    rng = np.random.default_rng(0)
    lives: list[Life] = []
    alive: list[Life] = []
    deadline = time.time() + DEADLINE_S
    try:
        while any(job["state"] in ("queued", "running") for job in client.get("/v1/jobs").json()["jobs"]):
            assert time.time() < deadline, "the jobs are not done in time"
            for life in [life for life in alive if time.time() > life.dies_at]:
                life.process.kill()
                life.process.wait()
                life.ended_at = time.time()
                alive.remove(life)
            while len(alive) < WORKERS:
                dies_at = time.time() + rng.uniform(FIRST_S, LAST_S) if len(lives) < kills else deadline
                command = [sys.executable, "-m", "models", "worker", str(store.folder)]
                alive.append(Life(subprocess.Popen(command), dies_at))
                lives.append(alive[-1])
            time.sleep(0.1)
    finally:
        for life in alive:
            life.process.terminate()
            life.process.wait()
    return lives


def run_twice(store: Store, task: str, log: str, died_at: dict[int, float | None]) -> int:
    """Count how often a worker took the job up before the one before it was dead, or began it from the start."""
    held = [(int(found["pid"]), datetime.fromisoformat(found["at"]).timestamp()) for found in TAKEN_UP.finditer(log)]
    overlaps = 0
    for (before, _), (_, taken_at) in pairwise(held):
        died = died_at[before]
        overlaps += died is None or died > taken_at + 1  # the log's times are whole seconds
    return overlaps + len(iterations(store, TaskName(task))) - 1


@contextmanager
def serving(store: Store, folder: Path) -> Iterator[httpx.Client]:
    """Serve the store, which has no task yet."""
    port = free_port()
    command = [sys.executable, "-m", "models", "serve", str(store.folder), "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, "HOME": str(folder)})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            deadline = time.monotonic() + 120
            while not _is_alive(client):
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.2)
            be_own_user(client, folder)
            yield client
    finally:
        server.terminate()
        server.wait(60)


def _is_alive(client: httpx.Client) -> bool:
    try:
        return client.get("/v1/tasks").status_code == 200
    except httpx.TransportError:
        return False
