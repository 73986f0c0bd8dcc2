"""Releases over HTTP: activated, pinned, compared, and what a server says of those that it cannot take up."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from models.names import TaskName
from models.push import push
from models.remote_files import RemoteFiles
from models.store import Store, object_name, route_objects
from service import views
from service.server import Server
from tests.support.in_process import problem, send, served, wait_for
from tests.support.s3_server import S3Server
from tests.support.stores import WRONG, TaskPlan, add_task, damage, force_release, make_store, store_wrong_route

PATH = "/v1/tasks/first/classify?logits=1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", TaskPlan("first", own_blocks=[1], seed=1), TaskPlan("second", seed=2))


@pytest.fixture
def running(store: Store) -> Iterator[tuple[TestClient, Server]]:
    with served(store.folder, resident_releases=2) as (client, server):
        wait_for(lambda: serving(client) == 2)
        yield client, server


def serving(client: TestClient) -> int:
    number: int = client.get("/v1/releases").json()["serving"]
    return number


def test_a_release_is_activated_held_and_resumed(store: Store, running: tuple[TestClient, Server]) -> None:
    client, _ = running
    before = send(client, PATH).json()
    moved = client.post("/v1/releases/1/activate")
    assert (moved.status_code, moved.json()) == (202, {"active": 1, "held": True, "pending": [], "serving": 2})
    wait_for(lambda: serving(client) == 1)
    back = send(client, PATH).json()
    assert (back["release"], back["results"]) == (1, before["results"])  # the very same bits
    add_task(store, TaskPlan("third", seed=3))
    found = client.get("/v1/releases").json()
    assert (found["active"], found["held"], found["pending"], found["resident"]) == (1, True, [3], [1, 2])
    resumed = client.post("/v1/releases/resume")
    assert (resumed.status_code, resumed.json()["active"], resumed.json()["held"]) == (202, 3, False)
    wait_for(lambda: serving(client) == 3)
    unknown = problem(client.post("/v1/releases/7/activate"), 404, "unknown-release")
    assert unknown == "the store has no release 7; it has: 0, 1, 2, 3"


def test_a_release_that_is_not_whole_cannot_be_activated(store: Store, running: tuple[TestClient, Server]) -> None:
    client, _ = running
    route_id = store.release(1).tasks[TaskName("first")]
    mend = damage(store, route_id, "missing file")
    refused = problem(client.post("/v1/releases/1/activate"), 503, "missing-object")
    assert refused.endswith("is missing; needed by task 'first' of release 1: restore it from a copy of this store")
    assert store.current().release == 2
    mend()


def test_a_request_may_pin_a_resident_release(store: Store, running: tuple[TestClient, Server]) -> None:
    client, _ = running
    add_task(store, TaskPlan("first", own_blocks=[1], seed=9))  # another answer
    wait_for(lambda: client.get("/v1/releases").json()["resident"] == [3, 2])
    answers = {pin: send(client, PATH, headers={"MU2NET-Release": pin}).json() for pin in ("2", "3")}
    assert {pin: answer["release"] for pin, answer in answers.items()} == {"2": 2, "3": 3}
    assert answers["2"]["results"] != answers["3"]["results"] == send(client, PATH).json()["results"]
    gone = send(client, PATH, headers={"MU2NET-Release": "1"})
    assert problem(gone, 404, "release-not-resident").startswith("release 1 is not resident here; resident: 3, 2: ask")
    for nonsense in ("newest", "-1", "1.5"):
        refused = send(client, PATH, headers={"MU2NET-Release": nonsense})
        assert problem(refused, 422, "invalid-request").startswith(
            f"header MU2NET-Release = {nonsense!r}: Input should"
        )


def test_a_reload_tells_what_it_cost(store: Store, running: tuple[TestClient, Server]) -> None:
    client, _ = running
    known = {info.name for info in store.files.infos("objects")}
    release = add_task(store, TaskPlan("third", own_blocks=[2], seed=3))
    # not until it serves: what it cost is known a moment later
    wait_for(lambda: client.get("/v1/releases").json()["last_reload"]["release"] == 3)
    head = store.routes(release)[TaskName("third")].stages[-1].subgraph
    known.add(object_name(head, "onnx"))  # a head runs without its graph
    cost = client.get("/v1/releases").json()["last_reload"]
    new = sum(info.size for info in store.files.infos("objects") if info.name not in known)
    assert cost["bytes_read"] == new + len(store.files.read("releases/000003.json"))
    assert (cost["release"], cost["subgraphs_added"], cost["subgraphs_reused"]) == (3, 2, 7)  # a block and a head
    assert (cost["seconds"] > 0, cost["memory_before"] > 0, cost["memory_after"] > 0) == (True, True, True)
    assert "mu2net_reload_read_bytes_total" in client.get("/metrics").text


@pytest.mark.parametrize(("kind", "reason"), WRONG.items())
def test_a_release_that_cannot_be_taken_up_leaves_the_old_one_and_tells_why(
    store: Store, running: tuple[TestClient, Server], caplog: pytest.LogCaptureFixture, kind: str, reason: str
) -> None:
    client, server = running
    before = send(client, PATH).json()
    route_id = store_wrong_route(store, TaskPlan("wrong", own_blocks=[0], seed=5), kind)
    mend = damage(store, route_id, kind)
    with caplog.at_level(logging.ERROR, "mu2net.reload"):
        force_release(store, {"wrong": route_id})
        wait_for(lambda: (f := client.get("/v1/releases").json()["failure"]) is not None and f["attempts"] > 1)
    found = client.get("/v1/releases").json()
    failure = found["failure"]
    assert (found["serving"], found["active"], failure["release"], failure["kind"]) == (2, 3, 3, reason)
    assert failure["next_attempt_in_s"] == pytest.approx(0.05 * 2 ** failure["attempts"])
    assert send(client, PATH).json() == before
    ready = views.readiness(server)
    assert (ready.release, ready.active, ready.skewed) == (2, 3, True)
    assert ready.failure is not None
    assert ready.failure.kind == reason
    lines = client.get("/metrics").text.splitlines()
    assert "mu2net_release_skew 1.0" in lines
    assert [line for line in lines if line.startswith(f'mu2net_reload_failures_total{{reason="{reason}"}}')]
    told = f"release 3 cannot be taken up (attempt 1, again in 0.1 s), release 2 keeps answering: {failure['error']}"
    assert told.split(": ")[0] in caplog.text
    mend()
    if kind.endswith("file"):
        wait_for(lambda: serving(client) == 3)
    else:
        client.post("/v1/releases/2/activate").raise_for_status()
    wait_for(lambda: not views.readiness(server).skewed)
    assert views.readiness(server).failure is None


def test_of_two_servers_one_that_cannot_follow_says_so(store: Store, running: tuple[TestClient, Server]) -> None:
    client, server = running

    def no_memory(_: object) -> list[object]:
        raise MemoryError

    with served(store.folder) as (other_client, other):
        wait_for(lambda: serving(other_client) == 2)
        other.watcher._run = no_memory  # type: ignore[assignment]
        add_task(store, TaskPlan("third", seed=3))
        wait_for(lambda: serving(client) == 3 and other.watcher.status.failure is not None)
        here, there = views.readiness(server), views.readiness(other)
        assert (here.release, here.skewed, there.release, there.active, there.skewed) == (3, False, 2, 3, True)
        assert there.failure is not None
        assert there.failure.kind == "out-of-memory"
        assert send(client, PATH).json()["results"] == send(other_client, PATH).json()["results"]
        assert "mu2net_release_skew 1.0" in other_client.get("/metrics").text.splitlines()


def test_a_network_that_fails_during_a_reload(
    s3: S3Server, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{s3.new_bucket()}/store"
    push(store, url, cache=tmp_path / "publisher")
    with served(url, cache=tmp_path / "server") as (client, server):
        before = send(client, PATH).json()
        assert before["release"] == 2
        release = add_task(store, TaskPlan("third", own_blocks=[2], seed=3))
        with monkeypatch.context() as patch:
            activate = RemoteFiles.swap

            def activate_and_fail(files: RemoteFiles, name: str, change: Callable[[bytes], bytes]) -> None:
                s3.break_off(".safetensors")
                activate(files, name, change)

            patch.setattr(RemoteFiles, "swap", activate_and_fail)  # the last step of a publish
            push(store, url, cache=tmp_path / "publisher")
        wait_for(lambda: server.watcher.status.failure is not None)
        failure = server.watcher.status.failure
        assert failure is not None
        assert (failure.release, failure.kind) == (3, "store-unreachable")
        assert "check the network, the address and the credentials" in failure.error
        assert send(client, PATH).json() == before
        s3.stop()
        assert problem(client.post("/v1/releases/1/activate"), 503, "store-unreachable").startswith(
            f"{url}/CURRENT can"
        )
        found = client.get("/v1/releases").json()
        assert (found["serving"], found["active"], found["releases"]) == (2, None, [])
        s3.start()
        wait_for(lambda: serving(client) == 3)
        assert send(client, PATH).json()["results"] == before["results"]
        third = store.routes(release)[TaskName("third")]
        needed = route_objects(third) - {object_name(third.stages[-1].subgraph, "onnx")}  # a head runs without it
        kept = {info.name for info in Store.open(url, cache=tmp_path / "server").local_files.infos("objects")}
        assert needed <= kept
