"""The attacked server as a process with default settings, and what it holds: memory, file descriptors."""

import json
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from benchmarks.hostile.names import PRIVATE, TASK, WIDE
from benchmarks.hostile.pictures import tiny_photo
from benchmarks.reload.__main__ import free_port, wait_until_ready
from benchmarks.serving.routes import LIGHT
from models.store import Store
from tests.support.stores import TaskPlan, make_store

WIDE_CLASSES = 40_000
SAMPLE_S = 0.25


@dataclass(frozen=True, slots=True)
class Footprint:
    """What all processes of a server hold together. A page that several of them share counts for each."""

    resident_mib: float
    descriptors: int


class Target:
    """A running server on a store with a light, a private and a very wide task; a context manager."""

    def __init__(self, folder: Path) -> None:
        plan = TaskPlan(TASK, depth=3, image_size=32, num_classes=10)
        private = TaskPlan(PRIVATE, depth=1, image_size=16, private=True, seed=2)
        wide = [TaskPlan(WIDE, depth=1, image_size=16, num_classes=WIDE_CLASSES, seed=seed) for seed in (3, 4)]
        self.store: Store = make_store(folder / "store", plan, private, *wide, root=LIGHT.root)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._token_file = folder / ".cache" / "mu2net" / "token"
        self._log = (folder / "server.log").open("wb")
        command = [sys.executable, "-m", "models", "serve", str(self.store.folder), "--port", str(self.port)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MU2NET_")}
        self._process = subprocess.Popen(
            command, env={**environment, "HOME": str(folder)}, stdout=self._log, stderr=self._log
        )

    def __enter__(self) -> "Target":
        with httpx.Client(base_url=self.url, timeout=60) as client:
            wait_until_ready(client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(90)
        self._log.close()

    @property
    def token(self) -> str:
        """The secret of this machine's user, which changes need on a server without keys."""
        return self._token_file.read_text().strip()

    def queue_job(self) -> str:
        """Send a small task, which waits for a worker for ever, and return its job."""
        file = BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for index in range(8):
                archive.writestr(f"{'ab'[index % 2]}/{index}.png", tiny_photo(index))
        form = {"name": "waiting", "budget": "60s"}
        upload = {"data": ("waiting.zip", file.getvalue(), "application/zip")}
        headers = {"authorization": f"Bearer {self.token}"}
        answer = httpx.post(f"{self.url}/v1/tasks", data=form, files=upload, headers=headers, timeout=60)
        answer.raise_for_status()
        job: str = json.loads(answer.text)["job"]["id"]
        return job

    def footprint(self) -> Footprint:
        root = psutil.Process(self._process.pid)
        resident, descriptors = 0, 0
        for process in [root, *root.children(recursive=True)]:
            try:
                resident += process.memory_info().rss
                descriptors += process.num_fds()
            except psutil.NoSuchProcess:  # a decoder that ended in between
                continue
        return Footprint(resident / 2**20, descriptors)


class Watch:
    """Measures a server's memory all the while, on a thread of its own; a context manager."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.peak_mib = 0.0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.peak_mib = max(self.peak_mib, self._target.footprint().resident_mib)
