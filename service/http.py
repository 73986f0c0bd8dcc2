"""The HTTP interface as a FastAPI application; `service/api.py` mounts it into BentoML."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from models.errors import InvalidInput
from models.store import Current
from service import asking, console, errors, openapi, v2, views
from service.access import Caller, allow, asks_store, call_in, server_of
from service.cors import Cors
from service.engine import LoadedRoute
from service.job_routes import add_jobs
from service.keys import ALL_TASKS
from service.metrics import Visible, subgraph_label
from service.observe import Observed
from service.release import LoadedRelease
from service.schemas import Classification, ManyClassifications, Pointer, ReleaseDiff, ReleaseList, TaskDetail, TaskList
from service.server import Server
from service.settings import metrics_folder
from service.upload import IMAGE_FIELD, TASKS_FIELD, Upload, read_upload

# Tells OpenAPI alone: `allow` reads the header and decides.
KEY = HTTPBearer(auto_error=False, description="an API key, needed where the server has any: 'mu2net keys create'")


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
    app = FastAPI(
        title="mu2net",
        version="1",
        description="One growing vision transformer, many tasks.",
        docs_url=None,  # the console has its own
        redoc_url=None,
        dependencies=[Depends(KEY), Depends(KnownParameters())],
    )
    app.add_middleware(Observed)
    app.add_middleware(Cors)
    errors.install(app)
    _add_classify(app)
    _add_descriptions(app)
    _add_releases(app)
    add_jobs(app)
    console.install(app)
    v2.add_routes(app)
    openapi.install(app)
    return app


class KnownParameters:
    """Refuses what FastAPI would ignore: a misspelt ?top_k that goes unnoticed answers another question."""

    def __init__(self) -> None:
        self._of_route: dict[str, frozenset[str]] = {}  # by its id; found once, since a request has no time for it

    async def __call__(self, request: Request) -> None:
        """
        Raises:
            InvalidInput: a query parameter is unknown; the message lists the known.
        """
        if not request.query_params:
            return
        known = self._known(request.scope["route"])
        unknown = sorted(set(request.query_params) - known)
        if unknown:
            names = ", ".join(repr(name[:80]) for name in unknown[:5])
            raise InvalidInput(
                f"query parameter {names} is not known at {request.url.path[:200]!r}; known: "
                f"{', '.join(sorted(known)) or 'none'}"
            )

    def _known(self, route: APIRoute) -> frozenset[str]:
        found = self._of_route.get(route.unique_id)
        if found is None:
            fields = get_flat_params(route.dependant)
            found = frozenset(field.alias for field in fields if isinstance(field.field_info, params.Query))
            self._of_route[route.unique_id] = found
        return found


def _add_classify(app: FastAPI) -> None:
    problems = errors.responses(400, 401, 403, 404, 408, 413, 415, 422, 429, 503)

    @app.post("/v1/tasks/{task}/classify", response_model_exclude_none=True, responses=problems, openapi_extra=_body())
    async def classify(
        request: Request,
        task: str,
        top_k: TopK = 5,
        with_logits: WithLogits = False,
        pinned: Pin = None,
    ) -> Classification:
        """Classify one or several images with one task."""
        caller, release = asking.begin(request, pinned)
        routes = asking.choose(request, caller, release, [task])  # an unknown one is told before the body is read
        upload = await _upload(request)
        if upload.tasks:
            raise InvalidInput(f"field {TASKS_FIELD!r} has no meaning here: the path names the task, {task!r}")
        (answer,) = await asking.answer(request, upload.images, routes)
        return views.classification(answer, release, top_k=top_k, with_logits=with_logits)

    @app.post(
        "/v1/classify", response_model_exclude_none=True, responses=problems, openapi_extra=_body(with_tasks=True)
    )
    async def classify_many(
        request: Request,
        tasks: Tasks = None,
        top_k: TopK = 5,
        with_logits: WithLogits = False,
        pinned: Pin = None,
    ) -> ManyClassifications:
        """Classify one or several images with several tasks; what the tasks share runs once."""
        caller, release = asking.begin(request, pinned)
        upload = await _upload(request)
        names = _names([*(tasks or ()), *upload.tasks], caller, release)
        answers = await asking.answer(request, upload.images, asking.choose(request, caller, release, names))
        return ManyClassifications(
            release=release.number,
            answers=[views.classification(a, release, top_k=top_k, with_logits=with_logits) for a in answers],
        )


async def _upload(request: Request) -> Upload:
    limits = server_of(request).settings
    return await read_upload(request, max_bytes=limits.max_request_bytes, max_images=limits.max_request_images)


def _names(texts: Sequence[str], caller: Caller, release: LoadedRelease) -> list[str]:
    """Return the names that comma-separated texts hold, each once, in their order.

    Raises:
        InvalidInput: there is none; the message has those that the caller may know of.
    """
    names = list(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))
    if not names:
        raise InvalidInput(
            f"no task is named: add ?tasks=a,b or a multipart field {TASKS_FIELD!r}, or the name {ALL_TASKS!r} for "
            f"every task; known tasks: {', '.join(caller.visible(release))}"
        )
    return names


def _add_descriptions(app: FastAPI) -> None:
    @app.get("/v1/tasks", responses=errors.responses(401, 429, 503), response_model=TaskList)
    async def tasks(request: Request) -> Response:
        """List the tasks of the release that answers."""
        caller = allow(request, "read")
        release = server_of(request).predictor.loaded_release()
        return await _kept(request, caller, release, None, lambda: views.task_list(release, caller.visible(release)))

    @app.get("/v1/tasks/{task}", responses=errors.responses(401, 404, 429, 503), response_model=TaskDetail)
    async def task(request: Request, task: str) -> Response:
        """Describe one task: labels, quality, cost, lineage, and what it shares with whom."""
        caller = allow(request, "read")
        release = server_of(request).predictor.loaded_release()
        described = caller.visible_route(release, task)
        return await _kept(
            request, caller, release, described, lambda: views.task_detail(release, described, caller.visible(release))
        )

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        caller, server = allow(request, "read"), server_of(request)
        return Response(
            await call_in(server.answer_threads, request, _metrics, server, caller), media_type=CONTENT_TYPE_LATEST
        )


async def _kept(
    request: Request,
    caller: Caller,
    release: LoadedRelease,
    about: LoadedRoute | None,
    make: Callable[[], BaseModel],
) -> Response:
    """Answer what a release says about a task or all of them; it is made once for all who see the same tasks."""
    key = (about, caller.private_tasks)
    found = release.answers.get(key)
    if found is None:
        found = await call_in(server_of(request).answer_threads, request, lambda: make().model_dump_json().encode())
        release.answers.keep(key, found, len(found))
    return Response(found, media_type="application/json")


def _metrics(server: Server, caller: Caller) -> bytes:
    return server.metrics.render(metrics_folder(), None if caller.sees_all else seen_by(caller, server.residents.held))


def seen_by(caller: Caller, releases: Sequence[LoadedRelease]) -> Visible:
    """Return what the metrics may tell a caller who may not see every task."""
    routes = [caller.visible(release) for release in releases]
    subgraphs = {stage.id for visible in routes for route in visible.values() for stage in route.stages}
    return Visible(tasks=len(routes[0]) if routes else 0, subgraphs=frozenset(map(subgraph_label, subgraphs)))


def _add_releases(app: FastAPI) -> None:
    changed = errors.responses(401, 403, 404, 422, 429, 503)

    @app.get("/v1/releases", responses=errors.responses(401, 422, 429, 503))
    @asks_store
    def releases(request: Request, limit: Limit = 20) -> ReleaseList:
        """List the store's releases, which one answers, and why if it is not the active one."""
        return views.release_list(server_of(request), allow(request, "read"), limit=limit)

    @app.get("/v1/releases/{before}/diff/{after}", responses=errors.responses(401, 404, 422, 429, 503))
    @asks_store
    def diff(request: Request, before: Number, after: Number) -> ReleaseDiff:
        """Tell which tasks one release has otherwise than another."""
        return views.release_diff(server_of(request), allow(request, "read"), before=before, after=after)

    @app.post("/v1/releases/{number}/activate", responses=changed, status_code=202)
    @asks_store
    def activate(request: Request, number: Number) -> Pointer:
        """Make a release the active one and hold it: no job moves on until a resume. Servers follow within seconds."""
        allow(request, "releases")
        server = server_of(request)
        store = server.store()
        if server.trust is not None:
            server.trust.check(store.files, store.release(number))
        return _moved(server, store.activate(number))

    @app.post("/v1/releases/resume", responses=changed, status_code=202)
    @asks_store
    def resume(request: Request) -> Pointer:
        """End a hold: what was published meanwhile becomes active, on top of the release that is active now."""
        allow(request, "releases")
        server = server_of(request)
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
