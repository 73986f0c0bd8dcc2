"""A server in this process, asked through its ASGI interface."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry

from models.key_list import KEYS_FILE
from service.http import create_app
from service.metrics import Metrics
from service.server import Server, build_server
from service.settings import Settings
from tests.support.images import picture

LIMITS: dict[str, Any] = {
    "max_image_bytes": 40_000,
    "max_image_pixels": 10_000,
    "max_request_bytes": 100_000,
    "max_request_images": 3,
}
PATH = "/v1/tasks/first/classify"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def served(store: Path | str, *, is_ready: bool = True, **settings: Any) -> Iterator[tuple[TestClient, Server]]:
    """Serve a store in this process until the block ends, as if bound to a loopback address.

    The client is this machine's own user: it sends the token where there are no keys.
    """
    own: dict[str, Any] = {"device": "cpu", "poll_interval_s": 0.05, "bind_address": "127.0.0.1"}
    server = build_server(Settings(store=str(store), **(own | settings)), Metrics(CollectorRegistry()))
    app = create_app()
    app.state.server = server
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        assert client.portal is not None
        client.portal.call(server.start)
        if server.own_token is not None and not (Path(str(store)) / KEYS_FILE).exists():
            client.headers["authorization"] = f"Bearer {server.own_token}"
        try:
            if is_ready:
                wait_for(lambda: server.watcher.status.last_reload is not None)
            yield client, server
        finally:
            client.portal.call(server.stop)


def send(
    client: TestClient,
    path: str,
    body: bytes | None = None,
    content_type: str = "image/png",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> httpx2.Response:
    content = picture() if body is None else body
    return client.post(path, content=content, headers={"content-type": content_type, **headers})


def problem(response: httpx2.Response, status: int, kind: str) -> str:
    """Check the form of a refusal and return its text."""
    found = response.json()
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), found
    assert found.keys() == {"type", "title", "status", "detail", "error"}
    assert (found["type"], found["status"]) == (f"urn:mu2net:{kind}", status)
    detail: str = found["detail"]
    return detail
