"""A Python client of the server: `Client` and, the same with `await`, `AsyncClient`.

    with Client("http://127.0.0.1:3000", key=KEY) as client:
        answer = client.classify("flowers", ["rose.jpg", "tulip.jpg"])
        print(answer.images[0].best.label)

What both do alike, the requests and what is made of the answers, stands in plain functions; the two classes
only send. What the server refuses is raised as `RequestRefused` with the server's text. A server that is busy
(429) or not ready (503) is asked again after the time that it names.
"""

import asyncio
import dataclasses
import io
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from models.errors import InvalidConfig, InvalidInput, JobFailed, RequestRefused, ServerUnreachable
from models.own_token import find_own_token
from models.preprocess import upright
from service.own_pages import as_host, is_loopback_name
from service.settings import token_folder

ImageLike = str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray[Any, Any]
Record = TypeVar("Record")

IMAGES_PER_REQUEST = 32  # the server's own limit is 64 unless it is set otherwise
RETRIED = frozenset({429, 503})  # the request was not begun, so asking again does nothing twice
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 60.0
PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})  # of Pillow, which PNG keeps as they are
TIFF_MODES = frozenset({"I", "F"})  # deep greys, which only TIFF keeps
JobState = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Prediction:
    label: str
    probability: float  # 0 to 1


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """What one image was taken for, the most probable class first."""

    predictions: tuple[Prediction, ...]
    logits: tuple[float, ...] | None  # of all classes in the order of the task's labels, if asked for

    @property
    def best(self) -> Prediction:
        return self.predictions[0]


@dataclass(frozen=True, slots=True)
class Answer:
    """One task's answer, all of one release; `images` are in the order given."""

    task: str
    release: int
    route: str
    images: tuple[ImageAnswer, ...]


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task as the server describes it; `quality` and all else that it says is in `about`."""

    task: str
    release: int
    route: str
    num_classes: int
    image_size: int
    about: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """An evolution that the server's worker does, or has done."""

    id: str
    task: str
    kind: str
    state: JobState
    phase: str | None = None
    generation: int | None = None
    generations: int | None = None
    candidates: int | None = None
    best_quality: float | None = None
    release: int | None = None  # the last one that the job published
    seconds: float | None = None
    seconds_left: float | None = None
    created: str | None = None
    error: str | None = None

    @property
    def is_over(self) -> bool:
        return self.state in {"done", "failed", "cancelled"}


