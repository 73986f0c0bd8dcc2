"""The client of all systems, a process of its own: so many requests at a time, for so many seconds.

Prints one JSON object. Its own processor time is in it, since client and servers share the cores.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import aiohttp
import numpy as np


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked. `url` may hold `{task}`; `multipart` puts image and task into a form."""

    url: str
    image: str  # path of an encoded image
    tasks: Sequence[str]  # one is drawn for each request
    answers_per_request: int
    multipart: bool
    concurrency: int
    seconds: float
    warmup_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of it. Throughput counts pairs of image and task."""

    throughput: float
    p50_ms: float
    p99_ms: float
    requests: int
    failures: int
    client_cpu_s: float


async def measure(load: Load) -> Figures:
    with open(load.image, "rb") as file:
        image = file.read()
    rng = random.Random(load.seed)
    latencies: list[float] = []
    failures = 0
    begin = time.perf_counter() + load.warmup_s
    end = begin + load.seconds

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal failures
        while (started := time.perf_counter()) < end:
            task = rng.choice(load.tasks)
            data: bytes | aiohttp.FormData = image
            if load.multipart:
                data = aiohttp.FormData()
                data.add_field("task", task)
                data.add_field("image", image, filename="image.jpg", content_type="image/jpeg")
            headers = None if load.multipart else {"content-type": "image/jpeg"}
            async with session.post(load.url.format(task=task), data=data, headers=headers) as response:
                await response.read()
                ended = time.perf_counter()
                if response.status != 200:
                    failures += 1
                elif begin <= ended <= end:
                    latencies.append(ended - started)

    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(worker(session) for _ in range(load.concurrency)))
    return Figures(
        throughput=len(latencies) / load.seconds * load.answers_per_request,
        p50_ms=float(np.percentile(latencies, 50) * 1000) if latencies else 0.0,
        p99_ms=float(np.percentile(latencies, 99) * 1000) if latencies else 0.0,
        requests=len(latencies),
        failures=failures,
        client_cpu_s=time.process_time(),
    )


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(measure(Load(**json.loads(sys.argv[1])))))))
