"""A server without keys: what its machine's own user may, by the token, and what it answers nobody else."""

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from models.errors import InvalidConfig
from models.own_token import own_token
from models.store import Store
from service.client import AsyncClient, Client
from service.keys import ALL_TASKS, add_key, new_key
from service.own_pages import why_foreign
from service.server import Server
from tests.support.images import picture
from tests.support.in_process import PATH, problem, send, served
from tests.support.on_a_port import listening
from tests.support.processes import running, wait_until
from tests.support.stores import TaskPlan, make_store

WRITES = [
    ("POST", "/v1/releases/1/activate"), ("POST", "/v1/releases/resume"), ("POST", "/v1/tasks"),
    ("PUT", "/v1/tasks/first/data"), ("POST", "/v1/tasks/first/iterations"), ("DELETE", "/v1/tasks/first"),
    ("DELETE", "/v1/jobs/x"),
]  # fmt: skip
READS = ["/", "/docs", "/console/api.js", "/openapi.json", "/metrics", "/nothing", "/v1/tasks", "/v1/jobs",
         "/v1/releases", "/v2", "/v2/health/live"]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    plans = (TaskPlan("first"), TaskPlan("secret", seed=3, private=True))
    return make_store(tmp_path_factory.mktemp("own") / "store", *plans)


@pytest.fixture(scope="module")
def own(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Server]]:
    """A server, and a client that sends no token."""
    with served(store.folder, cache=tmp_path_factory.mktemp("cache")) as found:
        del found[0].headers["authorization"]
        yield found


def bearer(server: Server) -> dict[str, str]:
    return {"authorization": f"Bearer {server.own_token}"}


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_without_the_token_nothing_is_changed_and_nothing_private_told(
    own: tuple[TestClient, Server], method: str, path: str
) -> None:
    client, server = own
    for headers in ({}, {"x-forwarded-for": "127.0.0.1"}, {"connection": "close"}, {"authorization": "Basic eDp5"}):
        refused = client.request(method, path, headers=headers)
        assert problem(refused, 401, "key-needed") == (
            "this server takes changes from its machine's own user only: send 'Authorization: Bearer TOKEN' with the "
            "content of the file 'token' in the folder that MU2NET_CACHE names, ~/.cache/mu2net by default; or make an "
            "API key with 'mu2net keys create'"
        )
        assert refused.headers["www-authenticate"] == "Bearer"
    assert [task["task"] for task in client.get("/v1/tasks").json()["tasks"]] == ["first"]
    assert send(client, "/v1/tasks/secret/classify").status_code == 404
    assert send(client, PATH).status_code == 200
    assert server.store().current().is_held is False


def test_the_token_is_this_machines_own_user(own: tuple[TestClient, Server]) -> None:
    client, server = own
    assert [task["task"] for task in client.get("/v1/tasks", headers=bearer(server)).json()["tasks"]] == [
        "first", "secret",
    ]  # fmt: skip
    assert send(client, "/v1/tasks/secret/classify", headers=bearer(server)).status_code == 200
    assert client.post("/v1/releases/resume", headers=bearer(server)).status_code == 202


@pytest.mark.parametrize("token", ["x", "mu2net_own_" + "A" * 43, "mu2net_00000000_" + "A" * 43, "\xe9"])
def test_another_token_is_refused_everywhere(own: tuple[TestClient, Server], token: str) -> None:
    client, _ = own
    headers = [(b"authorization", f"Bearer {token}".encode("latin-1"))]
    for path in ("/v1/tasks", "/metrics"):
        message = problem(client.get(path, headers=headers), 401, "key-needed")
        assert "is not the token of its machine's user" in message


def test_bound_elsewhere_the_token_gives_nothing(own: tuple[TestClient, Server], store: Store, tmp_path: Path) -> None:
    token = own_token(tmp_path)
    for address in ("0.0.0.0", "", "192.0.2.1", "::"):
        with served(store.folder, cache=tmp_path, bind_address=address) as (client, server):
            client.headers["authorization"] = f"Bearer {token}"
            assert server.own_token is None
            message = problem(client.post("/v1/releases/resume"), 403, "writing-is-off")
            assert "where the token of its machine's user gives nothing" in message
            assert "make a key with 'mu2net keys create'" in message
            assert [task["task"] for task in client.get("/v1/tasks").json()["tasks"]] == ["first"]
            assert client.get("/v1/tasks", headers={"host": "evil.example"}).status_code == 200


