"""The routes that add, improve and retire tasks, and tell about the jobs that do so.

A server never trains: it looks at what was sent, keeps it, and queues a job for a worker
(`mu2net worker`, in evolve/).
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from models.budget import DEFAULT_BUDGET, parse_budget
from models.errors import InvalidConfig, KeyNeeded, QuotaExceeded, TaskExists
from models.jobs import QUOTA_RETRY_S, Job, JobRequest, Quota, unknown_job
from models.names import TaskName
from models.release import require_task
from models.route import Route
from models.uploads import Uploads, drop_unused
from service import errors
from service.access import Caller, allow, asked_again, asks_store, call_in, note_change, server_of
from service.asking import unless_gone
from service.job_feed import is_change
from service.schemas import JobAnswer, JobList, JobView, Removed
from service.server import Server
from service.task_form import BUDGET, DATA, NAME, PARENTS, PRIVATE, TaskForm, task_form

FORM_BYTES = 2**16  # of a form without images
NO_TASK, SHORTEST_BUDGET = TaskName("-"), "0.001s"
NOT_KEPT_YET = ""  # in place of an upload's digest, until it is known to be worth keeping
FIELD_MEANING = {
    NAME: "the task's name: 1 to 64 of a-z 0-9 _ - .",
    DATA: "a zip of labelled images, one folder per class, perhaps in train/, test/ and val/",
    BUDGET: "how long it may take: 90s, 5m, 1.5h",
    PRIVATE: "true: no other task may use its components",
    PARENTS: "tasks whose routes are tried first, separated by commas",
}

Events = AsyncIterator[ServerSentEvent]
Limit = Annotated[int, Query(ge=1, le=1000, description="how many jobs to list")]
DeleteData = Annotated[bool, Query(description="whether the task's uploaded images go as well")]


def add_jobs(app: FastAPI) -> None:
    """Add the routes to `app`."""
    _add_tasks(app)
    _add_job_views(app)


def _add_tasks(app: FastAPI) -> None:
    problems = errors.responses(401, 403, 404, 408, 409, 413, 415, 422, 429, 503)
    fields = (NAME, DATA, BUDGET, PRIVATE, PARENTS)

    @app.post("/v1/tasks", status_code=202, responses=problems, openapi_extra=_form(*fields))
    async def add_task(request: Request, response: Response) -> JobAnswer:
        """Add a task from a zip of labelled images: one folder per class, perhaps below train/ and test/."""
        caller, server = allow(request, "tasks"), server_of(request)
        await _begin_upload(request, server, caller)
        async with task_form(request, fields, max_bytes=server.settings.max_upload_bytes) as form:
            name, budget, private = form.name, _budget(server, form), form.private
            routes = await call_in(server.store_threads, request, _routes, server)
            if name in routes:
                raise TaskExists(
                    f"there is a task {name!r} already: send more images with PUT /v1/tasks/{name}/data, evolve it "
                    f"further with POST /v1/tasks/{name}/iterations, or choose another name"
                )
            parents = form.parents(routes)
            note_change(request, task=name)
            asked = JobRequest(name, "add", NOT_KEPT_YET, budget, private, parents, _key_id(caller))
            job = await _queued(request, caller, form, asked)
        return _accepted(job, caller, response)

    @app.put("/v1/tasks/{task}/data", status_code=202, responses=problems, openapi_extra=_form(DATA, BUDGET, PARENTS))
    async def put_data(request: Request, response: Response, task: str) -> JobAnswer:
        """Replace a task's images by a zip that has more of them, and evolve it on these."""
        caller, server = allow(request, "tasks"), server_of(request)
        await _begin_upload(request, server, caller)
        routes = await call_in(server.store_threads, request, _routes, server)
        name = require_task(task, routes)
        private = routes[name].private
        async with task_form(request, (DATA, BUDGET, PARENTS), max_bytes=server.settings.max_upload_bytes) as form:
            budget, parents = _budget(server, form), form.parents(routes)
            asked = JobRequest(name, "iterate", NOT_KEPT_YET, budget, private, parents, _key_id(caller))
            job = await _queued(request, caller, form, asked)
        return _accepted(job, caller, response)

    @app.post("/v1/tasks/{task}/iterations", status_code=202, responses=problems, openapi_extra=_form(BUDGET, PARENTS))
    async def iterate(request: Request, response: Response, task: str) -> JobAnswer:
        """Evolve a task further on the images that were sent last."""
        caller, server = allow(request, "tasks"), server_of(request)
        async with task_form(request, (BUDGET, PARENTS), max_bytes=FORM_BYTES) as form:
            job = await call_in(server.store_threads, request, _iterate, server, caller, task, form)
        return _accepted(job, caller, response)

    @app.delete("/v1/tasks/{task}", responses=errors.responses(401, 403, 404, 503))
    @asks_store
    def remove_task(request: Request, task: str, delete_data: DeleteData = True) -> Removed:
        """Retire a task in a new release, stop its jobs, and delete its images. Older releases still have its route."""
        allow(request, "tasks")
        return _remove(server_of(request), task, delete_data=delete_data)


