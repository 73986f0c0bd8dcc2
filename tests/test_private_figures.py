"""What is computed or told for a caller comes from what the caller may see: no count, figure or error tells more."""

import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from models.jobs import JobRequest
from models.names import TaskName
from models.store import Store
from service.keys import add_key, new_key
from service.server import Server
from tests.support.images import picture
from tests.support.in_process import problem, served, wait_for
from tests.support.stores import TaskPlan, add_task, make_store

PUBLIC = (TaskPlan("first", own_blocks=[1]), TaskPlan("second", seed=2))
HIDDEN = (TaskPlan("secret", seed=3, own_blocks=[0], private=True), TaskPlan("hush", seed=4, private=True))
TOLD_LESS = "what the store holds cannot be read as it should; the server's log has the details: ask its operator"

Found = tuple[TestClient, Server]


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("private") / "store", *PUBLIC, *HIDDEN)


@pytest.fixture
def stranger(store: Store) -> Iterator[Found]:
    """A client that may classify with public tasks; the server's own user has asked the private ones, too."""
    with served(store.folder) as (client, server):
        answer = client.post("/v1/classify?tasks=all", content=picture(), headers={"content-type": "image/png"})
        assert len(answer.json()["answers"]) == 4
        del client.headers["authorization"]
        yield client, server


def mine(server: Server) -> dict[str, str]:
    return {"authorization": f"Bearer {server.own_token}"}


def test_figures_are_as_if_there_were_no_private_tasks(
    stranger: Found, tmp_path_factory: pytest.TempPathFactory
) -> None:
    client, server = stranger
    alone = make_store(tmp_path_factory.mktemp("alone") / "store", *PUBLIC)
    with served(alone.folder) as (other, _):
        expected = {task["task"]: task for task in other.get("/v1/tasks").json()["tasks"]}
        described = other.get("/v1/tasks/first").json()
    figures = ("accounted_parameters", "parameters_added", "parameters", "flops")
    for task in client.get("/v1/tasks").json()["tasks"]:
        assert [task[name] for name in figures] == [expected[task["task"]][name] for name in figures]
    detail = client.get("/v1/tasks/first").json()
    parts = {part["id"]: part for stage in detail["stages"] for part in stage["components"]}
    by_what_is_shown = sum(part["parameters"] / (1 + len(part["shared_with"])) for part in parts.values())
    assert detail["accounted_parameters"] == pytest.approx(by_what_is_shown) == described["accounted_parameters"]
    assert client.get("/v1/tasks/first", headers=mine(server)).json()["accounted_parameters"] < by_what_is_shown


def test_metrics_tell_of_no_private_task(stranger: Found) -> None:
    client, server = stranger
    text, whole = client.get("/metrics").text, client.get("/metrics", headers=mine(server)).text
    assert "mu2net_tasks 2.0" in text.splitlines()
    assert "mu2net_tasks 4.0" in whole.splitlines()
    assert "-private" in whole
    assert "-private" not in text
    routes = server.store().routes(server.store().release())
    shown = {stage.subgraph[:12] for name in ("first", "second") for stage in routes[TaskName(name)].stages}
    every = {stage.subgraph[:12] for route in routes.values() for stage in route.stages}
    assert set(re.findall(r'subgraph="(\w+)"', text)) == shown
    assert set(re.findall(r'subgraph="(\w+)"', whole)) == every > shown
    for withheld in ("mu2net_reload_subgraphs", "mu2net_reload_read_bytes"):
        assert withheld not in text
        assert withheld in whole
    assert "mu2net_release 4.0" in text.splitlines()


def test_releases_tell_no_count_of_private_tasks(stranger: Found) -> None:
    client, server = stranger
    found, whole = (client.get("/v1/releases", headers=headers).json() for headers in ({}, mine(server)))
    assert {(release["tasks"], release["reason"]) for release in found["releases"]} == {(None, None)}
    last = found["last_reload"]
    assert last["release"] == 4
    assert {last[name] for name in last if name.startswith(("bytes", "subgraphs", "memory"))} == {None}
    assert whole["last_reload"]["subgraphs_added"] > 0
    assert client.get("/v1/releases/2/diff/4").json()["changes"] == []
    assert [change["task"] for change in client.get("/v1/releases/0/diff/4").json()["changes"]] == ["first", "second"]


def test_the_newest_jobs_are_those_that_the_caller_may_see(stranger: Found) -> None:
    client, server = stranger
    for name, private in (("first", False), ("secret", True), ("hush", True)):
        server.queue.submit(JobRequest(TaskName(name), "iterate", "0" * 64, None, private, ()))
    assert [job["task"] for job in client.get("/v1/jobs?limit=1").json()["jobs"]] == ["first"]
    assert [job["task"] for job in client.get("/v1/jobs?limit=1", headers=mine(server)).json()["jobs"]] == ["hush"]


@pytest.mark.parametrize("kind", ["missing", "damaged"])
def test_an_error_of_the_store_is_told_to_those_who_see_all(
    store: Store, stranger: Found, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    client, server = stranger
    path = store.folder / "objects" / f"{store.release().tasks[TaskName('secret')]}.json"
    content = path.read_bytes()
    path.unlink()
    if kind == "damaged":
        path.write_bytes(content[:-20])
    refused = client.get("/v1/releases/0/diff/4")
    assert problem(refused, 503, f"{kind}-object") == TOLD_LESS
    assert "task 'secret' of release 4" in caplog.text  # where the answer says that it is
    told = problem(client.get("/v1/releases/0/diff/4", headers=mine(server)), 503, f"{kind}-object")
    assert "task 'secret' of release 4" in told
    assert str(store.folder) in told
    listed = client.get("/v1/releases")
    assert str(store.folder) not in listed.text


def test_other_errors_tell_no_path_of_the_server(store: Store, stranger: Found) -> None:
    client, server = stranger
    unknown = problem(client.get("/v1/releases/0/diff/99"), 404, "unknown-release")
    assert unknown == "the store has no release 99; it has: 0, 1, 2, 3, 4"
    (store.folder / "jobs.sqlite").write_bytes(b"garbage" * 1000)
    assert problem(client.get("/v1/jobs"), 503, "queue-unreachable") == TOLD_LESS
    assert "jobs.sqlite" in problem(client.get("/v1/jobs", headers=mine(server)), 503, "queue-unreachable")
    (store.folder / "CURRENT").unlink()
    assert problem(client.get("/v1/releases/0/diff/1"), 503, "store-not-found") == TOLD_LESS


def test_a_key_for_one_private_task_is_told_of_that_one_alone(store: Store) -> None:
    key, token = new_key("a test", classify=("secret",), manages=(), rate=None)
    add_key(store.files, key)
    with served(store.folder) as (client, server):
        client.headers["authorization"] = f"Bearer {token}"
        wait_for(lambda: server.keys.holder(token) is not None)
        for name, private in (("secret", True), ("hush", True)):
            server.queue.submit(JobRequest(TaskName(name), "iterate", "0" * 64, None, private, ()))
        assert [job["task"] for job in client.get("/v1/jobs?limit=1").json()["jobs"]] == ["secret"]
        assert "mu2net_tasks 3.0" in client.get("/metrics").text.splitlines()
        changes = client.get("/v1/releases/2/diff/4").json()["changes"]
        assert [change["task"] for change in changes] == ["secret"]
        add_task(store, TaskPlan("more", seed=9, private=True))
        wait_for(lambda: client.get("/v1/releases").json()["serving"] == 5)
        assert [task["task"] for task in client.get("/v1/tasks").json()["tasks"]] == ["first", "second", "secret"]
