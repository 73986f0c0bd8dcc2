"""The Python client against a real server; only jobs and a server's moods are played by a transport."""

import asyncio
import copy
import io
import json
import pickle
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image

from models import errors
from models.errors import InvalidInput, JobFailed, Mu2NetError, RequestRefused, ServerUnreachable
from models.names import TaskName
from models.preprocess import load_pixels
from models.store import Store
from service import client as client_module
from service.client import Answer, AsyncClient, Client, Job
from service.keys import add_key, new_key
from tests.support.images import picture
from tests.support.in_process import wait_for
from tests.support.on_a_port import listening
from tests.support.processes import free_port
from tests.support.stores import TaskPlan, add_task, make_store, torch_logits


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("client") / "store", TaskPlan("first"), TaskPlan("second", seed=2))


@pytest.fixture(scope="module")
def url(store: Store) -> Iterator[str]:
    with listening(store.folder) as (url, _):
        yield url


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No pause lasts; the list has what was asked for."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def expected(store: Store, task: str, image: bytes) -> np.ndarray:
    found: np.ndarray = torch_logits(store, task, load_pixels(image, 16)[None])[0]
    return found


@pytest.mark.parametrize("form", ["path", "text", "bytes", "pillow", "array"])
def test_every_form_of_an_image_gets_the_offline_answer(url: str, store: Store, tmp_path: Path, form: str) -> None:
    data = picture(size=30)
    (tmp_path / "a.png").write_bytes(data)
    pillow = Image.open(io.BytesIO(data))
    forms: dict[str, Any] = {"path": tmp_path / "a.png", "text": str(tmp_path / "a.png"), "bytes": data,
                             "pillow": pillow, "array": np.asarray(pillow)}  # fmt: skip
    with Client(url) as client:
        answer = client.classify("first", forms[form], top_k=2, logits=True)
    (image,) = answer.images
    assert image.logits == pytest.approx(expected(store, "first", data), abs=1e-4)
    assert len(image.predictions) == 2
    assert image.best.label == f"first {np.argmax(expected(store, 'first', data))}"
    assert (answer.task, answer.release, answer.route) == ("first", 2, store.release().tasks[TaskName("first")])


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F")


@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image_of_any_mode_is_sent(url: str, store: Store, mode: str) -> None:
    image: Image.Image = Image.open(io.BytesIO(picture(size=30)))
    image = Image.new(mode, (30, 30), (90, 120, 140)) if mode == "LAB" else image
    image = image.convert("L").convert(mode) if mode in {"I", "I;16", "F"} else image.convert(mode)
    file = io.BytesIO()
    (image.convert("RGB") if mode in {"HSV", "YCbCr", "LAB"} else image).save(file, "TIFF")
    with Client(url) as client:
        answer = client.classify("first", image, logits=True)
    assert answer.images[0].logits == pytest.approx(expected(store, "first", file.getvalue()), abs=1e-4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pillow_image_is_answered_as_its_file_is(url: str, orientation: int) -> None:
    photo = Image.open(io.BytesIO(picture(size=30))).resize((24, 40))
    exif = photo.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    photo.save(file, "TIFF", exif=exif)  # loses nothing, and is read at full size in both ways
    with Client(url) as client:
        as_file = client.classify("first", file.getvalue(), logits=True)
        opened = client.classify("first", Image.open(file), logits=True)
    assert opened == as_file


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_of_any_kind_are_one_file(url: str, kind: type) -> None:
    data = picture(size=30)
    with Client(url) as client:
        assert client.classify("first", kind(data)) == client.classify("first", data)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (Image.open(io.BytesIO(picture(size=30)[:-60])), "the Pillow image of mode 'RGB' cannot be sent"),
        (object(), "object is not an image: give a path, a file's bytes, a Pillow image or a uint8 array"),
    ],
    ids=["truncated", "no image"],
)
def test_what_cannot_be_sent_is_refused_here(url: str, image: Any, text: str) -> None:
    with Client(url) as client, pytest.raises(InvalidInput, match=re.escape(text)):
        client.classify("first", [image])


def ask_for_nothing(url: str) -> str:
    with Client(url) as client:
        return client.task("nothing").task


