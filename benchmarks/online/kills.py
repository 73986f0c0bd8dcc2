"""Two workers on three jobs, one of them killed every few seconds: no job may be lost, or worked on by two at once."""

import re
import subprocess
import sys
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from evolve.journal import Journal
from evolve.publish import create_store
from models.jobs import Job, JobQueue, JobRequest, queue_url
from models.names import TaskName
from models.root import load_root
from models.store import Store
from models.uploads import Uploads
from tests.conftest import TINY_ROOT, draw_image_folder
from tests.drawn import zipped

KILLS = 20
PAUSES_S = (4.0, 12.0)  # between kills: from amid the import of torch to amid the work
BUDGET = "25s"
TASKS = ("ants", "bees", "crows")
TAKEN = re.compile(r"^(\S+) taken up by \S+:(\d+), start \d+$", re.MULTILINE)


def measure(folder: Path) -> dict[str, Any]:
    """Return how many jobs were lost or held by two living workers at once."""
    rng = np.random.default_rng(0)
    store = create_store(folder / "store", load_root(TINY_ROOT))
    queue = JobQueue(queue_url(store, None))
    data = zipped(draw_image_folder(folder / "images", images_per_class=20))
    jobs = [_submit(store, queue, TaskName(name), data) for name in TASKS]
    workers = [_start(store) for _ in range(2)]
    died: dict[int, float] = {}
    for _ in range(KILLS):
        time.sleep(float(rng.uniform(*PAUSES_S)))
        victim = workers.pop(int(rng.integers(len(workers))))
        victim.kill()
        victim.wait()
        died[victim.pid] = time.time()
        workers.append(_start(store))
        if not queue.unfinished():
            jobs += [_submit(store, queue, TaskName(f"{name}{len(jobs)}"), data) for name in TASKS]
    deadline = time.monotonic() + 600
    while queue.unfinished() and time.monotonic() < deadline:
        time.sleep(1.0)
    for worker in workers:
        worker.terminate()
        worker.wait()
    return _figures(store, queue, jobs, died)


def _submit(store: Store, queue: JobQueue, task: TaskName, data: Path) -> Job:
    return queue.submit(JobRequest(task, "add", Uploads(store).put(task, data), BUDGET))


def _start(store: Store) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "models", "worker", str(store.folder), "--workers", "1"])


def _figures(store: Store, queue: JobQueue, jobs: list[Job], died: dict[int, float]) -> dict[str, Any]:
    """Hold the queue's logs against the moments of the kills: whoever takes a job up, its last holder must be dead."""
    lost = [job.id for job in jobs if queue.job(job.id).state != "done"]
    lost += [job.id for job in jobs if job.request.task not in store.release().tasks]
    twice, starts, iterations = [], [], []
    for job in jobs:
        taken = [
            (datetime.fromisoformat(at).timestamp(), int(pid)) for at, pid in TAKEN.findall(queue.log_text(job.id))
        ]
        starts.append(len(taken))
        iterations.append(Journal(store, job.request.task, 2).start() is not None)
        for (_, holder), (at, _) in pairwise(taken):
            if died.get(holder, float("inf")) > at + 1.0:  # the log's moments are whole seconds
                twice.append(job.id)
    return {
        "kills": len(died),
        "jobs": len(jobs),
        "starts": starts,
        "begun_anew": sum(iterations),
        "lost": lost,
        "twice": twice,
        "lost_or_twice": len(lost) + len(twice),
    }