class Client:
    """Asks one server. Close it, or use it in a `with`."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 5,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: the server's, without a path.
            key: an API key, where the server needs one. Without one, a server on a loopback address is sent the token
                of this machine's user, if there is one: see docs/keys.md.
            timeout_s: for connecting, and for each part of an answer.
            retries: how often a server that is busy, not ready or not reached is asked again.
            transport: how requests are sent, if not over the network.
        """
        self._http = httpx.Client(base_url=url, timeout=timeout_s, transport=transport, **_access(url, key))
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def classify(
        self, task: str, images: ImageLike | Sequence[ImageLike], *, top_k: int = 5, logits: bool = False
    ) -> Answer:
        """Classify one or many images with a task: paths, encoded bytes, Pillow's images or uint8 arrays.

        Many are sent in several requests, all answered by one release.

        Raises:
            RequestRefused: the server refuses; an unknown task and an unreadable image are among the reasons.
            ServerUnreachable: no connection, or no answer in time.
        """
        (answer,) = self._classify(images, _classify_url(task), _params(top_k, logits))
        return answer

    def classify_many(
        self,
        images: ImageLike | Sequence[ImageLike],
        tasks: Sequence[str] | Literal["all"] = "all",
        *,
        top_k: int = 5,
        logits: bool = False,
    ) -> list[Answer]:
        """Ask several tasks, or all, about the same images; one answer for each task. As `classify` otherwise."""
        return self._classify(images, "/v1/classify", _params(top_k, logits, tasks))

    def _classify(self, images: ImageLike | Sequence[ImageLike], url: str, params: Mapping[str, str]) -> list[Answer]:
        parts: list[list[Answer]] = []
        for batch in _batches(images):
            sent = {"params": params, "files": _files(batch), "headers": _pinned(parts)}
            parts.append(_answers(self._send("POST", url, **sent).json()))
        return _joined(parts)

    def tasks(self) -> list[TaskInfo]:
        return [_task(found) for found in self._send("GET", "/v1/tasks").json()["tasks"]]

    def task(self, name: str) -> TaskInfo:
        return _task(self._send("GET", f"/v1/tasks/{quote(name, safe='')}").json())

    def submit(
        self,
        task: str,
        data: str | Path,
        *,
        budget: str | None = None,
        private: bool = False,
        parents: Sequence[str] = (),
    ) -> Job:
        """Have a task added from a zip of labelled images, one folder per class; return its job at once.

        Args:
            task: the new task's name.
            data: the zip.
            budget: how long the evolution may take, such as 10m.
            private: whether other tasks may not use its components, nor callers without a key see it.
            parents: tasks whose routes are tried first.
        """
        with Path(data).open("rb") as file:
            sent = {"data": _form(task, budget, private, parents), "files": {"data": (Path(data).name, file)}}
            return _job(self._send("POST", "/v1/tasks", **sent).json()["job"])

    def job(self, job_id: str) -> Job:
        return _job(self._send("GET", _job_url(job_id)).json())

    def cancel(self, job: Job) -> Job:
        return _job(self._send("DELETE", _job_url(job.id)).json())

    def wait(self, job: Job, *, progress: bool = True) -> Job:
        """Wait until a job is over, with a progress bar if `progress`, and return it as it ended.

        Raises:
            JobFailed: it failed or was cancelled; the message is the server's.
        """
        with _shown(progress, job) as bar:
            while not job.is_over:
                for told in self._events(job):
                    job = told
                    _show(bar, job)
                if not job.is_over:  # the stream broke
                    time.sleep(FIRST_PAUSE_S)
        return _succeeded(job)

    def _events(self, job: Job) -> Iterator[Job]:
        """Yield the job at each change. Where the stream breaks, once more as it is now: the caller comes again."""
        try:
            with self._http.stream("GET", f"{_job_url(job.id)}/events", timeout=_stream_timeout(self._http)) as answer:
                if answer.is_success:
                    yield from filter(None, map(_event, answer.iter_lines()))
        except httpx.TransportError:
            pass
        yield self.job(job.id)

    def _send(self, method: str, url: str, **sent: Any) -> httpx.Response:
        for attempt in range(self._retries + 1):
            try:
                answer = self._http.request(method, url, **sent)
            except httpx.TransportError as error:
                pause_s = _pause_after_error(error, attempt, self._retries, self._http.base_url)
            else:
                found = _pause_after(answer, attempt, self._retries)
                if found is None:
                    return answer
                pause_s = found
            time.sleep(pause_s)
            _rewind(sent)
        raise AssertionError("the last attempt returns or raises")


class AsyncClient:
    """`Client` with `await`: the methods, their arguments and what they raise are the same."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 5,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout_s, transport=transport, **_access(url, key))
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def classify(
        self, task: str, images: ImageLike | Sequence[ImageLike], *, top_k: int = 5, logits: bool = False
    ) -> Answer:
        (answer,) = await self._classify(images, _classify_url(task), _params(top_k, logits))
        return answer

    async def classify_many(
        self,
        images: ImageLike | Sequence[ImageLike],
        tasks: Sequence[str] | Literal["all"] = "all",
        *,
        top_k: int = 5,
        logits: bool = False,
    ) -> list[Answer]:
        return await self._classify(images, "/v1/classify", _params(top_k, logits, tasks))

    async def _classify(
        self, images: ImageLike | Sequence[ImageLike], url: str, params: Mapping[str, str]
    ) -> list[Answer]:
        parts: list[list[Answer]] = []
        for batch in _batches(images):
            files = await asyncio.to_thread(_files, batch)
            sent = {"params": params, "files": files, "headers": _pinned(parts)}
            parts.append(_answers((await self._send("POST", url, **sent)).json()))
        return _joined(parts)

    async def tasks(self) -> list[TaskInfo]:
        return [_task(found) for found in (await self._send("GET", "/v1/tasks")).json()["tasks"]]

    async def task(self, name: str) -> TaskInfo:
        return _task((await self._send("GET", f"/v1/tasks/{quote(name, safe='')}")).json())

    async def submit(
        self,
        task: str,
        data: str | Path,
        *,
        budget: str | None = None,
        private: bool = False,
        parents: Sequence[str] = (),
    ) -> Job:
        file = await asyncio.to_thread(Path(data).read_bytes)  # httpx reads no open file in an event loop
        sent = {"data": _form(task, budget, private, parents), "files": {"data": (Path(data).name, file)}}
        return _job((await self._send("POST", "/v1/tasks", **sent)).json()["job"])

    async def job(self, job_id: str) -> Job:
        return _job((await self._send("GET", _job_url(job_id))).json())

    async def cancel(self, job: Job) -> Job:
        return _job((await self._send("DELETE", _job_url(job.id))).json())

    async def wait(self, job: Job, *, progress: bool = True) -> Job:
        with _shown(progress, job) as bar:
            while not job.is_over:
                async for told in self._events(job):
                    job = told
                    _show(bar, job)
                if not job.is_over:
                    await asyncio.sleep(FIRST_PAUSE_S)
        return _succeeded(job)

    async def _events(self, job: Job) -> AsyncIterator[Job]:
        url, timeout = f"{_job_url(job.id)}/events", _stream_timeout(self._http)
        try:
            async with self._http.stream("GET", url, timeout=timeout) as answer:
                if answer.is_success:
                    async for line in answer.aiter_lines():
                        if (found := _event(line)) is not None:
                            yield found
        except httpx.TransportError:
            pass
        yield await self.job(job.id)

    async def _send(self, method: str, url: str, **sent: Any) -> httpx.Response:
        for attempt in range(self._retries + 1):
            try:
                answer = await self._http.request(method, url, **sent)
            except httpx.TransportError as error:
                pause_s = _pause_after_error(error, attempt, self._retries, self._http.base_url)
            else:
                found = _pause_after(answer, attempt, self._retries)
                if found is None:
                    return answer
                pause_s = found
            await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")


def _own_token(url: str) -> str | None:
    """Return the token of this machine's user for a server on a loopback address, None for every other server."""
    if not is_loopback_name(as_host(httpx.URL(url).host)):
        return None
    try:
        return find_own_token(token_folder())
    except (OSError, InvalidConfig):
        return None  # reading and classifying need none, and a server says what it needs


