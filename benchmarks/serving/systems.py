"""The systems that are compared, as processes: started, asked, weighed, stopped."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Literal

import psutil

from benchmarks.serving.client import Figures, Load
from benchmarks.serving.routes import task_name

SystemName = Literal["ours", "bentoml", "litserve", "ray", "fastapi"]
PEERS: tuple[SystemName, ...] = ("bentoml", "litserve", "ray")
START_TIMEOUT_S = 400


@dataclass(frozen=True, slots=True)
class Place:
    """Where the measured routes lie."""

    folder: Path  # of the stores
    store: str  # name of the store in it, and prefix of its whole models
    tasks: int


class System:
    """A running server; a context manager that stops it with all its processes."""

    def __init__(self, name: SystemName, place: Place) -> None:
        self.name = name
        self.place = place
        self.port = _free_port()
        self.start_up_s = 0.0
        self._log: IO[bytes] = (place.folder / f"{name}.log").open("wb")
        started = time.monotonic()
        environment = os.environ | {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(place.folder / name)}
        environment |= {"RAY_AUTH_MODE": "disabled"}  # everything here listens on loopback alone
        environment |= {"BENCHMARK_ARGUMENTS": "\n".join(self._arguments())}
        self._process = subprocess.Popen(self._command(), env=environment, stdout=self._log, stderr=self._log)
        self._await(started)

    def __enter__(self) -> "System":
        return self

    def __exit__(self, *_: object) -> None:
        processes = self._processes()
        for process in processes:
            process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            process.kill()
        self._process.wait()
        self._log.close()

    def memory_mib(self) -> float:
        """Return the proportional set size of all its processes."""
        return sum(_pss_kib(process.pid) for process in self._processes()) / 1024

    def measure(self, load: Load) -> Figures:
        """Run the client on it, in a process of its own."""
        command = [sys.executable, "-m", "benchmarks.serving.client", json.dumps(asdict(load))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return Figures(**json.loads(done.stdout))

    def load(self, image: Path, tasks: Sequence[str], *, concurrency: int, seconds: float) -> Load:
        """Return requests of one image for one task each."""
        paths = {"ours": "/v1/tasks/{task}/classify?logits=1", "fastapi": "/classify/{task}"}
        url = f"http://127.0.0.1:{self.port}{paths.get(self.name, '/classify')}"
        return Load(
            url=url,
            image=str(image),
            tasks=tasks,
            answers_per_request=1,
            multipart=self.name in PEERS,
            concurrency=concurrency,
            seconds=seconds,
            warmup_s=1.0,
            seed=0,
        )

    def load_of_many(self, image: Path, tasks: Sequence[str], *, concurrency: int, seconds: float) -> Load:
        """Return requests of one image for all tasks; only we take them at once."""
        load = self.load(image, tasks, concurrency=concurrency, seconds=seconds)
        if self.name != "ours":
            return replace(load, concurrency=len(tasks))
        url = f"http://127.0.0.1:{self.port}/v1/classify?logits=1&tasks={','.join(tasks)}"
        return replace(load, url=url, answers_per_request=len(tasks))

    def logits(self, image: Path, task: str) -> list[float]:
        """Return its answer to one request."""
        if self.name == "ours":
            url = f"http://127.0.0.1:{self.port}/v1/tasks/{task}/classify?logits=1"
            body, kind = image.read_bytes(), "image/jpeg"
        else:
            url = f"http://127.0.0.1:{self.port}/classify"
            body, kind = _form(task, image.read_bytes())
        request = urllib.request.Request(url, body, {"content-type": kind})
        answer = json.loads(urllib.request.urlopen(request, timeout=120).read())
        found: list[float] = answer["results"][0]["logits"] if self.name == "ours" else answer
        return found

    def _arguments(self) -> list[str]:
        whole = self.place.folder if self.name == "fastapi" else self.place.folder / "whole"
        return [str(self.port), str(whole), self.place.store, str(self.place.tasks)]

    def _command(self) -> list[str]:
        if self.name == "ours":
            store = self.place.folder / self.place.store
            return [sys.executable, "-m", "models", "serve", str(store), "--port", str(self.port)]
        if self.name == "bentoml":
            service = "benchmarks.serving.with_bentoml:Stock"
            options = ["--host", "127.0.0.1", "--port", str(self.port), "--working-dir", str(Path.cwd())]
            return [sys.executable, "-m", "bentoml", "serve", service, *options]
        return [sys.executable, "-m", f"benchmarks.serving.with_{self.name}", *self._arguments()]

    def _await(self, started: float) -> None:
        """Wait until it answers: for a task where it has one, else at all."""
        while True:
            if self._process.poll() is not None:
                raise SystemExit(f"{self.name} ended while starting: see {self._log.name}")
            if time.monotonic() - started > START_TIMEOUT_S:
                raise SystemExit(f"{self.name} was not ready after {START_TIMEOUT_S} s: see {self._log.name}")
            if self._is_ready():
                self.start_up_s = time.monotonic() - started
                return
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        path = {"ours": "/readyz", "bentoml": "/readyz", "litserve": "/health", "ray": "/-/healthz"}
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path.get(self.name, '/docs')}", timeout=5)
            if self.name == "ray":  # whose proxy is there before the deployment
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/routes", timeout=5)
                return "benchmark: ready" in Path(self._log.name).read_text()
        except urllib.error.HTTPError as error:
            return self.name == "ours" and self.place.tasks == 0 and "no task yet" in error.read().decode()
        except OSError:
            return False
        return True

    def _processes(self) -> list[psutil.Process]:
        own = psutil.Process(self._process.pid)
        return [own, *own.children(recursive=True)]


def tasks_of(place: Place) -> list[str]:
    return [task_name(index) for index in range(place.tasks)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pss_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def _form(task: str, image: bytes) -> tuple[bytes, str]:
    mark = "benchmark-boundary"
    head = f'--{mark}\r\nContent-Disposition: form-data; name="task"\r\n\r\n{task}\r\n--{mark}\r\n'
    file = 'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return (head + file).encode() + image + f"\r\n--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"
