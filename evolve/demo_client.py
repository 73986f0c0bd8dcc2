"""The demo's clients of the running server: one that waits, one that measures, one that never stops asking."""

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from models.errors import NotReady

READY_TIMEOUT_S = 60.0
PAUSE_S = 0.02  # between the steady client's requests: it shares two cores with the evolution
LATENCY_REQUESTS = 50


@dataclass(frozen=True, slots=True)
class Steadiness:
    """What the steady client saw."""

    releases: tuple[int, ...]  # that answered it, in order
    requests: int
    failed: int
    is_bit_identical: bool  # whether each image had the same logits from every release


class SteadyClient:
    """Asks for the same images of one task, one at a time, in a thread, until it is stopped."""

    def __init__(self, url: str, task: str, images: Sequence[bytes]) -> None:
        self._url = f"{url}/v1/tasks/{task}/classify?logits=1"
        self._images = images
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._requests = self._failed = 0
        self._releases: list[int] = []
        self._logits: dict[int, set[tuple[float, ...]]] = defaultdict(set)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> Steadiness:
        self._stop.set()
        self._thread.join()
        identical = all(len(seen) == 1 for seen in self._logits.values())
        return Steadiness(tuple(self._releases), self._requests, self._failed, identical)

    def _run(self) -> None:
        with httpx.Client() as client:
            while not self._stop.is_set():
                self._ask(client, self._requests % len(self._images))
                time.sleep(PAUSE_S)

    def _ask(self, client: httpx.Client, index: int) -> None:
        self._requests += 1
        try:
            response = client.post(self._url, content=self._images[index], headers={"content-type": "image/png"})
            response.raise_for_status()
        except httpx.HTTPError:
            self._failed += 1
            return
        answer = response.json()
        self._logits[index].add(tuple(answer["results"][0]["logits"]))
        if answer["release"] not in self._releases:
            self._releases.append(answer["release"])


def classify(client: httpx.Client, task: str, image: bytes) -> str:
    """Return the most probable label of an image."""
    response = client.post(f"/v1/tasks/{task}/classify", content=image, headers={"content-type": "image/png"})
    response.raise_for_status()
    return str(response.json()["results"][0]["predictions"][0]["label"])


def accuracy(client: httpx.Client, task: str, files: Sequence[Path]) -> float:
    """Return the share of image files that the server gives the name of their folder."""
    return sum(classify(client, task, file.read_bytes()) == file.parent.name for file in files) / len(files)


def latency_ms(client: httpx.Client, task: str, image: bytes) -> float:
    """Return the median time of a request, one at a time, as the client sees it."""
    times = []
    for _ in range(LATENCY_REQUESTS):
        started = time.perf_counter()
        classify(client, task, image)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def wait_for_task(client: httpx.Client, task: str, *, log: Path) -> None:
    """Wait until the server answers for a task; NotReady, with the end of the server's log, if it does not."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if client.get(f"/v1/tasks/{task}").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.1)
    raise NotReady(
        f"the server did not take up task {task!r} within {READY_TIMEOUT_S:.0f} s; its log ends: "
        + "".join(log.read_text().splitlines(keepends=True)[-10:])
    )
