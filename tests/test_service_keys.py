"""Keys: what each may do, what nobody without one sees, and that a proxy opens nothing."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from fastapi.testclient import TestClient

from models.errors import InvalidConfig, InvalidInput, UnknownKey
from models.files import Files
from models.jobs import JobRequest
from models.key_list import KEYS_FILE, KeyList, Manages, find_keys
from models.names import TaskName
from models.store import Store
from service import key_commands
from service.keys import add_key, new_key, revoke_key
from service.server import Server
from tests.support.images import picture
from tests.support.in_process import PATH, problem, send, served, wait_for
from tests.support.processes import environment, free_port
from tests.support.real_server import RealServer
from tests.support.stores import TaskPlan, make_store

PLANS = (TaskPlan("first"), TaskPlan("second", seed=2), TaskPlan("secret", seed=3, private=True))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("keys") / "store", *PLANS)


@pytest.fixture(scope="module")
def keyed(store: Store) -> Iterator[tuple[TestClient, Server]]:
    """A server that has had a key from the start, and a job of the private task."""
    make(store, classify=())
    with served(store.folder) as found:
        found[1].queue.submit(JobRequest(TaskName("secret"), "iterate", "0" * 64, "5m", True, ()))
        yield found


def make(
    store: Store, *, classify: tuple[str, ...] = ("all",), manages: tuple[Manages, ...] = (), rate: str | None = None
) -> str:
    key, token = new_key("a test", classify=classify, manages=manages, rate=rate)
    add_key(store.files, key)
    return token


def read_keys(files: Files) -> KeyList:
    return find_keys(files) or KeyList()


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def known(server: Server, token: str) -> None:
    """Wait until the running server has seen the key."""
    wait_for(lambda: server.keys.holder(token) is not None)


def ask(client: TestClient, token: str, path: str = PATH) -> httpx2.Response:
    return client.post(path, content=picture(), headers={"content-type": "image/png", **bearer(token)})


def test_only_the_hash_is_stored_and_nothing_shows_it(store: Store) -> None:
    token = make(store)
    assert token not in (store.folder / KEYS_FILE).read_text()
    assert all(key.sha256 not in repr(key) for key in read_keys(store.files).keys)


@pytest.mark.parametrize("path", ["/v1/tasks", "/v1/tasks/first", "/v1/releases", "/v1/releases/0/diff/1", "/metrics"])
def test_with_keys_every_reading_needs_one(keyed: tuple[TestClient, Server], store: Store, path: str) -> None:
    client, server = keyed
    refused = client.get(path)
    assert problem(refused, 401, "key-needed") == (
        "this server needs an API key, and the request has none: send the header 'Authorization: Bearer KEY' with a "
        "key made by 'mu2net keys create'"
    )
    assert refused.headers["www-authenticate"] == "Bearer"
    token = make(store)
    known(server, token)
    assert client.get(path, headers=bearer(token)).status_code == 200
    wrong = client.get(path, headers=bearer(token[:-1] + ("a" if token[-1] != "a" else "b")))
    assert "this one is unknown or revoked" in problem(wrong, 401, "key-needed")
    assert problem(client.get(path, headers={"authorization": f"Basic {token}"}), 401, "key-needed")


@pytest.mark.parametrize(
    ("classify", "path", "status"),
    [
        (("first",), "/v1/tasks/first/classify", 200),
        (("first",), "/v1/tasks/second/classify", 403),
        (("first",), "/v1/tasks/secret/classify", 404),
        (("all",), "/v1/tasks/second/classify", 200),
        (("all",), "/v1/tasks/secret/classify", 404),
        (("secret",), "/v1/tasks/secret/classify", 200),
        (("first",), "/v1/classify?tasks=first,second", 403),
        (("first",), "/v1/classify?tasks=first,secret", 404),
        ((), "/v1/classify?tasks=all", 403),
    ],
)
def test_a_key_classifies_with_its_tasks_alone(
    keyed: tuple[TestClient, Server], store: Store, classify: tuple[str, ...], path: str, status: int
) -> None:
    client, server = keyed
    token = make(store, classify=classify)
    known(server, token)
    answer = ask(client, token, path)
    assert answer.status_code == status
    if status == 403:
        assert "key 'a test' may not classify with task" in problem(answer, 403, "key-lacks-scope")
    if status == 404:
        assert problem(answer, 404, "unknown-task").endswith("known tasks: first, second")


@pytest.mark.parametrize(
    ("classify", "answered"),
    [(("all",), ["first", "second"]), (("second", "secret"), ["second", "secret"]),
     (("all", "secret"), ["first", "second", "secret"])],
)  # fmt: skip
def test_all_tasks_are_those_of_the_key(
    keyed: tuple[TestClient, Server], store: Store, classify: tuple[str, ...], answered: list[str]
) -> None:
    client, server = keyed
    token = make(store, classify=classify)
    known(server, token)
    found = ask(client, token, "/v1/classify?tasks=all").json()
    assert [answer["task"] for answer in found["answers"]] == answered


@pytest.mark.parametrize(
    ("scopes", "is_told"),
    [({"classify": ("all",)}, False), ({"classify": ("secret",)}, True), ({"manages": ("tasks",)}, True),
     ({"manages": ("releases",)}, True)],
    ids=["all", "named", "manages-tasks", "manages-releases"],
)  # fmt: skip
def test_a_private_task_is_told_to_its_key_and_to_managers_alone(
    keyed: tuple[TestClient, Server], store: Store, scopes: dict[str, Any], is_told: bool
) -> None:
    client, server = keyed
    token = make(store, **scopes)
    known(server, token)
    client.headers.update(bearer(token))
    try:
        ask(client, token, "/v1/tasks/secret/classify")
        pages = [client.get(path) for path in ("/v1/tasks", "/v1/tasks/first", "/v1/releases/0/diff/3", "/v1/releases")]
        pages += [client.get("/v1/tasks/nothing"), client.post("/v1/classify", content=picture())]
        pages += [client.get("/v1/jobs"), client.post("/v2/repository/index")]
        (job,) = server.queue.jobs(limit=1)
        asked = [f"/v1/jobs/{job.id}{more}" for more in ("", "/log")] + ["/v2/models/secret", "/v2/models/secret/ready"]
        alone = [client.get(path).status_code for path in asked]
    finally:
        del client.headers["authorization"]
    assert [page.status_code for page in pages[:4]] == [200] * 4
    assert ("secret" in [task["task"] for task in pages[0].json()["tasks"]]) == is_told
    assert any("secret" in page.text for page in pages) == is_told
    assert [("secret" in page.text) for page in pages[-2:]] == [is_told] * 2
    assert alone == [200 if is_told else 404] * 4
    assert "secret" not in client.get("/metrics", headers=bearer(token)).text


def test_without_keys_private_tasks_are_this_machines_own(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", *PLANS)
    with served(store.folder) as (client, server):
        assert ask(client, str(server.own_token), "/v1/tasks/secret/classify").status_code == 200
    with served(store.folder, bind_address="0.0.0.0") as (client, _):
        assert ask(client, "", "/v1/tasks/secret/classify").status_code == 404
        assert ask(client, "").status_code == 200
        assert "secret" not in client.get("/v1/tasks").text + client.get("/v1/releases").text


def test_where_only_private_tasks_are_strangers_find_none(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("secret", private=True))
    with served(store.folder, bind_address="0.0.0.0") as (client, _):
        message = problem(send(client, "/v1/classify?tasks=all"), 404, "unknown-task")
        assert message == "no route for task 'all'; known tasks: none yet: add one with 'mu2net evolve'"


def test_only_a_key_for_releases_manages_them(keyed: tuple[TestClient, Server], store: Store) -> None:
    client, server = keyed
    tasks, releases = make(store, manages=("tasks",)), make(store, manages=("releases",))
    known(server, releases)
    refused = client.post("/v1/releases/resume", headers=bearer(tasks))
    assert problem(refused, 403, "key-lacks-scope") == (
        "key 'a test' may not manage releases; it may manage: tasks: use another key, or make one with "
        "'mu2net keys create --releases'"
    )
    assert client.post("/v1/releases/resume").status_code == 401
    assert client.post("/v1/releases/resume", headers=bearer(releases)).status_code == 202


def test_keys_come_and_go_without_a_restart_and_the_last_one_leaves_the_door_shut(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    with served(store.folder) as (client, server), served(store.folder) as (other, _):  # two workers of one store
        assert send(client, PATH).status_code == send(other, PATH).status_code == 200
        token = make(store)
        for worker in (client, other):
            wait_for(lambda worker=worker: send(worker, PATH).status_code == 401)  # type: ignore[misc]
            assert ask(worker, token).status_code == 200
        revoke_key(store.files, "a test")
        for worker in (client, other):
            wait_for(lambda worker=worker: ask(worker, token).status_code == 401)  # type: ignore[misc]
            assert send(worker, PATH).status_code == 401
        (store.folder / KEYS_FILE).write_text("damaged")
        server.keys._look()
        assert send(client, PATH).status_code == 401


def test_keys_that_cannot_be_read_let_nobody_in(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    (store.folder / KEYS_FILE).write_text("damaged")
    with served(store.folder) as (client, _):
        message = problem(send(client, PATH), 503, "not-ready")
        assert message == "not ready: the store's keys could not be read yet; the server's log says why"


def test_a_key_that_asks_too_often_is_told_when_to_come_back(keyed: tuple[TestClient, Server], store: Store) -> None:
    client, server = keyed
    token, other = make(store, rate="3/hour"), make(store)
    known(server, other)
    assert [ask(client, token).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = ask(client, token)
    assert problem(refused, 429, "rate-limited").startswith("key 'a test' may make 3/hour requests and has: try again")
    assert 1 <= int(refused.headers["retry-after"]) <= 3600
    assert ask(client, other).status_code == 200


def test_a_servers_own_rate_is_for_keys_without_one(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    token = make(store)
    with served(store.folder, key_rate="1/hour") as (client, _):
        assert [ask(client, token).status_code for _ in range(2)] == [200, 429]


def test_no_key_gets_into_the_log(
    keyed: tuple[TestClient, Server], store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    client, server = keyed
    token = make(store)
    known(server, token)
    with caplog.at_level(logging.DEBUG):
        ask(client, token)
        ask(client, token + "x")
    assert token not in caplog.text


def test_the_commands_make_list_and_revoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    place = str(store.folder)
    key_commands.create(place, "shop", classify=["first", "all"], rate="100/minute")
    printed = capsys.readouterr()
    token = printed.out.strip()
    (key,) = read_keys(store.files).keys
    assert printed.err == f"key {key.id} (shop): classify first, all; send it as 'Authorization: Bearer KEY'\n"
    assert token.startswith(f"mu2net_{key.id}_")
    key_commands.create(place, "shop", tasks=True, releases=True, as_json=True)
    second = json.loads(capsys.readouterr().out)
    assert second["manages"] == ["tasks", "releases"]
    with pytest.raises(UnknownKey, match=f"several keys are called 'shop': name one by its id, {key.id}, "):
        key_commands.revoke(place, "shop")
    key_commands.revoke(place, second["id"])
    assert capsys.readouterr().out == f"revoked key {second['id']} (shop)\n"
    with pytest.raises(UnknownKey, match=rf"no key in use has the id or name 'none'; keys in use: {key.id} \(shop\)"):
        key_commands.revoke(place, "none")
    key_commands.list_keys(place, as_json=True)
    printed_keys = json.loads(capsys.readouterr().out)["keys"]
    assert [(found["id"], found["revoked_at"] is None) for found in printed_keys] == [
        (key.id, True), (second["id"], False),
    ]  # fmt: skip
    assert "sha256" not in printed_keys[0]


def test_wrong_commands_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="a key that may do nothing is of no use: give --classify TASK"):
        key_commands.create(str(tmp_path), "shop")
    with pytest.raises(InvalidConfig, match="rate 'often' cannot be read: write a number of requests per second"):
        key_commands.create(str(tmp_path), "shop", tasks=True, rate="often")


def test_keys_are_not_lost_between_writers(tmp_path: Path) -> None:
    """A place without locks: the writer that was slower reads again."""
    remote = make_store(tmp_path / "store", TaskPlan("first"))
    url = f"memory://keys-{tmp_path.name}"
    store = Store.begin(url, lambda _: remote.release(0), cache=tmp_path / "cache")
    for _ in range(3):
        make(store)
    assert len(read_keys(store.files).keys) == 3
    assert KeyList(read_keys(Store.open(url, cache=tmp_path / "cache").files).keys) == read_keys(store.files)


PROXY = """
import sys, httpx, uvicorn
upstream = httpx.AsyncClient(base_url=sys.argv[1])
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    headers |= {"x-forwarded-for": headers.pop("x-from", "203.0.113.9"), "host": sys.argv[1].split("//")[1]}
    body = b""
    while (message := await receive()).get("more_body"):
        body += message["body"]
    answer = await upstream.request(scope["method"], scope["path"], headers=headers, content=body + message["body"])
    found = [(name, value) for name, value in answer.headers.raw if name.lower() == b"content-type"]
    await send({"type": "http.response.start", "status": answer.status_code, "headers": found})
    await send({"type": "http.response.body", "body": answer.content})
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", lifespan="off")
"""


def test_behind_a_proxy_nothing_is_written_without_a_key(real_server: RealServer, tmp_path: Path) -> None:
    """The proxy is on this machine: every peer looks local, and claims to be, and so does the Host it sends."""
    store, direct = real_server.store, real_server.client
    path = "/v1/releases/2/activate"
    port = free_port()
    proxy = start_proxy(f"http://127.0.0.1:{direct.base_url.port}", port, tmp_path)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_for(lambda: is_up(client))
            for claimed in ("127.0.0.1", "203.0.113.9"):
                refused = client.post(path, headers={"x-from": claimed})
                assert (refused.status_code, refused.json()["type"]) == (403, "urn:mu2net:writing-is-off")
                assert [task["task"] for task in client.get("/v1/tasks").json()["tasks"]] == ["first", "second"]
            assert direct.post(path).status_code == 403
            token = make(store, manages=("releases",))
            wait_for(lambda: client.post(path, headers=bearer(token)).status_code == 202)
            assert direct.post(path).status_code == 401
    finally:
        proxy.terminate()
        proxy.wait(30)
        (store.folder / KEYS_FILE).unlink(missing_ok=True)
    wait_for(lambda: direct.get("/v1/tasks").is_success)


def start_proxy(upstream: str, port: int, home: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", PROXY, upstream.rstrip("/"), str(port)], env=environment(home))


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").is_success
    except httpx.TransportError:
        return False