FOREIGN_HOSTS = [
    "evil.example", "127.0.0.1.evil.example", "localhost.", "localhost.evil.example", "evil@127.0.0.1", "", " ",
    "127.1", "2130706433", "0x7f.0.0.1", "0.0.0.0", "[::]", "[::2]", "[::ffff:127.0.0.1]", "::1", "[::1", "[::1%lo]",
    "127.0.0.1:x", "127.0.0.1:3000:1", "127.0.0.1/", "127.0.0.1, evil.example", "10.0.0.1", "128.0.0.1",
]  # fmt: skip
OWN_HOSTS = ["localhost", "LocalHost:3000", "127.0.0.1", "127.8.9.1:80", "[::1]", "[::1]:3000", "[0:0:0:0:0:0:0:1]"]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_host_that_is_none_of_this_machines_is_refused(host: str) -> None:
    shown = f"the host that was asked for ({host!r}) is none of this machine's"
    assert why_foreign([(b"host", host.encode())], "GET", ()) == shown


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_a_host_of_this_machine_is_answered(host: str) -> None:
    own_page = [(b"host", host.encode()), (b"origin", f"http://{host}".encode())]
    assert why_foreign(own_page[:1], "GET", ()) is None
    assert why_foreign(own_page, "POST", ()) is None


def test_a_request_needs_one_host() -> None:
    assert why_foreign([], "GET", ()) == "the host that was asked for (none) is none of this machine's"
    assert why_foreign([(b"host", b"127.0.0.1"), (b"host", b"127.0.0.1")], "GET", ()) is not None


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": ""}, {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://localhost:3000"}, {"origin": "http://127.0.0.1:3000.evil.example"},
        {"origin": "file://127.0.0.1:3000"}, {"origin": "http://127.0.0.1:3000/"}, {"origin": "127.0.0.1:3000"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    ],
    ids=str,
)  # fmt: skip
def test_pages_of_others_are_answered_nothing(own: tuple[TestClient, Server], headers: dict[str, str]) -> None:
    client, server = own
    mine = {"host": "127.0.0.1:3000", **headers}
    for path in READS:
        message = problem(client.get(path, headers=mine), 403, "foreign-request")
        assert message == (
            "this server answers only this machine's own pages and programs, and a page of another site sent it: call "
            "it by its loopback address, set MU2NET_HOSTS to the name that a proxy before it has, or make a key with "
            "'mu2net keys create'"
        )
    assert send(client, PATH, headers=mine).status_code == 403
    assert client.options("/v1/tasks", headers=mine).status_code == 403
    assert client.post("/v1/releases/resume", headers=mine | bearer(server)).status_code == 403


@pytest.mark.parametrize("path", READS)
def test_whatever_is_asked_for_a_foreign_host_is_refused(own: tuple[TestClient, Server], path: str) -> None:
    client, _ = own
    for host in ("evil.example", "localhost."):
        refused = client.get(path, headers={"host": host, "origin": f"http://{host}"})
        assert repr(host) in problem(refused, 403, "foreign-request")


def test_a_link_from_elsewhere_may_be_followed(own: tuple[TestClient, Server]) -> None:
    client, _ = own
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers=visit).status_code == 200
    assert client.post("/v1/releases/resume", headers=visit).status_code == 403  # a form of another site


def test_hosts_that_are_listed_are_answered(store: Store, tmp_path: Path) -> None:
    with served(store.folder, cache=tmp_path, hosts="Models.Example, gpu-1") as (client, _):
        for host in ("models.example", "MODELS.EXAMPLE:8443", "gpu-1"):
            assert client.get("/v1/tasks", headers={"host": host, "origin": f"https://{host}"}).status_code == 200
        # the proxy rewrites the host, the browser's origin is the listed one's
        rewritten = {"host": "127.0.0.1:3000", "origin": "https://models.example"}
        assert client.get("/v1/tasks", headers=rewritten).status_code == 200
        assert client.get("/v1/tasks", headers={"host": "x.models.example"}).status_code == 403