def _routes(server: Server) -> dict[TaskName, Route]:
    """Return the routes as the store has them now: this process may answer from an older release still."""
    store = server.store()
    return store.routes(store.release())


def _key_id(caller: Caller) -> str | None:
    return None if caller.key is None else caller.key.id


def _budget(server: Server, form: TaskForm) -> str | None:
    """Return how long a job may take; InvalidConfig if that is no time, or longer than this server allows."""
    budget, longest_s = form.budget, server.settings.max_budget_s
    if parse_budget(budget or DEFAULT_BUDGET) > longest_s:
        raise InvalidConfig(
            f"the budget {budget or DEFAULT_BUDGET!r} is longer than one job may take here, {longest_s:,.0f} s: ask "
            "for less, and evolve the task further with POST /v1/tasks/{task}/iterations"
        )
    return budget


def _quota(server: Server) -> Quota:
    return Quota(server.settings.max_jobs_per_key, server.settings.max_budget_per_key_s)


async def _begin_upload(request: Request, server: Server, caller: Caller) -> None:
    """Take a place among the uploads, and see that the caller may add a job at all.

    The place first, since it costs nothing to refuse: of a hundred uploads at once most end here.
    """
    request.state.visit.begin_upload()
    await call_in(server.store_threads, request, _require_room, server, caller)


def _require_room(server: Server, caller: Caller) -> None:
    """Raise QuotaExceeded if the caller's key may not add the smallest job: told before an upload is read."""
    smallest = JobRequest(NO_TASK, "add", NOT_KEPT_YET, SHORTEST_BUDGET, key=_key_id(caller))
    server.queue.require_quota(smallest, _quota(server))


def _require_bytes(server: Server, request: JobRequest, new: int) -> None:
    """Raise QuotaExceeded if a key's jobs have too many bytes of uploads kept for `new` more."""
    kept, allowed = Uploads(server.store()).kept_bytes(server.queue.uploads_of(request.key)), server.settings
    if kept + new > allowed.max_bytes_per_key:
        raise QuotaExceeded(
            f"{kept:,} bytes of this client's uploads are kept, and {new:,} more would exceed "
            f"{allowed.max_bytes_per_key:,}: retire tasks with DELETE /v1/tasks/{{task}}, or cancel jobs",
            retry_after_s=QUOTA_RETRY_S,
        )


async def _queued(request: Request, caller: Caller, form: TaskForm, asked: JobRequest) -> Job:
    """Look at the images, keep them and queue the job; if anything is wrong, nothing stays behind."""
    path, server = form.zip, server_of(request)
    await call_in(server.store_threads, request, _require_acceptable, server, asked, path.stat().st_size)
    holder = request.state.visit.holder
    await unless_gone(request, server.inspections.inspect(path, shown_as=form.filename, client=holder))
    if asked_again(request, caller) is None:  # an upload may take hours
        raise KeyNeeded("the key of this upload was revoked while it was under way: send it again with another key")
    return await call_in(server.upload_threads, request, _keep_and_queue, server, path, asked)


def _require_acceptable(server: Server, asked: JobRequest, new: int) -> None:
    """Raise TaskBusy or QuotaExceeded if a job with `new` bytes of images would be refused anyway."""
    server.queue.require_idle(asked.task)
    server.queue.require_quota(asked, _quota(server))
    _require_bytes(server, asked, new)


def _keep_and_queue(server: Server, path: Path, request: JobRequest) -> Job:
    """Keep the images and queue the job; if anything is wrong, nothing stays behind."""
    uploads, queue = Uploads(server.store()), server.queue
    kept_before = uploads.digests(request.task)
    digest = uploads.put(request.task, path)
    try:
        return queue.submit(replace(request, upload=digest), _quota(server))
    except BaseException:
        if digest not in kept_before and all(job.request.upload != digest for job in queue.unfinished(request.task)):
            uploads.discard(request.task, digest)
        raise


def _iterate(server: Server, caller: Caller, task: str, form: TaskForm) -> Job:
    store = server.store()
    routes = store.routes(store.release())
    name = require_task(task, routes)
    upload = Uploads(store).newest(name)
    budget, parents, private = _budget(server, form), form.parents(routes), routes[name].private
    asked = JobRequest(name, "iterate", upload, budget, private, parents, _key_id(caller))
    return server.queue.submit(asked, _quota(server))


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


def _accepted(job: Job, caller: Caller, response: Response) -> JobAnswer:
    response.headers["location"] = f"/v1/jobs/{job.id}"
    return JobAnswer(job=job_view(job, caller))


