"""The routes that add, improve and retire tasks, and tell about the jobs that do so.

A server never trains: it looks at what was sent, keeps it, and queues a job for a worker
(`mu2net worker`, in evolve/).
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from models.errors import TaskExists
from models.jobs import Job, JobQueue, JobRequest, unknown_job
from models.names import TaskName
from models.release import require_task
from models.route import Route
from models.uploads import Uploads, drop_unused
from service import errors
from service.access import Caller, allow, server_of
from service.asking import unless_gone
from service.schemas import JobAnswer, JobList, JobView, Removed
from service.server import Server
from service.task_form import BUDGET, DATA, NAME, PARENTS, PRIVATE, TaskForm, task_form

POLL_S = 0.5  # between looks for a job's progress
FORM_BYTES = 2**16  # of a form without images
NOT_KEPT_YET = ""  # in place of an upload's digest, until it is known to be worth keeping
FIELD_MEANING = {
    NAME: "the task's name: 1 to 64 of a-z 0-9 _ - .",
    DATA: "a zip of labelled images, one folder per class, perhaps in train/, test/ and val/",
    BUDGET: "how long it may take: 90s, 5m, 1.5h",
    PRIVATE: "true: no other task may use its components",
    PARENTS: "tasks whose routes are tried first, separated by commas",
}

Limit = Annotated[int, Query(ge=1, le=1000, description="how many jobs to list")]
DeleteData = Annotated[bool, Query(description="whether the task's uploaded images go as well")]


def add_jobs(app: FastAPI) -> None:
    """Add the routes to `app`."""
    _add_tasks(app)
    _add_job_views(app)


def _add_tasks(app: FastAPI) -> None:
    problems = errors.responses(401, 403, 404, 409, 413, 415, 422, 429, 503)
    fields = (NAME, DATA, BUDGET, PRIVATE, PARENTS)

    @app.post("/v1/tasks", status_code=202, responses=problems, openapi_extra=_form(*fields))
    async def add_task(request: Request, response: Response) -> JobAnswer:
        """Add a task from a zip of labelled images: one folder per class, perhaps below train/ and test/."""
        client = allow(request, "tasks").client
        server = server_of(request)
        async with task_form(request, fields, max_bytes=server.settings.max_upload_bytes) as form:
            name, budget, private = form.name, form.budget, form.private
            routes = await asyncio.to_thread(_routes, server)
            if name in routes:
                raise TaskExists(
                    f"there is a task {name!r} already: send more images with PUT /v1/tasks/{name}/data, evolve it "
                    f"further with POST /v1/tasks/{name}/iterations, or choose another name"
                )
            parents = form.parents(routes)
            asked = JobRequest(name, "add", NOT_KEPT_YET, budget, private, parents)
            await _inspect(request, form, asked, client)
            job = await asyncio.to_thread(_keep_and_queue, server, form.zip, asked)
        return _accepted(job, response)

    @app.put("/v1/tasks/{task}/data", status_code=202, responses=problems, openapi_extra=_form(DATA, BUDGET, PARENTS))
    async def put_data(request: Request, response: Response, task: str) -> JobAnswer:
        """Replace a task's images by a zip that has more of them, and evolve it on these."""
        client = allow(request, "tasks").client
        server = server_of(request)
        routes = await asyncio.to_thread(_routes, server)
        name = require_task(task, routes)
        private = routes[name].private
        async with task_form(request, (DATA, BUDGET, PARENTS), max_bytes=server.settings.max_upload_bytes) as form:
            budget, parents = form.budget, form.parents(routes)
            asked = JobRequest(name, "iterate", NOT_KEPT_YET, budget, private, parents)
            await _inspect(request, form, asked, client)
            job = await asyncio.to_thread(_keep_and_queue, server, form.zip, asked)
        return _accepted(job, response)

    @app.post("/v1/tasks/{task}/iterations", status_code=202, responses=problems, openapi_extra=_form(BUDGET, PARENTS))
    async def iterate(request: Request, response: Response, task: str) -> JobAnswer:
        """Evolve a task further on the images that were sent last."""
        allow(request, "tasks")
        server = server_of(request)
        async with task_form(request, (BUDGET, PARENTS), max_bytes=FORM_BYTES) as form:
            job = await asyncio.to_thread(_iterate, server, task, form)
        return _accepted(job, response)

    @app.delete("/v1/tasks/{task}", responses=errors.responses(401, 403, 404, 503))
    def remove_task(request: Request, task: str, delete_data: DeleteData = True) -> Removed:
        """Retire a task in a new release, stop its jobs, and delete its images. Older releases still have its route."""
        allow(request, "tasks")
        return _remove(server_of(request), task, delete_data=delete_data)


def _routes(server: Server) -> dict[TaskName, Route]:
    """Return the routes as the store has them now: this process may answer from an older release still."""
    store = server.store()
    return store.routes(store.release())


async def _inspect(request: Request, form: TaskForm, asked: JobRequest, client: str) -> None:
    """Look at the images that came, as long as the client waits for it."""
    server, path = server_of(request), form.zip
    await asyncio.to_thread(server.queue.require_idle, asked.task)
    await unless_gone(request, server.inspections.inspect(path, shown_as=form.filename, client=client))


