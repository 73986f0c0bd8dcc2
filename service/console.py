"""The console: one page at `/` for people, which does nothing that the HTTP interface does not offer to all.

At `/docs` is what that interface offers, made from /openapi.json: FastAPI's own page would have every reader's browser
fetch its scripts from elsewhere, and be empty in a closed network. The files of both lie in `service/page` as they are
sent: no build step, nothing from elsewhere.
"""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE = Path(__file__).parent / "page"
HEADERS = {
    # No script, style or data but this server's own: what a store or an answer contains can never become code.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def install(app: FastAPI) -> None:
    """Serve the pages and, below `/console`, their files, to everybody: they hold no data of their own."""

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    @app.get("/docs", include_in_schema=False)
    def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html", headers=HEADERS)

    app.mount("/console", _with_headers(StaticFiles(directory=PAGE)))


def _with_headers(app: ASGIApp) -> ASGIApp:
    """Return `app` with the pages' headers on all that it sends: the pages are found below `/console`, too."""
    own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *own]
            await send(message)

        await app(scope, receive, send_with_headers)

    return answer