def test_a_refusal_comes_out_of_a_process_pool(url: str) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.raises(RequestRefused, match="no route for task 'nothing'") as caught:
            pool.submit(ask_for_nothing, url).result()
        assert (caught.value.status, caught.value.kind) == (404, "unknown-task")
        assert pool.submit(int, "7").result() == 7  # the pool lives


ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Mu2NetError)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_every_error_can_be_pickled_and_copied(kind: type[Mu2NetError], again: Callable[[Any], Any]) -> None:
    own: dict[type[Mu2NetError], dict[str, Any]] = {
        RequestRefused: {"status": 404, "kind": "x"},
        errors.ProofFailed: {"kind": "x"},
    }
    error = kind("what happened", **own.get(kind, {}))
    found = again(error)
    assert (type(found), str(found), vars(found)) == (kind, "what happened", vars(error))


def test_many_images_go_in_several_requests_of_one_release(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "IMAGES_PER_REQUEST", 2)
    own = make_store(tmp_path / "store", TaskPlan("first"))
    images = [picture(seed) for seed in range(5)]
    with listening(own.folder) as (url, server), Client(url) as client:
        send = client._send

        def send_and_release(*arguments: Any, **sent: Any) -> httpx.Response:
            answer = send(*arguments, **sent)
            if server.predictor.ready_release().number == 1:
                add_task(own, TaskPlan("second", seed=2))
                wait_for(lambda: server.predictor.ready_release().number == 2)
            return answer

        monkeypatch.setattr(client, "_send", send_and_release)
        answer = client.classify("first", images, logits=True)
        assert server.predictor.ready_release().number == 2
    assert answer.release == 1
    logits = [image.logits for image in answer.images]
    assert logits == [pytest.approx(expected(own, "first", image), abs=1e-4) for image in images]


def test_many_tasks_answer_in_order(url: str) -> None:
    with Client(url) as client:
        images = np.stack([np.zeros((9, 7, 3), np.uint8)] * 3)
        answers = client.classify_many(images, ["second", "first"])
        assert [(answer.task, len(answer.images)) for answer in answers] == [("second", 3), ("first", 3)]
        assert [answer.task for answer in client.classify_many(picture())] == ["first", "second"]


def test_tasks_are_described(url: str) -> None:
    with Client(url) as client:
        assert [task.task for task in client.tasks()] == ["first", "second"]
        assert client.task("first").about["labels"] == ["first 0", "first 1", "first 2"]


def test_async_does_the_same(url: str) -> None:
    async def ask() -> tuple[Answer, list[Answer], list[str]]:
        async with AsyncClient(url) as client:
            one, many = await asyncio.gather(
                client.classify("first", picture()), client.classify_many([picture(), picture(1)])
            )
            return one, many, [task.task for task in await client.tasks()]

    one, many, tasks = asyncio.run(ask())
    with Client(url) as client:
        assert one == client.classify("first", picture())
        assert many == client.classify_many([picture(), picture(1)])
    assert tasks == ["first", "second"]


def test_refusals_have_the_servers_text(url: str) -> None:
    with Client(url) as client:
        with pytest.raises(RequestRefused, match="no route for task 'third'; known tasks: first, second") as caught:
            client.classify("third", picture())
        assert (caught.value.status, caught.value.kind) == (404, "unknown-task")
        with pytest.raises(RequestRefused, match="image 2 of 2: the 2 bytes are not a readable image"):
            client.classify("first", [picture(), b"no"])
    with pytest.raises(InvalidInput, match="there is no image to classify: give at least one"), Client(url) as client:
        client.classify("first", [])
    with (
        Client(url) as client,
        pytest.raises(InvalidInput, match=r"array of float64 \[2, 2, 3\] is no image: give"),
    ):
        client.classify("first", np.zeros((2, 2, 3)))


