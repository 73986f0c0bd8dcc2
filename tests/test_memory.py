"""Free memory goes back to the system by itself, and only where there is some."""

import asyncio

import pytest

from service import memory
from service.memory import Trimmer


def test_memory_is_trimmed_where_it_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = [100, 90, 100, 101, 95, 105, 110, None]
    trimmed_at: list[int] = []
    monkeypatch.setattr(memory, "resident_bytes", lambda: resident.pop(0))
    monkeypatch.setattr(memory, "trim", lambda: trimmed_at.append(len(resident)))

    async def look() -> None:
        trimmer = Trimmer(every_s=0.0, growth_bytes=10)
        trimmer.start()
        while resident:
            await asyncio.sleep(0.001)
        trimmer.stop()

    asyncio.run(look())
    assert trimmed_at == [4, 1]  # at 101, above 90; then at 110, above 95
