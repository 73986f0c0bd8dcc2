"""The HTTP interface (DESIGN section 8) as a FastAPI application; `service/api.py` mounts it into BentoML."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

from models.errors import InvalidInput, UnknownTask
from models.release import unknown_task
from models.store import Current
from service import errors, views
from service.access import require_writing
from service.metrics import NO_TASK
from service.predictor import Answer
from service.release import LoadedRelease
from service.schemas import Classification, ManyClassifications, Pointer, ReleaseDiff, ReleaseList, TaskDetail, TaskList
from service.server import Server
from service.settings import metrics_folder
from service.upload import IMAGE_FIELD, TASKS_FIELD, read_upload

Result = TypeVar("Result")
ALL_TASKS = "all"


def _server(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


ServerOf = Annotated[Server, Depends(_server)]
Tasks = Annotated[list[str] | None, Query(description="names, separated by commas or repeated; or: all")]
TopK = Annotated[int, Query(ge=1, le=10_000, description="how many classes to name, at most")]
WithLogits = Annotated[bool, Query(alias="logits", description="add the logits of all classes")]
Number = Annotated[int, Path(ge=0, le=10**9, description="a release's number")]
Pin = Annotated[
    int | None,
    Header(alias="MU2NET-Release", ge=0, le=10**9, description="answer from this release, which must be resident"),
]
Limit = Annotated[int, Query(ge=1, le=1000, description="how many releases to list")]


def create_app() -> FastAPI:
    """Return the application; `app.state.server` must hold the `Server` before the first request."""
    app = FastAPI(title="mu2net", version="1", description="One growing vision transformer, many tasks.")
    errors.install(app)
    _add_classify(app)
    _add_descriptions(app)
    _add_releases(app)
    return app


def _add_classify(app: FastAPI) -> None:
    problems = errors.responses(400, 404, 413, 415, 422, 429, 503)

    @app.post("/v1/tasks/{task}/classify", response_model_exclude_none=True, responses=problems, openapi_extra=_body())
    async def classify(
        request: Request,
        server: ServerOf,
        task: str,
        top_k: TopK = 5,
        with_logits: WithLogits = False,
        pinned: Pin = None,
    ) -> Classification:
        """Classify one or several images with one task."""
        release, (answer,) = await _answer(request, server, pinned, path_task=task)
        return views.classification(answer, release, top_k=top_k, with_logits=with_logits)

    @app.post(
        "/v1/classify", response_model_exclude_none=True, responses=problems, openapi_extra=_body(with_tasks=True)
    )
    async def classify_many(
        request: Request,
        server: ServerOf,
        tasks: Tasks = None,
        top_k: TopK = 5,
        with_logits: WithLogits = False,
        pinned: Pin = None,
    ) -> ManyClassifications:
        """Classify one or several images with several tasks; what the tasks share runs once."""
        release, answers = await _answer(request, server, pinned, query_tasks=tasks or ())
        return ManyClassifications(
            release=release.number,
            answers=[views.classification(a, release, top_k=top_k, with_logits=with_logits) for a in answers],
        )


async def _answer(
    request: Request,
    server: Server,
    pinned: int | None,
    *,
    path_task: str | None = None,
    query_tasks: Sequence[str] = (),
) -> tuple[LoadedRelease, list[Answer]]:
    """Answer from the release of this moment or the pinned one, and count it; given up when the client has gone."""
    started, status, asked = time.monotonic(), 200, [NO_TASK]
    try:
        release = server.predictor.ready_release(pinned)
        if path_task is not None:  # an unknown one is told before the body is read
            asked = [release.route(path_task).task]
        upload = await read_upload(
            request, max_bytes=server.settings.max_request_bytes, max_images=server.settings.max_request_images
        )
        if path_task is None:
            asked = _known_tasks([*query_tasks, *upload.tasks], release)
        elif upload.tasks:
            raise InvalidInput(f"field {TASKS_FIELD!r} has no meaning here: the path names the task, {path_task!r}")
        return release, await _unless_gone(request, server.predictor.classify(release, upload.images, asked))
    except BaseException as error:
        status = errors.status_number(error)
        raise
    finally:
        server.metrics.count(asked, status, time.monotonic() - started)


def _known_tasks(texts: Sequence[str], release: LoadedRelease) -> list[str]:
    """Return the tasks that comma-separated texts name, each once, in their order; of `all` by name.

    Raises:
        InvalidInput: none is named.
        UnknownTask: the release lacks some; the message has them and those it has.
    """
    names = list(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))
    if not names:
        raise InvalidInput(
            f"no task is named: add ?tasks=a,b or a multipart field {TASKS_FIELD!r}, or the name {ALL_TASKS!r} for "
            f"every task; known tasks: {', '.join(sorted(release.routes))}"
        )
    if ALL_TASKS in names:
        return sorted(release.routes)
    unknown = [name for name in names if name not in release.routes]
    if unknown:
        raise UnknownTask(unknown_task(", ".join(unknown), release.routes))
    return names


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`; if the client breaks the connection first, cancel it, so that its images leave the queue.

    Raises:
        ClientDisconnect: the client has gone.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_descriptions(app: FastAPI) -> None:
    @app.get("/v1/tasks", responses=errors.responses(503))
    async def tasks(server: ServerOf) -> TaskList:
        """List the tasks of the release that answers."""
        release = server.predictor.loaded_release()
        return TaskList(
            release=release.number, tasks=[views.task_summary(release, task) for task in sorted(release.routes)]
        )

    @app.get("/v1/tasks/{task}", responses=errors.responses(404, 503))
    async def task(server: ServerOf, task: str) -> TaskDetail:
        """Describe one task: labels, quality, cost, lineage, and what it shares with whom."""
        return views.task_detail(server.predictor.loaded_release(), task)

    @app.get("/metrics", include_in_schema=False)
    def metrics(server: ServerOf) -> Response:
        return Response(server.metrics.render(metrics_folder()), media_type=CONTENT_TYPE_LATEST)


def _add_releases(app: FastAPI) -> None:
    @app.get("/v1/releases", responses=errors.responses(422))
    def releases(server: ServerOf, limit: Limit = 20) -> ReleaseList:
        """List the store's releases, which one answers, and why if it is not the active one."""
        return views.release_list(server, limit=limit)

    @app.get("/v1/releases/{before}/diff/{after}", responses=errors.responses(404, 422, 503))
    def diff(server: ServerOf, before: Number, after: Number) -> ReleaseDiff:
        """Tell which tasks one release has otherwise than another."""
        return views.release_diff(server, before=before, after=after)

    @app.post("/v1/releases/{number}/activate", responses=errors.responses(403, 404, 422, 503), status_code=202)
    def activate(request: Request, server: ServerOf, number: Number) -> Pointer:
        """Make a release the active one and hold it: no job moves on until a resume. Servers follow within seconds."""
        require_writing(request, server.settings)
        return _moved(server, server.store().activate(number))

    @app.post("/v1/releases/resume", responses=errors.responses(403, 503), status_code=202)
    def resume(request: Request, server: ServerOf) -> Pointer:
        """End a hold: what was published meanwhile becomes active, on top of the release that is active now."""
        require_writing(request, server.settings)
        return _moved(server, server.store().resume())


def _moved(server: Server, current: Current) -> Pointer:
    server.watcher.look_soon()
    return views.pointer(server, current)


def _body(*, with_tasks: bool = False) -> dict[str, Any]:
    """Return for OpenAPI what the upload's reader takes."""
    binary = {"type": "string", "format": "binary"}
    fields: dict[str, Any] = {IMAGE_FIELD: {"type": "array", "items": binary}}
    if with_tasks:
        fields[TASKS_FIELD] = {"type": "string", "description": "names, separated by commas; or: all"}
    form = {"type": "object", "properties": fields, "required": [IMAGE_FIELD]}
    content = {"multipart/form-data": {"schema": form}, "image/*": {"schema": binary}}
    return {"requestBody": {"required": True, "content": content}}