def test_a_key_is_sent(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    key, token = new_key("a test", classify=("all",), manages=(), rate=None)
    add_key(store.files, key)
    with listening(store.folder) as (url, _):
        with Client(url, key=token) as client:
            assert client.classify("first", picture()).task == "first"
        with Client(url) as client, pytest.raises(RequestRefused, match="this server needs an API key"):
            client.tasks()


def test_no_server_is_told(quick: list[float]) -> None:
    with pytest.raises(ServerUnreachable, match=r"gives no answer \(ConnectError: .*: is the server running, and is"):
        Client(f"http://127.0.0.1:{free_port()}", retries=2).tasks()
    assert quick == [0.5, 1.0]


def played(*answers: httpx.Response | Callable[[httpx.Request], httpx.Response]) -> httpx.MockTransport:
    """Return a server that gives these answers, one after the other."""
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        found = left.pop(0)
        return found(request) if callable(found) else found

    return httpx.MockTransport(answer)


BUSY = httpx.Response(429, headers={"retry-after": "7"}, json={"type": "urn:mu2net:overloaded", "detail": "full"})
TASKS = httpx.Response(200, json={"release": 1, "tasks": []})


def test_a_busy_server_is_asked_again_when_it_says(quick: list[float]) -> None:
    assert Client(transport=played(BUSY, httpx.Response(503), TASKS)).tasks() == []
    assert quick == [7.0, 1.0]
    with pytest.raises(RequestRefused, match="full") as caught:
        Client(transport=played(BUSY, BUSY, BUSY), retries=2).tasks()
    assert caught.value.kind == "overloaded"
    hours = httpx.Response(429, headers={"retry-after": "3600"}, json={"type": "x", "detail": "come tomorrow"})
    with pytest.raises(RequestRefused, match="come tomorrow"):
        Client(transport=played(hours)).tasks()
    with pytest.raises(RequestRefused, match="HTTP 502 Bad Gateway: <html>"):
        Client(transport=played(httpx.Response(502, text="<html>"))).tasks()


def job(**values: Any) -> dict[str, Any]:
    plain = {"id": "7", "task": "birds", "kind": "add", "state": "running", "phase": "evolving", "generation": 1,
             "generations": 4, "candidates": 3, "best_quality": 0.5, "release": None, "seconds": 1.0,
             "seconds_left": 9.0, "created": "now", "error": None, "something_newer": 1}  # fmt: skip
    return plain | values


def events(*found: dict[str, Any]) -> httpx.Response:
    text = "".join(
        f"event: {'end' if one['state'] == 'done' else 'progress'}\ndata: {json.dumps(one)}\n\n" for one in found
    )
    return httpx.Response(200, text=": hello\n\n" + text, headers={"content-type": "text/event-stream"})


DONE = job(state="done", generation=4, release=3, best_quality=0.9)


def submitted(request: httpx.Request) -> httpx.Response:
    body = request.read()
    for name, value in {"name": b"birds", "private": b"true", "budget": b"5m", "parents": b"a,b"}.items():
        assert f'name="{name}"\r\n\r\n'.encode() + value in body
    assert b'name="data"; filename="birds.zip"' in body
    assert b"zipped" in body
    return httpx.Response(202, json={"job": job(state="queued")}, headers={"location": "/v1/jobs/7"})


@pytest.mark.parametrize("progress", [True, False])
def test_a_task_is_submitted_and_waited_for(
    tmp_path: Path, quick: list[float], capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    (tmp_path / "birds.zip").write_bytes(b"zipped")
    broken = httpx.Response(200, text="event: progress\n")
    told = httpx.Response(200, json=job(generation=2))
    answers = (BUSY, submitted, events(job()), told, broken, told, events(job(generation=3), DONE))
    ended = httpx.Response(200, json=DONE)
    with Client(transport=played(*answers, ended)) as client:
        given = client.submit("birds", tmp_path / "birds.zip", budget="5m", private=True, parents=["a", "b"])
        assert (given.state, given.id) == ("queued", "7")
        found = client.wait(given, progress=progress)
    assert (found.state, found.release, found.best_quality) == ("done", 3, 0.9)
    assert ("birds" in capsys.readouterr().out) == progress


def test_a_real_server_takes_a_task_and_lets_it_go(tmp_path: Path, toy_folder: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    data = shutil.make_archive(str(tmp_path / "birds"), "zip", toy_folder)
    with listening(store.folder) as (url, _), Client(url) as client:
        given = client.submit("birds", data, budget="5m")
        assert (given.task, given.kind, given.state) == ("birds", "add", "queued")
        with pytest.raises(RequestRefused, match="first"):
            client.submit("first", data)
        assert client.cancel(given).state == "cancelled"
        with pytest.raises(JobFailed, match=f"job {given.id} for task 'birds' cancelled"):
            client.wait(given, progress=False)


def test_async_submits_and_waits_too(tmp_path: Path) -> None:
    (tmp_path / "birds.zip").write_bytes(b"zipped")

    async def run() -> Job:
        async with AsyncClient(
            transport=played(submitted, events(job(), DONE), httpx.Response(200, json=DONE))
        ) as client:
            data = tmp_path / "birds.zip"
            return await client.wait(await client.submit("birds", data, budget="5m", private=True, parents=["a", "b"]))

    assert asyncio.run(run()).state == "done"


def test_a_job_that_fails_is_raised_with_its_reason() -> None:
    failed = job(state="failed", error="class 'robin' has one image only")
    with pytest.raises(JobFailed, match="job 7 for task 'birds' failed: class 'robin' has one image only"):
        Client(transport=played(events(failed), httpx.Response(200, json=failed))).wait(Client(
            transport=played(httpx.Response(200, json=job()))).job("7"))  # fmt: skip
