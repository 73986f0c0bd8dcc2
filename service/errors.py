"""Errors as HTTP answers: one table of statuses, and `application/problem+json` (RFC 9457) for all of them."""

import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from models import errors
from models.storage import TEMPORARY, storage_error
from service.access import caller_of
from service.schemas import Problem

PROBLEM_JSON = "application/problem+json"
NOT_READY_RETRY_S = 1  # how often a server looks for a release by default
CLIENT_GONE = 499  # nginx's number; nobody reads the answer, only the metrics

# The nearest class in an error's own line of descent decides.
STATUS: dict[type[errors.Mu2NetError], HTTPStatus] = {
    errors.Mu2NetError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.InvalidImage: HTTPStatus.BAD_REQUEST,
    errors.ImageTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.RequestTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UploadTooSlow: HTTPStatus.REQUEST_TIMEOUT,
    errors.UnsupportedMedia: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.StoreNotFound: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StoreError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.UntrustedRelease: HTTPStatus.CONFLICT,
    errors.TaskBusy: HTTPStatus.CONFLICT,
    errors.TaskExists: HTTPStatus.CONFLICT,
    errors.StorageFull: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.StorageReadOnly: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.QueueUnreachable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.WritingIsOff: HTTPStatus.FORBIDDEN,
    errors.KeyNeeded: HTTPStatus.UNAUTHORIZED,
    errors.ForeignRequest: HTTPStatus.FORBIDDEN,
    errors.KeyLacksScope: HTTPStatus.FORBIDDEN,
    errors.NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Overloaded: HTTPStatus.TOO_MANY_REQUESTS,
}


# Their messages name files, tasks and places of the store.
OF_THE_STORE = (errors.StoreError, errors.StoreNotFound, errors.QueueUnreachable, errors.InvalidConfig)
TOLD_LESS = "what the store holds cannot be read as it should; the server's log has the details: ask its operator"

log = logging.getLogger("mu2net.errors")


def status_of(error: errors.Mu2NetError) -> HTTPStatus:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return for OpenAPI that these statuses come with a problem document."""
    content = {PROBLEM_JSON: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}  # see service/openapi.py
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def problem(status: HTTPStatus, *, kind: str, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the problem document; `kind` is a short name in kebab case that stays as it is for programs."""
    title = kind.replace("-", " ").capitalize()
    body = Problem(type=f"urn:mu2net:{kind}", title=title, status=status.value, detail=detail, error=detail)
    return JSONResponse(body.model_dump(), status.value, headers=headers, media_type=PROBLEM_JSON)


def problem_of(error: errors.Mu2NetError) -> JSONResponse:
    """Return the problem document of an expected error."""
    headers = {}
    if isinstance(error, errors.Overloaded):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, errors.NotReady):
        headers["retry-after"] = str(NOT_READY_RETRY_S)
    if isinstance(error, errors.UploadTooSlow | errors.RequestTooLarge | errors.BodiesFull | errors.StorageFull):
        headers["connection"] = "close"  # else the server would go on reading what it does not want
    if isinstance(error, errors.KeyNeeded):
        headers["www-authenticate"] = "Bearer"
    return problem(status_of(error), kind=errors.kind_of(error), detail=str(error), headers=headers)


def unexpected() -> JSONResponse:
    """Return the answer to what nobody foresaw, which tells a stranger nothing."""
    detail = "the server failed unexpectedly; its log has the cause: try again, and report it if it persists"
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, kind="internal-error", detail=detail)


def install(app: FastAPI) -> None:
    """Make every error that leaves `app` a problem document."""

    @app.exception_handler(errors.Mu2NetError)
    async def expected(request: Request, error: errors.Mu2NetError) -> JSONResponse:
        if isinstance(error, errors.StorageFull | errors.StorageReadOnly):  # the path is not for who asks
            log.error("%s (%s)", error, error.path or "path unknown")
        elif isinstance(error, OF_THE_STORE) and not caller_of(request).sees_all:
            log.error("%s", error, extra={"request_id": getattr(request.state, "request_id", None)})
            return problem(status_of(error), kind=errors.kind_of(error), detail=TOLD_LESS)
        return problem_of(error)

    @app.exception_handler(OSError)
    async def by_system(request: Request, error: OSError) -> JSONResponse:
        """Answer what a disk refused. The store's files and the queue say it themselves; the framework's are left."""
        refused = storage_error(error, TEMPORARY)
        if refused is None:
            raise error
        return await expected(request, refused)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        detail = "; ".join(
            f"{' '.join(map(str, found['loc']))} = {found.get('input')!r:.80}: {found['msg']}"
            for found in error.errors()
        )
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, kind="invalid-request", detail=detail)

    @app.exception_handler(HTTPException)
    async def by_framework(request: Request, error: HTTPException) -> JSONResponse:
        status, path = HTTPStatus(error.status_code), request.url.path[:200]
        kind, detail = status.phrase.lower().replace(" ", "-"), str(error.detail)
        if status == HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {path!r}: /docs and /openapi.json list the paths"
        elif status == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "other methods")
            detail = f"{request.method} is not allowed at {path!r}: use {allowed}"
        return problem(status, kind=kind, detail=detail, headers=dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_GONE)