def _keep_and_queue(server: Server, path: Path, request: JobRequest) -> Job:
    """Keep the images and queue the job; if anything is wrong, nothing stays behind."""
    uploads, queue = Uploads(server.store()), server.queue
    kept_before = uploads.digests(request.task)
    digest = uploads.put(request.task, path)
    try:
        return queue.submit(replace(request, upload=digest))
    except BaseException:
        if digest not in kept_before and all(job.request.upload != digest for job in queue.unfinished(request.task)):
            uploads.discard(request.task, digest)
        raise


def _iterate(server: Server, task: str, form: TaskForm) -> Job:
    store = server.store()
    routes = store.routes(store.release())
    name = require_task(task, routes)
    upload = Uploads(store).newest(name)
    parents = form.parents(routes)
    return server.queue.submit(JobRequest(name, "iterate", upload, form.budget, routes[name].private, parents))


def _remove(server: Server, task: str, *, delete_data: bool) -> Removed:
    store, queue = server.store(), server.queue
    name = require_task(task, store.release().tasks)
    cancelled = [queue.cancel(job.id).id for job in queue.unfinished(name)]
    deleted = 0
    if delete_data:  # before the task goes: interrupted in between, the request can be sent again
        deleted = Uploads(store).delete(name)
        queue.forget_task(name)
    release = store.remove_task(name)
    server.watcher.look_soon()
    return Removed(task=name, release=release.number, uploads_deleted=deleted, cancelled=cancelled)


def _cancel(server: Server, job: str) -> Job:
    cancelled = server.queue.cancel(job)
    if cancelled.is_over:
        drop_unused(server.store(), server.queue, cancelled.request.task, digest=cancelled.request.upload)
    return cancelled


def _accepted(job: Job, response: Response) -> JobAnswer:
    response.headers["location"] = f"/v1/jobs/{job.id}"
    return JobAnswer(job=job_view(job))


def _add_job_views(app: FastAPI) -> None:
    problems = errors.responses(401, 404, 503)

    @app.get("/v1/jobs", responses=errors.responses(401, 422, 503))
    def jobs(request: Request, limit: Limit = 100) -> JobList:
        """List the newest jobs."""
        caller, jobs = allow(request, "read"), server_of(request).queue.jobs(limit=limit)
        return JobList(jobs=[job_view(job) for job in jobs if _sees(caller, job)])

    @app.get("/v1/jobs/{job}", responses=problems)
    def job(found: FoundJob) -> JobView:
        """Tell how far a job has come."""
        return job_view(found)

    @app.delete("/v1/jobs/{job}", status_code=202, responses=errors.responses(401, 403, 404, 503))
    def cancel(request: Request, job: str) -> JobView:
        """Have a job stopped, within seconds if it runs. What it has published stays."""
        allow(request, "tasks")
        return job_view(_cancel(server_of(request), job))

    @app.get("/v1/jobs/{job}/log", responses=problems, response_class=PlainTextResponse)
    def log(request: Request, found: FoundJob) -> str:
        """Tell what happened in a job, a line an event."""
        return server_of(request).queue.log_text(found.id)

    @app.get("/v1/jobs/{job}/events", responses=problems, response_class=EventSourceResponse)
    async def events(found: FoundJob, request: Request) -> AsyncIterator[ServerSentEvent]:
        """Send a job at each change, as `progress`, and when it is over, as `end`."""
        async for name, view in _changes(server_of(request).queue, found):
            yield ServerSentEvent(event=name, data=view)


def _asked_job(request: Request, job: str) -> Job:
    """Return the job of a path, before a stream begins: afterwards no error could be told.

    Raises:
        UnknownJob: there is none that the caller may know of.
    """
    caller, found = allow(request, "read"), server_of(request).queue.job(job)
    if not _sees(caller, found):
        raise unknown_job(job)
    return found


def _sees(caller: Caller, job: Job) -> bool:
    return caller.sees(job.request.task, is_private=job.request.private)


FoundJob = Annotated[Job, Depends(_asked_job)]


async def _changes(queue: JobQueue, job: Job) -> AsyncIterator[tuple[str, JobView]]:
    while True:
        yield "progress", job_view(job)
        if job.is_over:
            yield "end", job_view(job)
            return
        known = _without_time(job)
        while _without_time(job) == known:
            await asyncio.sleep(POLL_S)
            job = await asyncio.to_thread(queue.job, job.id)


def _without_time(job: Job) -> Job:
    """Return what makes a change: that a second has passed is none."""
    return replace(job, seconds=0.0, progress=replace(job.progress, seconds_left=None))


def job_view(job: Job) -> JobView:
    request, progress = job.request, job.progress
    return JobView(
        id=job.id,
        task=request.task,
        kind=request.kind,
        state=job.state,
        phase=progress.phase,
        generation=progress.generation,
        generations=progress.generations,
        candidates=progress.candidates,
        best_quality=progress.best_quality,
        release=progress.release,
        seconds=round(job.seconds, 1),
        seconds_left=None if progress.seconds_left is None else round(progress.seconds_left, 1),
        created=job.created,
        error=job.error,
    )


def _form(*fields: str) -> dict[str, Any]:
    """Return for OpenAPI what `task_form` takes."""
    properties = {field: {"type": "string", "description": FIELD_MEANING[field]} for field in fields}
    if DATA in fields:
        properties[DATA]["format"] = "binary"
    required = [field for field in (NAME, DATA) if field in fields]
    schema = {"type": "object", "properties": properties, "required": required}
    return {"requestBody": {"required": bool(required), "content": {"multipart/form-data": {"schema": schema}}}}