class _Access(TypedDict):
    headers: Mapping[str, str]
    trust_env: bool


def _access(url: str, key: str | None) -> _Access:
    """Return what httpx needs to know of the key, or of the token that is sent in its place."""
    token = _own_token(url) if key is None else None
    sent = token if key is None else key
    headers = {} if sent is None else {"authorization": f"Bearer {sent}"}
    return _Access(headers=headers, trust_env=token is None)  # a proxy that the environment names would see the token


def _classify_url(task: str) -> str:
    return f"/v1/tasks/{quote(task, safe='')}/classify"


def _job_url(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _params(top_k: int, logits: bool, tasks: Sequence[str] | str | None = None) -> dict[str, str]:
    params = {"top_k": str(top_k)} | ({"logits": "true"} if logits else {})
    return params if tasks is None else params | {"tasks": tasks if isinstance(tasks, str) else ",".join(tasks)}


def _form(task: str, budget: str | None, private: bool, parents: Sequence[str]) -> dict[str, str]:
    form = {"name": task, "private": str(private).lower()}
    if budget is not None:
        form["budget"] = budget
    if parents:
        form["parents"] = ",".join(parents)
    return form


def _batches(images: ImageLike | Sequence[ImageLike]) -> Iterator[Sequence[ImageLike]]:
    single = isinstance(images, str | Path | bytes | bytearray | memoryview | Image.Image) or (
        isinstance(images, np.ndarray) and images.ndim < 4
    )
    every: Sequence[ImageLike] = [images] if single else images  # type: ignore[list-item, assignment]
    if not len(every):
        raise InvalidInput("there is no image to classify: give at least one")
    for start in range(0, len(every), IMAGES_PER_REQUEST):
        yield every[start : start + IMAGES_PER_REQUEST]


def _files(images: Sequence[ImageLike]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (f"{index}", _encoded(image))) for index, image in enumerate(images)]


