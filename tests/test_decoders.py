"""Decoding in the server: what may take long is done in processes that are ended, and nobody waits for a long line."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from opentelemetry.trace import NoOpTracer
from PIL import Image

from models.decoder import Decoded
from models.errors import ImageTooLarge, InvalidImage, Overloaded, RequestTooLarge
from models.image_cost import ImageCost
from models.preprocess import ImageLimits, load_pixels
from service import decoders
from service.decoder_process import DecoderProcess
from service.decoders import Decoders
from service.settings import Settings
from tests.support.encoded import photo, with_scans
from tests.support.in_process import PATH, problem, served, wait_for
from tests.support.stores import TaskPlan, make_store

LARGE = photo("PNG", 2400, 1700)  # 4.08 megapixels


def settings_of(**settings: Any) -> Settings:
    return Settings(**{"store": "unused", **settings})


def run(scenario: Callable[[Decoders], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def whole() -> None:
        found = Decoders(settings_of(**settings), NoOpTracer())
        try:
            await scenario(found)
        finally:
            found.stop()

    asyncio.run(asyncio.wait_for(whole(), 120))


async def decode(found: Decoders, image: bytes, client: str = "a") -> Decoded:
    (cost,) = await found.costs([image])
    return await found.decode(image, cost, [8, 16], client)


@pytest.fixture
def process() -> Iterator[DecoderProcess]:
    found = DecoderProcess(ImageLimits(), seconds=30, memory_bytes=200 * 2**20)
    yield found
    found.close()


@pytest.mark.parametrize(
    "image", [photo(), LARGE, photo("AVIF"), photo("TIFF")], ids=["light", "large", "avif", "tiff"]
)
def test_pixels_are_those_of_load_pixels_wherever_they_are_decoded(image: bytes) -> None:
    async def scenario(found: Decoders) -> None:
        decoded = await decode(found, image)
        assert list(decoded) == [8, 16]
        assert all((decoded[size] == load_pixels(image, size)).all() for size in decoded)
        assert len(found.processes) == (image != photo())

    run(scenario)


def test_a_process_serves_one_image_after_the_other_and_ends_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "IDLE_S", 0.2)

    async def scenario(found: Decoders) -> None:
        await decode(found, LARGE)
        (first,) = found.processes
        await decode(found, LARGE)
        assert found.processes == [first]
        while first.is_alive:
            await asyncio.sleep(0.02)
        assert found.processes == []

    run(scenario)


def test_what_takes_too_much_time_is_ended_and_the_next_image_is_decoded() -> None:
    async def scenario(found: Decoders) -> None:
        with pytest.raises(ImageTooLarge, match=r"^decoding the image takes more than 0\.01 s of processor time, the "):
            await decode(found, LARGE)
        assert found.processes == []
        assert (await decode(found, photo("BMP")))[8].shape == (8, 8, 3)

    run(scenario, decode_timeout_s=0.01)


def test_what_takes_too_much_memory_is_refused(process: DecoderProcess) -> None:
    file = io.BytesIO()
    Image.new("RGB", (7000, 7000)).save(file, "PNG")
    with pytest.raises(ImageTooLarge, match=r"^decoding the image takes more than 209,715,200 bytes of memory, which "):
        process.decode(file.getvalue(), [8])
    assert process.decode(photo(), [8])[8].shape == (8, 8, 3)


def test_a_refusal_of_the_process_is_that_of_load_pixels(process: DecoderProcess) -> None:
    with pytest.raises(InvalidImage, match=r"^the PNG image is truncated or damaged \("):
        process.decode(LARGE[:-2000], [8])
    with pytest.raises(ImageTooLarge, match=r"^the JPEG image has more than 100 scans; at most 100 are allowed"):
        process.decode(with_scans(101), [8])
    assert process.is_alive


def test_a_decoder_that_dies_is_a_refusal_of_its_image(process: DecoderProcess) -> None:
    process.decode(photo(), [8])
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSEGV)
    wait_for(lambda: not process.is_alive)
    with pytest.raises(InvalidImage, match=r"^the image ended its decoder \(status -11\): send a whole, readable"):
        process.decode(photo(), [8])
    assert not process.is_alive


def test_whoever_gives_up_ends_the_process_that_decodes_for_it() -> None:
    async def scenario(found: Decoders) -> None:
        await decode(found, LARGE)
        (process,) = found.processes
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)  # it would never end by itself
        waiting = asyncio.create_task(decode(found, LARGE))
        while not waiting.done() and process not in found.busy:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        while process.is_alive:
            await asyncio.sleep(0.01)
        assert (await decode(found, LARGE))[8].shape == (8, 8, 3)

    run(scenario)


def test_the_process_is_niced_and_ends_with_its_parent(tmp_path: Path) -> None:
    program = """if True:
        import os, psutil, sys
        from models.preprocess import ImageLimits
        from service.decoder_process import DecoderProcess
        process = DecoderProcess(ImageLimits(), seconds=30)
        process.decode(open(sys.argv[1], "rb").read(), [8])
        print(process.pid, psutil.Process(process.pid).nice() - psutil.Process().nice(), flush=True)
        os.kill(os.getpid(), 9)
    """
    (tmp_path / "a.jpg").write_bytes(photo())
    command = [sys.executable, "-c", program, str(tmp_path / "a.jpg")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    pid, niceness = map(int, told.split())
    assert niceness > 0
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(30)


def test_a_request_of_many_images_delays_another_clients_by_one() -> None:
    order: list[str] = []
    may_begin = threading.Event()

    def work(name: str) -> None:
        may_begin.wait(60)
        order.append(name)

    async def scenario(found: Decoders) -> None:
        names = [f"a{number}" for number in range(64)] + ["b0"]
        calls = [asyncio.create_task(found.beside(name[0], work, name)) for name in names]
        await asyncio.sleep(0)
        may_begin.set()
        await asyncio.gather(*calls)
        assert order.index("b0") <= decoders.AHEAD + 1

    run(scenario, decode_threads=1)


def test_no_more_pixels_than_one_large_image_has_are_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = most = 0
    lock = threading.Lock()

    def counted(self: DecoderProcess, data: bytes, sizes: object) -> Decoded:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        threading.Event().wait(0.01)
        with lock:
            at_once -= 1
        return {}

    monkeypatch.setattr(DecoderProcess, "decode", counted)

    async def scenario(found: Decoders) -> None:
        cost = ImageCost(20_000_000, is_plain=True)
        await asyncio.gather(*(found.decode(b"", cost, [8], str(number)) for number in range(8)))

    run(scenario, decode_processes=4)
    assert most == 2


def test_the_pixels_of_a_request_are_bounded() -> None:
    async def scenario(found: Decoders) -> None:
        assert len(await found.costs([photo()] * 3)) == 3
        with pytest.raises(RequestTooLarge) as caught:
            await found.costs([photo()] * 4)
        assert str(caught.value) == (
            "the 4 images of the request have 4,800 pixels together; at most 3,600 are allowed: scale them down, or "
            "send several requests"
        )
        with pytest.raises(ImageTooLarge, match=r"^image 2 of 2: the JPEG image has more than 100 scans"):
            await found.costs([photo(), with_scans(101)])

    run(scenario, max_request_pixels=3600)


def test_large_images_of_one_client_leave_room_for_another() -> None:
    costs = [ImageCost(30, is_plain=False)]

    async def scenario(found: Decoders) -> None:
        with found.admit("a", costs):
            with pytest.raises(Overloaded, match=r"^30 pixels of large images are under way for this client alone"):
                found.admit("a", costs).__enter__()
            with found.admit("b", costs), found.admit("a", [ImageCost(10**6, is_plain=True)]):
                pass

    run(scenario, max_pixels_under_way=100)


def test_sixty_four_photos_of_a_phone_fit_the_defaults() -> None:
    assert settings_of().max_request_pixels >= 64 * 4032 * 3024


def test_refusals_over_http_are_of_the_client(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    kind = {"content-type": "image/jpeg"}
    with served(store.folder, decode_timeout_s=0.01) as (client, _):
        answers = {name: client.post(PATH, content=data, headers=kind) for name, data in BAD.items()}
    assert "more than 100 scans" in problem(answers["scans"], 413, "image-too-large")
    assert "processor time" in problem(answers["time"], 413, "image-too-large")


BAD = {"scans": with_scans(200), "time": LARGE}