def test_the_token_file_is_a_secret_and_one_for_all(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    found: list[str] = []
    before = os.umask(0o022)
    try:
        threads = [threading.Thread(target=lambda: found.append(own_token(folder))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.umask(before)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert found[0] == (folder / "token").read_text().strip()
    assert [path.name for path in folder.iterdir()] == ["token"]
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_token_that_is_no_secret_is_refused(tmp_path: Path) -> None:
    own_token(tmp_path)
    path = tmp_path / "token"
    for mode in (0o644, 0o640, 0o602):
        path.chmod(mode)
        with pytest.raises(InvalidConfig, match=rf"token is not a secret of this user: .* has mode {mode:04o}, not"):
            own_token(tmp_path)
    path.chmod(0o600)
    path.write_text("")
    with pytest.raises(InvalidConfig, match="holds no token: delete it, and the next start of a server makes a new"):
        own_token(tmp_path)
    path.rename(tmp_path / "other")
    path.symlink_to(tmp_path / "other")
    with pytest.raises(InvalidConfig, match="cannot be kept in"):
        own_token(tmp_path)
    with pytest.raises(InvalidConfig, match=r"cannot be kept in .*other \(Not a directory\): make that folder writ"):
        own_token(tmp_path / "other")


def test_the_client_sends_the_token_to_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setenv("MU2NET_CACHE", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:1")
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200, json={"tasks": []})

    def ask(url: str, key: str | None = None) -> str | None:
        with Client(url, key=key, transport=httpx.MockTransport(answer)) as client:
            client.tasks()
        return seen[-1]

    assert ask("http://127.0.0.1:3000") is None  # no server of this user was ever started
    token = own_token(tmp_path)
    for url in ("http://127.0.0.1:3000", "http://localhost:1", "http://[::1]:3000", "http://127.3.2.1"):
        assert ask(url) == f"Bearer {token}"
    for url in ("http://192.0.2.1", "http://localhost.evil.example", "http://127.0.0.1.evil.example", "http://0.0.0.0"):
        assert ask(url) is None
    assert ask("http://127.0.0.1:3000", "a key") == "Bearer a key"
    assert AsyncClient()._http.headers["authorization"] == f"Bearer {token}"
    with listening(store.folder, cache=tmp_path) as (url, _), Client(url) as client:  # past the proxy, too
        assert [task.task for task in client.tasks()] == ["first", "secret"]


PROXIED = {"connection": "close"}  # all that nginx adds by its defaults; it rewrites the host


def test_a_real_server_makes_the_token_and_a_plain_proxy_opens_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"), TaskPlan("secret", seed=3, private=True))
    with running(store.folder, tmp_path) as (process, client):
        wait_until(process, lambda: client.get("/readyz").is_success)
        token = (tmp_path / ".cache" / "mu2net" / "token").read_text().strip()
        refused = client.post("/v1/releases/1/activate", headers=PROXIED)
        assert (refused.status_code, refused.json()["type"]) == (401, "urn:mu2net:key-needed")
        assert "secret" not in client.get("/v1/tasks", headers=PROXIED).text
        for path in ("/", "/metrics", "/openapi.json", "/nothing"):
            assert client.get(path, headers={"host": "evil.example"}).status_code == 403
        assert client.get("/livez", headers={"host": "evil.example"}).status_code == 200
        assert client.get("/readyz", headers={"host": "evil.example"}).status_code == 200
        assert client.post(PATH, files={"image": picture()}).status_code == 200
        mine = {"authorization": f"Bearer {token}"}
        assert client.post("/v1/releases/1/activate", headers=mine).status_code == 202


def test_each_change_and_each_refusal_is_a_line_of_the_audit(
    own: tuple[TestClient, Server], caplog: pytest.LogCaptureFixture
) -> None:
    client, server = own
    caplog.set_level("INFO", "mu2net.audit")
    client.post("/v1/releases/resume", headers=bearer(server) | {"x-request-id": "one"})
    client.post("/v1/releases/resume", headers={"x-request-id": "two"})
    client.get("/v1/tasks", headers={"host": "evil.example", "x-request-id": "three"})
    client.get("/v1/tasks", headers={"authorization": "Bearer mu2net_0123abcd_" + "A" * 43, "x-request-id": "four"})
    client.get("/v1/tasks", headers={"x-request-id": "five"})
    lines = [record.__dict__ for record in caplog.records if record.name == "mu2net.audit"]
    told = ("request_id", "message", "key", "action", "method", "path", "status", "claimed_key")
    assert [tuple(line.get(name) for name in told) for line in lines] == [
        ("one", "change", "own user", "releases", "POST", "/v1/releases/resume", 202, None),
        ("two", "refused", "anybody", "releases", "POST", "/v1/releases/resume", 401, None),
        ("three", "refused", "anybody", None, "GET", "/v1/tasks", 403, None),
        ("four", "refused", "anybody", "read", "GET", "/v1/tasks", 401, "0123abcd"),
    ]  # fmt: skip
    assert all(line["client"].startswith("testclient ") for line in lines)
    assert str(server.own_token) not in json.dumps(lines, default=str)


@pytest.mark.parametrize("keys", [False, True], ids=["own user", "keys"])
def test_pages_of_listed_origins_may_ask_and_no_others(tmp_path: Path, keys: bool) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    if keys:
        key, _ = new_key("pages", classify=(ALL_TASKS,), manages=(), rate=None)
        add_key(store.files, key)
    allowed, other = "https://app.example.com", "https://other.example.com"
    with listening(store.folder, cache=tmp_path, cors_origins=f"{allowed}, http://localhost:5173") as (address, _):
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        preflight = httpx.options(f"{address}/v1/classify", headers={"origin": allowed, **asked})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == allowed
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        told = httpx.get(f"{address}/v1/tasks", headers={"origin": allowed})
        assert told.headers["access-control-allow-origin"] == allowed
        assert told.status_code == (401 if keys else 200)
        refused = httpx.get(f"{address}/v1/tasks", headers={"origin": other})
        assert "access-control-allow-origin" not in refused.headers
        assert refused.status_code == (401 if keys else 403)
