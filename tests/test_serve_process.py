"""`mu2net serve` as a real process: answers, takes up a release under load, stops; and what it refuses to start."""

import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from PIL import Image

from models.errors import InvalidConfig, PortInUse, StoreError, StoreNotFound
from models.names import TaskName
from models.preprocess import load_pixels
from models.store import Store
from service.cli import check_port, parse_address, reserve, serve
from tests.support.images import picture
from tests.support.processes import ROOT, environment, free_port, running, wait_until
from tests.support.stores import TaskPlan, add_task, make_store, torch_logits


class Asker(threading.Thread):
    """Asks for one task without a pause, and keeps every answer."""

    def __init__(self, client: httpx.Client) -> None:
        super().__init__()
        self._client = client
        self.stopping = threading.Event()
        self.answers: list[httpx.Response] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            self.answers.append(
                self._client.post(
                    "/v1/tasks/first/classify?logits=1", content=picture(), headers={"content-type": "image/png"}
                )
            )


def test_a_real_server_answers_and_takes_up_a_release_while_it_is_asked(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    with running(store.folder, tmp_path) as (server, client):
        assert client.get("/livez").status_code == 200
        wait_until(server, lambda: "release 0 " in client.get("/readyz").text)  # alive before it has loaded it
        unready = client.get("/readyz")
        assert (unready.status_code, unready.headers["content-type"]) == (503, "application/problem+json")
        assert unready.headers["retry-after"] == "1"
        assert unready.json()["detail"] == "not ready: release 0 has no task yet; add one with 'mu2net evolve'"
        add_task(store, TaskPlan("first", own_blocks=[1], seed=1))
        wait_until(server, lambda: client.get("/readyz").status_code == 200)

        asker = Asker(client)
        asker.start()
        try:
            add_task(store, TaskPlan("second", adapters={0: 4}, seed=2))
            wait_until(server, lambda: client.get("/v1/tasks/second").status_code == 200)
            time.sleep(0.2)
        finally:
            asker.stopping.set()
            asker.join()

        assert {answer.status_code for answer in asker.answers} == {200}
        found = [answer.json() for answer in asker.answers]
        assert {answer["release"] for answer in found} == {1, 2}
        assert len({json.dumps(answer["results"]) for answer in found}) == 1  # the same bits before and after
        for task in ("first", "second"):
            answer = client.post(f"/v1/tasks/{task}/classify?logits=1", files={"image": picture()}).json()
            size = store.routes(store.release())[TaskName(task)].image_size
            expected = torch_logits(store, task, load_pixels(picture(), size)[None])[0]
            np.testing.assert_allclose(answer["results"][0]["logits"], expected, atol=1e-4)

        with triton.InferenceServerClient(f"127.0.0.1:{client.base_url.port}") as other:  # through BentoML as well
            given = triton.InferInput("image", [1], "BYTES")
            given.set_data_from_numpy(np.array([picture()], object))
            assert other.infer("second", [given]).as_numpy("probabilities").shape == (1, 3)

        refused = client.post("/v1/tasks/third/classify", files={"image": picture()})
        assert (refused.status_code, refused.headers["content-type"]) == (404, "application/problem+json")
        assert refused.json()["detail"] == "no route for task 'third'; known tasks: first, second"
        broken = client.post("/v1/tasks/first/classify", content=b"x", headers={"content-type": "image/png"})
        assert broken.status_code == 400
        text = client.get("/metrics").text
        assert re.search(r'^mu2net_requests_total\{status="200",task="first"\} [1-9]', text, re.MULTILINE)
        assert re.search(r'^mu2net_release\{pid="\d+"\} 2.0$', text, re.MULTILINE)

        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
        check_port("127.0.0.1", client.base_url.port or 0)  # free again


def test_a_refusal_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("mu2net")
    done = subprocess.run(
        [program, "serve", tmp_path / "none"], capture_output=True, text=True, env=environment(tmp_path), timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"error: no store at '{tmp_path}/none': it has no file CURRENT; make one with 'mu2net init {tmp_path}/none'\n"
    )


@pytest.fixture(autouse=True)
def stay_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, a refusal that does not come would make the process of the tests the server, for ever."""

    def refuse(*_: object) -> None:
        raise AssertionError("the server would start now")

    monkeypatch.setattr("os.execve", refuse)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MU2NET_SHARED", raising=False)
    return make_store(tmp_path / "store", TaskPlan("first"))


def test_a_missing_store_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match="it has no file CURRENT; make one with 'mu2net init"):
        serve(str(tmp_path))


def test_a_damaged_store_is_told(store: Store) -> None:
    record = store.folder / "objects" / f"{store.release().tasks[TaskName('first')]}.json"
    record.write_bytes(record.read_bytes().replace(b"first 0", b"first 9"))
    with pytest.raises(
        StoreError, match=rf"{record.name} is damaged: its sha256 is .*; needed by task 'first' of release"
    ):
        serve(str(store.folder))


def test_an_unknown_setting_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MU2NET_QUEUES", "3")
    with pytest.raises(InvalidConfig, match="unknown setting MU2NET_QUEUES; known settings: MU2NET_BIND_ADDRESS, "):
        serve(str(store.folder), port=free_port())


def test_a_port_in_use_is_told(store: Store) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            serve(str(store.folder), port=port)
    own = " ".join(psutil.Process().cmdline())[:200]
    assert str(caught.value) == (
        f"port {port} on 127.0.0.1 is in use by another program, process {os.getpid()} ({own}): stop it, or choose "
        "another with --port"
    )


def test_a_port_is_reserved_before_it_is_bound(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from service.cli import reserve; "
        "reserve(Path(sys.argv[1]), '127.0.0.1', 3000); print('reserved', flush=True); os.execvp('cat', ['cat'])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"reserved\n"
        wait_until(other, lambda: psutil.Process(other.pid).cmdline() == ["cat"])
        told = rf"port 3000 on 127\.0\.0\.1 is in use by another program, process {other.pid} \(cat\): stop it"
        with pytest.raises(PortInUse, match=told):
            reserve(tmp_path, "127.0.0.1", 3000)
        other.terminate()
    reserve(tmp_path, "127.0.0.1", 3000)  # free again


def test_servers_at_different_addresses_do_not_lock_one_another_out(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from service.cli import reserve; folder = Path(sys.argv[1]);"
        "[reserve(folder / address.replace(':', '_'), address, int(sys.argv[2])) for address in sys.argv[3:]]"
    )

    def reserved(*addresses: str) -> str:
        command = [sys.executable, "-c", code, str(tmp_path), str(free_port()), *addresses]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60).stderr

    assert reserved("127.0.0.1", "127.0.0.2", "::1") == ""
    assert reserved("0.0.0.0", "::1") == ""
    for first, second in (("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.2"), ("127.0.0.1", "127.0.0.1")):
        assert f" on {second} is in use by another program" in reserved(first, second)


def test_hosts_are_addresses() -> None:
    assert parse_address("localhost") == "127.0.0.1"
    assert parse_address("::1") == "::1"
    with pytest.raises(InvalidConfig, match=r"--host 'example\.org' is not an IP address: use 127\.0\.0\.1"):
        parse_address("example.org")
    with pytest.raises(InvalidConfig, match=r"cannot listen on 192\.0\.2\.1 port 80: "):
        check_port("192.0.2.1", 80)


def test_ctrl_c_waits_for_nobody(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    with running(store.folder, tmp_path, MU2NET_DRAIN_S="3600") as (server, client):
        wait_until(server, lambda: client.get("/readyz").is_success)
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0


def test_a_server_is_operated(tmp_path: Path) -> None:
    """Its limit of open files, HEAD, its log, and how it ends: one server, since each takes seconds to start."""
    store = make_store(tmp_path / "store", TaskPlan("first"))
    port, env = free_port(), environment(tmp_path, MU2NET_DRAIN_S="3600")
    command = [str(Path(sys.executable).with_name("mu2net")), "serve", str(store.folder), "--port", str(port)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))  # as the server inherits it
    try:
        server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until(server, lambda: client.get("/readyz").is_success)
            (worker,) = psutil.Process(server.pid).children()
            assert [process.rlimit(psutil.RLIMIT_NOFILE)[0] for process in (psutil.Process(server.pid), worker)] == [
                hard,
                hard,
            ]
            assert_head_is_get_without_a_body(client)
            odd = client.post(
                "/v1/tasks/first/classify", content=picture_with_odd_exif(), headers={"content-type": "image/jpeg"}
            )
            assert odd.status_code == 200
            server.send_signal(signal.SIGTERM)
            wait_until(server, lambda: client.get("/readyz").status_code == 503)
            assert_draining(client)
            worker.send_signal(signal.SIGTERM)  # a second one ends it
        told, _ = server.communicate(timeout=30)
        assert server.returncode == 0
    finally:
        server.kill()
    lines = [json.loads(line) for line in told.decode().splitlines()]
    assert {line["logger"] for line in lines} >= {"bentoml.serve", "mu2net.reload", "py.warnings"}
    assert all(set(line) >= {"time", "level", "logger", "message"} for line in lines)


def picture_with_odd_exif() -> bytes:
    """Pillow reads it and warns."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    return file.getvalue()


def assert_head_is_get_without_a_body(client: httpx.Client) -> None:
    for path in ("/", "/livez", "/readyz", "/v1/tasks", "/console/console.js", "/nothing"):
        head, whole = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (whole.status_code, b"")
        assert head.headers["content-length"] == str(len(whole.content))
    stream = client.head("/v1/jobs/events")  # which has no end
    assert (stream.status_code, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert client.head("/v1/tasks/first/classify").status_code == 405


def assert_draining(client: httpx.Client) -> None:
    told = client.get("/readyz")
    assert told.json()["detail"] == "not ready: the server is shutting down; send requests to another one"
    assert told.headers["connection"] == "close"
    with httpx.Client(base_url=client.base_url) as other:  # over a connection of its own
        answer = other.post("/v1/tasks/first/classify", content=picture(), headers={"content-type": "image/png"})
    assert answer.status_code == 200
