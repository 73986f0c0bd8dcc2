"""Looking at uploaded images in a process of its own: what bounds it, whose turn it is, and that it ends."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image

from models.errors import InvalidData, Overloaded
from models.inspection import MAX_OF_A_CLIENT, MEMORY_LIMIT, Inspected, Inspections, inspect_apart
from tests.support.images import draw_folder, zipped

DEADLINE_S = 120.0


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return zipped(draw_folder(tmp_path / "pets", {"cat": 3, "dog": 3}))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


def processes() -> list[psutil.Process]:
    """Return the inspections that this process has started and that are there still."""
    found = []
    for child in psutil.Process().children():
        try:
            if "models.inspection" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def test_what_is_found(pets: Path) -> None:
    assert asyncio.run(inspect_apart(pets, shown_as="'pets'")) == Inspected(images=6, classes=2)


def test_a_refusal_comes_back_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"^'pets' has the one class 'cat'; at least two are needed"):
        asyncio.run(inspect_apart(zipped(draw_folder(tmp_path / "pets", {"cat": 3})), shown_as="'pets'"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of memory that the system holds a process to")
def test_memory_is_bounded(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "pets", {"cat": 2, "dog": 1})
    Image.new("RGBA", (7000, 7000)).save(folder / "dog/large.png", compress_level=1)  # 196 MB decoded
    limit = 160 * 2**20
    with pytest.raises(InvalidData) as caught:
        asyncio.run(inspect_apart(zipped(folder), shown_as="'pets'", max_bytes=limit))
    assert str(caught.value) == (
        "'pets' cannot be looked at within 167,772,160 bytes of memory: send fewer or smaller images"
    )
    assert asyncio.run(inspect_apart(zipped(folder), shown_as="'pets'")) == Inspected(images=4, classes=2)


def test_some_are_looked_at_at_once_and_of_a_client_one(pets: Path) -> None:
    async def ask() -> None:
        inspections = Inspections(at_once=2, max_bytes=MEMORY_LIMIT)

        def inspect(client: str) -> "asyncio.Task[Inspected]":
            return asyncio.create_task(inspections.inspect(pets, shown_as="'pets'", client=client))

        mine = [inspect("greedy") for _ in range(MAX_OF_A_CLIENT)]
        await until(lambda: len(processes()) == 1)
        (first,) = processes()
        first.suspend()
        with pytest.raises(Overloaded, match=r"^4 zips of this client are being looked at or wait for it, and at most"):
            await inspect("greedy")
        assert (await inspect("other")).images == 6  # though the first one has not ended
        assert [process.pid for process in processes()] == [first.pid]
        first.resume()
        assert [found.images for found in await asyncio.gather(*mine)] == [6] * MAX_OF_A_CLIENT

    asyncio.run(ask())


def test_an_inspection_ends_with_its_request(pets: Path) -> None:
    async def ask() -> None:
        inspections = Inspections(at_once=1, max_bytes=MEMORY_LIMIT)
        asked = asyncio.create_task(inspections.inspect(pets, shown_as="'pets'", client="one"))
        await until(lambda: len(processes()) == 1)
        processes()[0].suspend()  # else it might end by itself
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert processes() == []
        assert (await inspections.inspect(pets, shown_as="'pets'", client="one")).images == 6

    asyncio.run(ask())


def test_an_inspection_ends_with_its_server(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "pets", {"cat": 1000, "dog": 1000})
    command = [sys.executable, "-m", "models.inspection", str(folder), "pets", str(MEMORY_LIMIT)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()  # as when the server is killed
    assert process.wait(DEADLINE_S) == 1
    assert process.stdout is not None
    assert process.stdout.read() == b""
    process.stdout.close()
    assert process.returncode != -signal.SIGKILL
