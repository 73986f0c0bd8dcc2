"""Pages of other origins that may read what this server answers: none, unless MU2NET_CORS_ORIGINS lists them."""

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import server_of

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
READABLE = ("X-Request-ID", "Retry-After", "Location", "Inference-Header-Content-Length")
PREFLIGHT_AGE_S = 600


class Cors:
    """ASGI middleware: Starlette's, with the origins that are known only when the server is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._shared: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origins = server_of(Request(scope)).settings.allowed_origins if scope["type"] == "http" else frozenset()
        if not origins:
            await self._app(scope, receive, send)
            return
        if self._shared is None:
            self._shared = CORSMiddleware(
                self._app,
                allow_origins=sorted(origins),
                allow_methods=METHODS,
                allow_headers=["*"],
                expose_headers=READABLE,
                max_age=PREFLIGHT_AGE_S,
            )
        await self._shared(scope, receive, send)