def _add_job_views(app: FastAPI) -> None:
    problems = errors.responses(401, 404, 503)

    @app.get("/v1/jobs", responses=errors.responses(401, 422, 503))
    @asks_store
    def jobs(request: Request, limit: Limit = 100) -> JobList:
        """List the newest jobs."""
        caller = allow(request, "read")
        found = server_of(request).queue.jobs(limit=limit, private=caller.private_tasks)
        return JobList(jobs=[job_view(job, caller) for job in found])

    @app.get("/v1/jobs/events", responses=errors.responses(401, 429, 503), response_class=EventSourceResponse)
    async def all_events(reader: Annotated[Caller, Depends(_begin_stream_of_all)], request: Request) -> Events:
        """Send each job that is not over, and then every job at each change, as `progress` or, at last, as `end`."""
        async with aclosing(_changes(request, reader)) as changes:
            is_first = True
            async for caller, jobs in changes:
                for job in jobs:
                    if _sees(caller, job) and not (is_first and job.is_over):
                        yield ServerSentEvent(event="end" if job.is_over else "progress", data=job_view(job, caller))
                is_first = False

    @app.get("/v1/jobs/{job}", responses=problems)
    def job(found: FoundJob) -> JobView:
        """Tell how far a job has come."""
        return job_view(found.job, found.caller)

    @app.delete("/v1/jobs/{job}", status_code=202, responses=errors.responses(401, 403, 404, 503))
    @asks_store
    def cancel(request: Request, job: str) -> JobView:
        """Have a job stopped, within seconds if it runs. What it has published stays."""
        caller = allow(request, "tasks")
        return job_view(_cancel(server_of(request), job), caller)

    @app.get("/v1/jobs/{job}/log", responses=problems, response_class=PlainTextResponse)
    @asks_store
    def log(request: Request, found: FoundJob) -> str:
        """Tell what happened in a job, a line an event."""
        return server_of(request).queue.log_text(found.job.id)

    @app.get(
        "/v1/jobs/{job}/events",
        responses=errors.responses(401, 404, 429, 503),
        response_class=EventSourceResponse,
        dependencies=[Depends(_begin_stream)],
    )
    async def events(found: FoundJob, request: Request) -> Events:
        """Send a job at each change, as `progress`, and when it is over, as `end`."""
        yield ServerSentEvent(event="progress", data=job_view(found.job, found.caller))
        if found.job.is_over:
            yield ServerSentEvent(event="end", data=job_view(found.job, found.caller))
            return
        async with aclosing(_changes(request, found.caller)) as changes:
            async for caller, jobs in changes:
                if not _sees(caller, found.job):
                    return
                for job in (job for job in jobs if job.id == found.job.id and is_change(found.job, job)):
                    yield ServerSentEvent(event="progress", data=job_view(job, caller))
                    if job.is_over:
                        yield ServerSentEvent(event="end", data=job_view(job, caller))
                        return


async def _begin_stream(request: Request) -> None:
    """Change to a place among the streams, before one begins: afterwards no error could be told.

    Raises:
        Overloaded: there is none.
    """
    request.state.visit.begin_stream()


async def _begin_stream_of_all(request: Request) -> Caller:
    """Return who asks for a stream of all jobs, if the queue can be read."""
    caller, server = allow(request, "read"), server_of(request)
    await call_in(server.store_threads, request, _require_queue, server)
    request.state.visit.begin_stream()
    return caller


def _require_queue(server: Server) -> None:
    server.queue.jobs(limit=1)


@dataclass(frozen=True, slots=True)
class _Found:
    job: Job
    caller: Caller


@asks_store
def _asked_job(request: Request, job: str) -> _Found:
    """Return the job of a path, before a stream begins: afterwards no error could be told.

    Raises:
        UnknownJob: there is none that the caller may know of.
    """
    caller, found = allow(request, "read"), server_of(request).queue.job(job)
    if not _sees(caller, found):
        raise unknown_job(job)
    return _Found(found, caller)


def _sees(caller: Caller, job: Job) -> bool:
    return caller.sees(job.request.task, is_private=job.request.private)


FoundJob = Annotated[_Found, Depends(_asked_job)]


async def _changes(request: Request, caller: Caller) -> AsyncGenerator[tuple[Caller, list[Job]], None]:
    """Yield the jobs that have changed, as `JobFeed.changes` does, and who reads them, until that may do so no more."""
    async with aclosing(server_of(request).job_feed.changes()) as changes:
        async for jobs in changes:
            reader = asked_again(request, caller)
            if reader is None:
                return
            yield reader, jobs


def job_view(job: Job, caller: Caller) -> JobView:
    """Return a job as `caller` may know it."""
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
        key=request.key if caller.manages_tasks else None,
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
