"""The client that nobody may disturb: so many requests a second from 127.0.0.1, whatever becomes of those before.

Every second request comes over a connection of its own, the others over kept ones.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import aiohttp
import numpy as np

from benchmarks.hostile.names import TASK
from benchmarks.hostile.pictures import tiny_photo

RATE = 20.0  # requests a second
TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One request. Times are Unix time; latency counts from when it was due."""

    due_at: float
    latency_s: float
    status: int  # 0 where the connection failed or nothing came in time
    detail: str


class Healthy:
    """Asks from `start` to `stop`, in a process of its own."""

    def __init__(self, url: str) -> None:
        self._pipe, theirs = get_context("spawn").Pipe()
        self._process: BaseProcess = get_context("spawn").Process(target=_run, args=(url, theirs), daemon=True)

    def start(self) -> None:
        self._process.start()

    def stop(self) -> list[Reply]:
        self._pipe.send("stop")
        replies: list[Reply] = self._pipe.recv()
        self._process.join()
        return replies


def percentile_ms(replies: Sequence[Reply], q: float) -> float:
    return float(np.percentile([reply.latency_s for reply in replies], q)) * 1000


def _run(url: str, pipe: Connection) -> None:
    pipe.send(asyncio.run(_ask_all(url, pipe)))


async def _ask_all(url: str, pipe: Connection) -> list[Reply]:
    image = tiny_photo()
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    pending: list[asyncio.Task[Reply]] = []
    async with (
        aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)) as fresh,
        aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector()) as kept,
    ):
        due = time.time()
        while not pipe.poll():
            due += 1 / RATE
            await asyncio.sleep(max(0.0, due - time.time()))
            session = (fresh, kept)[len(pending) % 2]
            pending.append(asyncio.create_task(_ask(session, image, due)))
        return list(await asyncio.gather(*pending))


async def _ask(session: aiohttp.ClientSession, image: bytes, due: float) -> Reply:
    try:
        headers = {"content-type": "image/jpeg"}
        async with session.post(f"/v1/tasks/{TASK}/classify", data=image, headers=headers) as response:
            text = await response.text()
            return Reply(due, time.time() - due, response.status, "" if response.status == 200 else text[:300])
    except (aiohttp.ClientError, TimeoutError) as error:
        return Reply(due, time.time() - due, 0, repr(error)[:300])
