"""`mu2net serve --with-worker` as real processes: an upload becomes a live task, and both processes end together."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from models.jobs import JobQueue, queue_url
from models.names import TaskName
from models.own_token import own_token
from models.store import Store
from tests.support.images import zipped
from tests.support.processes import environment, free_port, wait_until
from tests.support.stores import make_store
from tests.support.tiny import draw_image_folder

STOP_S = 60
WORK_S = 300  # a worker gets only what the machine has left


class Running:
    """A server with its worker, in a process group of its own as a terminal would give them."""

    def __init__(self, store: Store, home: Path, client: httpx.Client, port: int) -> None:
        program = Path(sys.executable).with_name("mu2net")
        command = [str(program), "serve", str(store.folder), "--port", str(port), "--with-worker"]
        env = environment(home, MU2NET_POLL_INTERVAL_S="0.1")
        self.process = subprocess.Popen(command, env=env, start_new_session=True)
        self.client = client
        self.client.headers["authorization"] = f"Bearer {own_token(home / '.cache' / 'mu2net')}"

    def wait_until_alive(self) -> None:
        wait_until(self.process, lambda: self.client.get("/livez").status_code == 200)

    def add(self, name: str, data: Path, budget: str) -> str:
        """Send a task and return its job."""
        files = {"data": (data.name, data.read_bytes(), "application/zip")}
        answer = self.client.post("/v1/tasks", data={"name": name, "budget": budget}, files=files)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job"]["id"])

    def wait_until_live(self, name: str) -> None:
        wait_until(self.process, lambda: self.client.get(f"/v1/tasks/{name}").status_code == 200, WORK_S)

    def classify(self, name: str, image: Path) -> str:
        answer = self.client.post(f"/v1/tasks/{name}/classify", files={"image": image.read_bytes()})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["results"][0]["predictions"][0]["label"])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_image_folder(tmp_path / "birds", images_per_class=12)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store")


@pytest.fixture
def running(store: Store, tmp_path: Path) -> Iterator[Running]:
    port = free_port()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        started = Running(store, tmp_path, client, port)
        try:
            yield started
        finally:
            if started.process.poll() is None:
                os.killpg(started.process.pid, signal.SIGKILL)
                started.process.wait()


def test_an_upload_is_live_before_its_job_ends_and_ctrl_c_ends_both(
    running: Running, store: Store, images: Path
) -> None:
    running.wait_until_alive()
    job = running.add("birds", zipped(images), "10m")
    running.wait_until_live("birds")
    assert running.classify("birds", images / "red" / "0.png") in ("red", "green", "blue")
    found = running.client.get(f"/v1/jobs/{job}").json()
    assert (found["state"], found["phase"], found["task"]) == ("running", "training", "birds")
    family = psutil.Process(running.process.pid).children(recursive=True)
    assert len(family) >= 2
    os.killpg(running.process.pid, signal.SIGINT)  # what a terminal does: every process of the group gets it
    assert running.process.wait(STOP_S) == 0
    assert not psutil.wait_procs(family, timeout=STOP_S)[1], "nothing is left behind"
    queue = JobQueue(queue_url(store, None))
    assert queue.job(job).state == "queued", "the next worker goes on with it"
    assert TaskName("birds") in store.release().tasks


@pytest.mark.slow  # a job to its end, and a worker that has to be started again
def test_a_worker_that_died_is_started_again_and_sigterm_ends_both(
    running: Running, store: Store, images: Path
) -> None:
    running.wait_until_alive()
    (worker,) = [child for child in psutil.Process(running.process.pid).children() if "worker" in child.cmdline()]
    worker.kill()
    job = running.add("birds", zipped(images), "1s")
    wait_until(running.process, lambda: running.client.get(f"/v1/jobs/{job}").json()["state"] == "done", WORK_S)
    running.wait_until_live("birds")
    assert running.classify("birds", images / "red" / "0.png") in ("red", "green", "blue")
    family = psutil.Process(running.process.pid).children(recursive=True)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(STOP_S) == 0
    assert not psutil.wait_procs(family, timeout=STOP_S)[1], "nothing is left behind"
