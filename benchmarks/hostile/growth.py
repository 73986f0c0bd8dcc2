"""What a server keeps of requests that it has answered: its memory after many of them, beside that after a tenth."""

import asyncio
from pathlib import Path
from typing import Any

import httpx

from benchmarks.hostile.names import TASK
from benchmarks.hostile.pictures import tiny_photo
from benchmarks.hostile.target import Target

CONNECTIONS = 8


def measure(folder: Path, requests: int) -> dict[str, Any]:
    """Send `requests` over connections that are kept, and return the memory in MiB, early and late."""
    with Target(folder) as target:
        asyncio.run(_send(target.url, requests // 10))
        early = target.footprint().resident_mib
        asyncio.run(_send(target.url, requests - requests // 10))
        late = target.footprint().resident_mib
    return {"requests": requests, "early_mib": early, "late_mib": late, "growth_mib": late - early}


async def _send(url: str, requests: int) -> None:
    remaining = iter(range(requests))
    path, image = f"{url}/v1/tasks/{TASK}/classify", tiny_photo(size=32)

    async def ask() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            for _ in remaining:
                answer = await client.post(path, content=image, headers={"content-type": "image/jpeg"})
                answer.raise_for_status()

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
