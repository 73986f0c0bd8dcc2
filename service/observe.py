"""What is seen of every request from outside: its id, what it was answered, how long it took.

Here too, before anything else, what is not for this server is refused, since everything on the port comes here
but what BentoML answers itself: `/livez`, `/readyz` and `/healthz`.
"""

import logging
import re
import time
import uuid

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import ForeignRequest, Overloaded
from service import errors, traces
from service.access import CHANGES, caller_of, claimed_key, connection_of, require_own, server_of
from service.server import Server
from service.visit import Visit

REQUEST_ID_HEADER = b"x-request-id"
AS_IT_IS = (b"x-content-type-options", b"nosniff")  # no browser makes a page or a script of an answer that is none
REQUEST_ID = re.compile(rb"[\w.:-]{1,128}")  # of a client or a proxy, to be kept; others are replaced

REFUSED = frozenset({401, 403})

log = logging.getLogger("mu2net.request")
audit = logging.getLogger("mu2net.audit")


class Observed:
    """ASGI middleware: gives a request an id, counts and logs its end, and answers what nobody foresaw.

    What a handler knows of a request it writes on `request.state`: `tasks`, the metrics' labels of the tasks
    that it asks about, and `release`, the number of the one that answers. What the request holds of the server's
    room stands there as `visit`, and is given back at its end.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        request_id = _request_id(scope)
        scope["state"] = {**scope.get("state", {}), "request_id": request_id.decode()}
        traces.describe_request("request_id", scope["state"]["request_id"])

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID_HEADER, request_id), AS_IT_IS]
            elif not message.get("more_body", False):
                visit.end()  # all is computed: a client that does not read its answer holds its connection alone
            await send(message)

        server = server_of(Request(scope))
        visit = Visit(server, scope, receive)
        scope["state"]["visit"] = visit
        try:
            await self._chosen(scope, server, visit)(scope, visit.receive, send_with_id)
        except Exception:
            log.exception("request failed unexpectedly", extra=_about(scope))
            if status:
                raise  # too late for another answer: the connection must break
            await errors.unexpected()(scope, receive, send_with_id)
        finally:
            visit.end()
            del scope["state"]["visit"]  # each would keep the other, and the connection, until a garbage collection
            _tell(scope, server, status or errors.CLIENT_GONE, time.monotonic() - started)

    def _chosen(self, scope: Scope, server: Server, visit: Visit) -> ASGIApp:
        """Return what answers a request: the application if the request is for this server and has a place in it."""
        try:
            require_own(scope, server)
            visit.begin()
        except (ForeignRequest, Overloaded) as error:
            return errors.problem_of(error)
        return self._app


def _request_id(scope: Scope) -> bytes:
    given = next((value for name, value in scope["headers"] if name == REQUEST_ID_HEADER), b"")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()


def _about(scope: Scope) -> dict[str, object]:
    state = scope["state"]
    path = scope["path"][:200]
    return {
        "request_id": state["request_id"],
        "release": state.get("release"),
        "method": scope["method"],
        "path": path,
    }


def _tell(scope: Scope, server: Server, status: int, seconds: float) -> None:
    state = scope["state"]
    if state.get("tasks") is not None:
        server.metrics.count(state["tasks"], status, seconds)
    if status in REFUSED or state.get("action") in CHANGES:
        _audit(scope, status)
    if server.settings.log_requests:
        log.info("request", extra={**_about(scope), "status": status, "seconds": round(seconds, 6)})


def _audit(scope: Scope, status: int) -> None:
    """Write who changed something or was refused: one line each, whose status says how it ended."""
    request, state = Request(scope), scope["state"]
    about = {
        **_about(scope),
        "status": status,
        "key": caller_of(request).name,
        "action": state.get("action"),
        "client": connection_of(request),
        **state.get("change", {}),
    }
    if status not in REFUSED:
        audit.info("change", extra=about)
        return
    claimed = claimed_key(request)
    about |= {} if claimed is None else {"claimed_key": claimed}
    audit.warning("refused", extra=about)
