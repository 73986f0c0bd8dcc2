"""A store that accepts and never answers: told within seconds, and in the way of nothing that does not ask it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import fsspec
import pytest

from models import remote_files
from models.errors import StoreUnreachable
from models.remote_files import RemoteFiles
from models.store import Store
from service.threads import STORE_PLACES, store_threads
from tests.support.in_process import served, wait_for
from tests.support.silent_server import silence
from tests.support.stores import TaskPlan, make_store


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with silence() as port:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield port


def test_questions_are_given_up_within_ten_seconds() -> None:
    assert (remote_files.CONNECT_S + remote_files.READ_S) * remote_files.ATTEMPTS <= 10
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # to one that was connected botocore adds entries
    files = RemoteFiles("s3://bucket/store")
    assert (files._system.retries, files._system.config_kwargs["read_timeout"]) == (2, 3)
    assert files._system.config_kwargs["retries"] == {"total_max_attempts": 1}, "s3fs alone tries again"


def test_a_store_that_never_answers_is_unreachable(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "READ_S", 0.2)
    with pytest.raises(StoreUnreachable, match=r"^s3://bucket/store/CURRENT cannot be reached \(.*[Tt]imeout"):
        Store.open("s3://bucket/store")


def test_the_failure_is_told_while_nothing_else_waits(
    silent: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote_files, "READ_S", 0.3)
    with served("s3://bucket/stalled", is_ready=False, cache=tmp_path / "cache") as (client, server):
        wait_for(lambda: server.watcher.status.failure is not None)
        failure = server.watcher.status.failure
        assert failure is not None
        assert (failure.kind, failure.release) == ("store-unreachable", None)
        assert "s3://bucket/stalled/CURRENT cannot be reached" in failure.error
        detail = client.get("/v1/releases").json()["detail"]
        assert detail == "not ready: the store's keys could not be read yet; the server's log says why"


def test_requests_that_wait_for_the_store_hold_up_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    with served(store.folder) as (client, server):
        going_on = threading.Event()

        def stalled() -> Store:
            assert going_on.wait(120)
            raise StoreUnreachable("s3://bucket/store/CURRENT cannot be reached (timeout)")

        monkeypatch.setattr(type(server), "store", lambda _: stalled())
        server.store_threads._patience_s = 0.5
        answers: list[int] = []
        paths = ["/v1/releases/0/diff/1"] * (STORE_PLACES + 30)
        waiting = [
            threading.Thread(target=lambda path=path: answers.append(client.get(path).status_code)) for path in paths
        ]
        try:
            for thread in waiting:
                thread.start()
            wait_for(lambda: len(answers) >= 30)  # those that found no place
            assert set(answers) == {503}
            for path in ("/v2", "/v2/health/ready", "/metrics", "/", "/docs", "/console/console.js", "/v1/tasks"):
                assert client.get(path).status_code == 200, path
        finally:
            going_on.set()
            for thread in waiting:
                thread.join()
        assert answers == [503] * len(paths), "each is answered, none as a failure of the server"


def test_a_place_is_free_only_when_the_call_has_ended() -> None:
    async def main() -> None:
        threads, going_on = store_threads(places=1, patience_s=0.05), threading.Event()
        with anyio.move_on_after(0.05):  # as a client that goes away
            await threads.run("a", going_on.wait, 60)
        with pytest.raises(StoreUnreachable, match=r"^1 requests wait for the store or the queue, which"):
            await threads.run("b", time.monotonic)
        going_on.set()
        with anyio.fail_after(60):
            while True:
                try:
                    assert await threads.run("b", time.monotonic) > 0
                    return
                except StoreUnreachable:
                    continue

    anyio.run(main)
