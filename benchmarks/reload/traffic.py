"""Constant mixed traffic, in a process of its own: so many requests a second, whatever becomes of those before."""

import asyncio
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import aiohttp
import numpy as np
from PIL import Image

from models.names import RouteId

IMAGES = 4
TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One request and what came of it. Times are Unix time; latency counts from when it was due."""

    due_at: float
    ended_at: float
    task: str
    image: int
    status: int  # 0 where the connection failed
    release: int = -1
    route: RouteId = RouteId("")
    logits: tuple[float, ...] = ()

    @property
    def latency_s(self) -> float:
        return self.ended_at - self.due_at


def pictures() -> list[bytes]:
    """Return the encoded images that are sent."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(IMAGES):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(file, "JPEG")
        found.append(file.getvalue())
    return found


class Traffic:
    """Asks for `tasks`, each as often as it is listed, between start and stop."""

    def __init__(self, url: str, tasks: Sequence[str], rate: float) -> None:
        self._pipe, theirs = get_context("spawn").Pipe()
        self._process: BaseProcess = get_context("spawn").Process(
            target=_run, args=(url, list(tasks), rate, theirs), daemon=True
        )

    def start(self) -> None:
        self._process.start()

    def stop(self) -> list[Reply]:
        self._pipe.send("stop")
        replies: list[Reply] = self._pipe.recv()
        self._process.join()
        return replies


def _run(url: str, tasks: Sequence[str], rate: float, pipe: Connection) -> None:
    pipe.send(asyncio.run(_send_all(url, tasks, rate, pipe)))


async def _send_all(url: str, tasks: Sequence[str], rate: float, pipe: Connection) -> list[Reply]:
    rng = np.random.default_rng(1)
    images = pictures()
    pending: list[asyncio.Task[Reply]] = []
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(limit=200)) as session:
        due = time.time()
        while not pipe.poll():
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.time()))
            task, image = str(rng.choice(tasks)), int(rng.integers(IMAGES))
            pending.append(asyncio.create_task(_ask(session, task, image, images[image], due)))
        return list(await asyncio.gather(*pending))


async def _ask(session: aiohttp.ClientSession, task: str, image: int, body: bytes, due: float) -> Reply:
    try:
        headers = {"content-type": "image/jpeg"}
        async with session.post(f"/v1/tasks/{task}/classify?logits=1&top_k=1", data=body, headers=headers) as response:
            found = await response.json()
            if response.status != 200:
                return Reply(due, time.time(), task, image, response.status)
    except (aiohttp.ClientError, TimeoutError):
        return Reply(due, time.time(), task, image, 0)
    logits = tuple(found["results"][0]["logits"])
    return Reply(due, time.time(), task, image, 200, found["release"], RouteId(found["route"]), logits)