def _encoded(image: ImageLike) -> bytes:
    """Return an image as a file's bytes; pixels become a file that loses nothing.

    Raises:
        InvalidInput: it is no image, or one that cannot be sent.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in {3, 4})):
            raise InvalidInput(
                f"an array of {image.dtype} {list(image.shape)} is no image: give uint8 [height, width] or "
                "[height, width, 3 or 4]"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InvalidInput(
            f"{type(image).__name__} is not an image: give a path, a file's bytes, a Pillow image or a uint8 array"
        )
    return _as_file(image)


def _as_file(image: Image.Image) -> bytes:
    """Return a Pillow image as a file that the server reads as it would read the file that it came from.

    Pillow turns nothing as EXIF says, and writes no orientation into a PNG: so the pixels are turned here.
    """
    file = io.BytesIO()
    try:
        turned = upright(image)
        if turned.mode in TIFF_MODES:
            turned.save(file, "TIFF")
        else:
            (turned if turned.mode in PNG_MODES else turned.convert("RGB")).save(file, "PNG", compress_level=1)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(
            f"the Pillow image of mode {image.mode!r} cannot be sent ({error}): convert it to 'RGB', or give the "
            "file's bytes"
        ) from error
    return file.getvalue()


def _pinned(parts: Sequence[Sequence[Answer]]) -> dict[str, str]:
    """Return the header that has further images answered by the release that answered the first."""
    return {"mu2net-release": str(parts[0][0].release)} if parts else {}


def _answers(body: Mapping[str, Any]) -> list[Answer]:
    return [_answer(found) for found in body.get("answers", [body])]


def _answer(found: Mapping[str, Any]) -> Answer:
    images = tuple(
        ImageAnswer(
            tuple(_record(Prediction, prediction) for prediction in result["predictions"]),
            tuple(result["logits"]) if "logits" in result else None,
        )
        for result in found["results"]
    )
    return Answer(found["task"], found["release"], found["route"], images)


def _joined(parts: Sequence[Sequence[Answer]]) -> list[Answer]:
    """Return for each task the answers to all batches of images as one."""
    return [
        dataclasses.replace(answers[0], images=tuple(image for answer in answers for image in answer.images))
        for answers in zip(*parts, strict=True)
    ]


def _task(found: Mapping[str, Any]) -> TaskInfo:
    return _record(TaskInfo, {**found, "about": found})


def _job(found: Mapping[str, Any]) -> Job:
    return _record(Job, found)


def _record(kind: type[Record], found: Mapping[str, Any]) -> Record:
    """Return a dataclass of what it knows of `found`: a newer server may say more."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # a dataclass
    return kind(**{name: value for name, value in found.items() if name in names})


def _event(line: str) -> Job | None:
    """Return the job of one line of server-sent events, None for a line that has none."""
    field, _, value = line.partition(":")
    return _job(json.loads(value)) if field == "data" else None


def _stream_timeout(http: httpx.Client | httpx.AsyncClient) -> httpx.Timeout:
    return httpx.Timeout(http.timeout.connect, read=None)  # a generation may take long: silence is no fault


def _pause_after_error(error: httpx.TransportError, attempt: int, retries: int, url: httpx.URL) -> float:
    """Return how long to wait before the next attempt.

    Raises:
        ServerUnreachable: there is no further attempt, or the request may have been begun.
    """
    if attempt == retries or not isinstance(error, httpx.ConnectError):
        raise ServerUnreachable(
            f"{url} gives no answer ({type(error).__name__}: {error}): is the server running, and is this its address?"
        ) from error
    return min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0**attempt)


def _pause_after(answer: httpx.Response, attempt: int, retries: int) -> float | None:
    """Return how long to wait before asking again, None for an answer to be used.

    Raises:
        RequestRefused: the server refuses, and asking again would not help or was done often enough.
    """
    if answer.is_success:
        return None
    if attempt == retries or answer.status_code not in RETRIED:
        raise _refusal(answer)
    told = answer.headers.get("retry-after", "")
    pause_s = float(told) if told.isdigit() else FIRST_PAUSE_S * 2.0**attempt
    if pause_s > MAX_PAUSE_S:
        raise _refusal(answer)
    return pause_s


def _refusal(answer: httpx.Response) -> RequestRefused:
    try:
        found = answer.json()
        text, kind = found["detail"], found["type"].removeprefix("urn:mu2net:")
    except (ValueError, TypeError, KeyError):  # not this server's: a proxy's, perhaps
        text, kind = f"HTTP {answer.status_code} {answer.reason_phrase}: {answer.text[:200]}", "http-error"
    return RequestRefused(text, status=answer.status_code, kind=kind)


def _rewind(sent: Mapping[str, Any]) -> None:
    """Make a file that was sent readable again from its beginning."""
    files = sent.get("files")
    if isinstance(files, dict):
        for _, file in files.values():
            file.seek(0)


def _shown(is_wanted: bool, job: Job) -> AbstractContextManager[Progress | None]:
    if not is_wanted:
        return nullcontext()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn())
    progress = Progress(*columns)
    progress.add_task(job.task, total=None, told=job.state)
    return progress


def _show(bar: Progress | None, job: Job) -> None:
    if bar is None:
        return
    quality = f", best {job.best_quality:.1%}" if job.best_quality is not None else ""
    done = job.generations if job.state == "done" else job.generation
    told = f"{job.phase or job.state}{quality}"
    bar.update(bar.task_ids[0], total=job.generations, completed=done or 0, told=told)


def _succeeded(job: Job) -> Job:
    if job.state != "done":
        raise JobFailed(f"job {job.id} for task {job.task!r} {job.state}: {job.error or 'no reason is told'}")
    return job
