"""The HTTP interface in this process: every answer and every refusal, with its text."""

import asyncio
import threading
import time
from collections.abc import Iterator, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from starlette.types import Message

from evolve.publish import create_store
from models.errors import Mu2NetError, RequestTooLarge
from models.names import TaskName
from models.preprocess import load_pixels
from models.root import load_root
from models.store import Store
from service import engine
from service.engine import Logits, Row
from service.errors import STATUS, status_of
from service.upload import read_upload
from tests.support.images import picture
from tests.support.in_process import LIMITS, PATH, problem, send, served, wait_for
from tests.support.stores import ROOT, TaskPlan, make_store, torch_logits

PLANS = (TaskPlan("first", own_blocks=[1], seed=1), TaskPlan("second", adapters={2: 4}, image_size=32, seed=2))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("http") / "store", *PLANS)


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[TestClient]:
    with served(store.folder, **LIMITS) as (client, _):
        yield client


@pytest.mark.parametrize("task", ["first", "second"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_answer_equals_the_offline_evaluation(client: TestClient, store: Store, task: str, kind: str) -> None:
    body = picture(size=60, kind=kind)
    found = send(client, f"/v1/tasks/{task}/classify?logits=1&top_k=3", body).json()
    route = store.routes(store.release())[TaskName(task)]
    expected = torch_logits(store, task, load_pixels(body, route.image_size)[None])[0]
    (result,) = found["results"]
    np.testing.assert_allclose(result["logits"], expected, atol=1e-4)
    powers = np.exp(expected)
    by_label = {p["label"]: p["probability"] for p in result["predictions"]}
    np.testing.assert_allclose([by_label[label] for label in route.labels], powers / powers.sum(), atol=1e-4)
    assert [p["probability"] for p in result["predictions"]] == sorted(by_label.values(), reverse=True)
    assert (found["task"], found["release"], found["route"]) == (task, 2, store.release().tasks[TaskName(task)])


def test_top_k_names_that_many_and_logits_come_only_when_asked(client: TestClient) -> None:
    (result,) = send(client, "/v1/tasks/first/classify?top_k=1").json()["results"]
    assert result.keys() == {"predictions"}
    assert len(result["predictions"]) == 1
    (result,) = send(client, "/v1/tasks/first/classify?top_k=100").json()["results"]
    assert len(result["predictions"]) == 3


def test_multipart_takes_several_images_in_order(client: TestClient) -> None:
    bodies = [picture(seed) for seed in range(3)]
    found = client.post("/v1/tasks/first/classify?logits=1", files=[("image", body) for body in bodies]).json()
    alone = [send(client, "/v1/tasks/first/classify?logits=1", body).json()["results"][0] for body in bodies]
    assert found["results"] == alone  # the same bits


@pytest.mark.parametrize("tasks", ["second,first", "all"])
@pytest.mark.parametrize("form", [False, True], ids=["query", "form"])
def test_many_tasks_answer_as_each_alone(client: TestClient, tasks: str, form: bool) -> None:
    if form:
        found = client.post("/v1/classify?logits=1", files={"image": picture()}, data={"tasks": tasks}).json()
    else:
        found = send(client, f"/v1/classify?logits=1&tasks={tasks}").json()
    names = ["second", "first"] if tasks != "all" else ["first", "second"]
    assert [answer["task"] for answer in found["answers"]] == names
    assert found["release"] == 2
    for answer in found["answers"]:
        assert answer == send(client, f"/v1/tasks/{answer['task']}/classify?logits=1").json()


def test_tasks_are_listed_and_described(client: TestClient, store: Store) -> None:
    listed = client.get("/v1/tasks").json()
    assert listed["release"] == 2
    assert [task["task"] for task in listed["tasks"]] == ["first", "second"]
    found = client.get("/v1/tasks/second").json()
    route = store.routes(store.release())[TaskName("second")]
    assert listed["tasks"][1].items() <= found.items()
    assert found["labels"] == ["second 0", "second 1", "second 2"]
    assert found["quality"]["validation_accuracy"] == 0.5
    assert (found["parameters"], found["flops"], found["image_size"]) == (route.parameters, route.flops, 32)
    assert found["accounted_parameters"] < found["parameters"]
    assert found["root_flops"] == store.root().flops
    assert found["lineage"]["parent"] == store.release().root
    kinds = [[component["kind"] for component in stage["components"]] for stage in found["stages"]]
    assert kinds == [["patch_embed", "pos_embed"], ["block"], ["block"], ["adapter", "block"], ["norm", "head"]]
    assert found["stages"][1]["components"][0]["shared_with"] == ["first"]
    assert found["stages"][2]["components"][0]["shared_with"] == []  # the first task has a clone of its own


def test_releases_tell_what_serves_and_where(client: TestClient) -> None:
    found = client.get("/v1/releases?limit=2").json()
    assert (found["serving"], found["active"], found["held"], found["failure"]) == (2, 2, False, None)
    assert [(release["release"], release["tasks"]) for release in found["releases"]] == [(2, 2), (1, 1)]
    assert found["releases"][0]["reason"] == "second by hand"
    assert found["engine"]["provider"] == "CPUExecutionProvider"
    assert found["last_reload"]["release"] == 2


def test_two_releases_are_compared(client: TestClient, store: Store) -> None:
    found = client.get("/v1/releases/0/diff/2").json()
    assert [(change["task"], change["what"]) for change in found["changes"]] == [
        ("first", "added"),
        ("second", "added"),
    ]
    route = store.release(2).tasks[TaskName("second")]
    second = client.get("/v1/releases/1/diff/2").json()["changes"][0]
    assert second.pop("new_parameters") == client.get("/v1/tasks/second").json()["parameters_added"]
    assert second == {
        "task": "second",
        "what": "added",
        "route_before": None,
        "route_after": route,
        "validation_before": None,
        "validation_after": 0.5,
        "is_private": False,
    }
    backwards = client.get("/v1/releases/2/diff/1").json()["changes"]
    assert [(change["what"], change["route_after"], change["new_parameters"]) for change in backwards] == [
        ("removed", None, 0)
    ]
    unknown = client.get("/v1/releases/2/diff/7")
    assert problem(unknown, 404, "unknown-release").endswith("has no release 7; it has: 0, 1, 2")


def test_metrics_count_tasks_and_never_what_a_stranger_typed(client: TestClient) -> None:
    send(client, "/v1/tasks/first/classify")
    send(client, "/v1/tasks/no-such-task-7/classify")
    text = client.get("/metrics").text
    assert 'mu2net_requests_total{status="200",task="first"}' in text
    assert 'mu2net_requests_total{status="404",task="-"}' in text
    assert 'mu2net_request_seconds_count{task="first"}' in text
    assert 'mu2net_device_info{onnxruntime="' in text
    assert "mu2net_release 2.0" in text
    assert "no-such-task-7" not in text


HOW = "send the image as the body with content type image/..., or as multipart field 'image'"


@pytest.mark.parametrize(
    ("body", "content_type", "status", "kind", "message"),
    [
        pytest.param(b"", "image/png", 400, "invalid-image", f"the request body is empty: {HOW}", id="empty"),
        pytest.param(
            b"no image", "image/png", 400, "invalid-image",
            "the 8 bytes are not a readable image (UnidentifiedImageError): send one of PNG, JPEG, WEBP, GIF, BMP",
            id="not-an-image",
        ),
        pytest.param(
            picture()[:900], "image/png", 400, "invalid-image",
            "the PNG image is truncated or damaged (",
            id="truncated",
        ),
        pytest.param(
            picture(size=120), "image/png", 413, "image-too-large",
            "the image has 43,3",
            id="image-bytes",
        ),
        pytest.param(
            picture(size=101, kind="JPEG"), "image/jpeg", 413, "image-too-large",
            "the image has 101 x 101 pixels; at most 10,000 in all are allowed: scale it down",
            id="image-pixels",
        ),
        pytest.param(
            bytes(100_001), "image/png", 413, "request-too-large",
            "the request body has 100,001 bytes or more; at most 100,000 are allowed: send smaller or fewer images",
            id="body-bytes",
        ),
        pytest.param(
            b"{}", "application/json", 415, "unsupported-media",
            f"content type 'application/json' is not supported: {HOW}",
            id="content-type",
        ),
        pytest.param(
            b"x", "multipart/form-data", 400, "invalid-image",
            f"the multipart body cannot be read (Missing boundary in multipart.): {HOW}",
            id="broken-multipart",
        ),
    ],
)  # fmt: skip
def test_a_bad_body_is_refused(
    client: TestClient, body: bytes, content_type: str, status: int, kind: str, message: str
) -> None:
    assert problem(send(client, PATH, body, content_type), status, kind).startswith(message)


def test_a_body_without_a_length_is_cut_off_at_the_limit() -> None:
    received = 0

    async def receive() -> Message:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": bytes(30_000), "more_body": True}

    scope = {"type": "http", "headers": [(b"content-type", b"image/png")]}
    with pytest.raises(RequestTooLarge, match="the request body has 120,000 bytes or more; at most 100,000 are"):
        asyncio.run(read_upload(Request(scope, receive), max_bytes=100_000, max_images=1))
    assert received == 4


def test_a_client_that_leaves_takes_its_images_out_of_the_queue(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    ran: list[int] = []

    def block(rows: Sequence[Row]) -> list[Logits]:
        ran.append(len(rows))
        assert may_end.wait(10)
        return engine.run(rows)

    messages: list[Message] = [{"type": "http.request", "body": picture()}, {"type": "http.disconnect"}]
    scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b"", "headers": [(b"host", b"localhost")]}
    sent: list[Message] = []

    async def leave_at_once() -> None:
        async def receive() -> Message:
            return messages.pop(0)

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        await app(scope, receive, send)

    with served(store.folder) as (client, server):
        app = client.app
        monkeypatch.setattr(server.batcher, "_run", block)
        assert client.portal is not None
        work = partial(server.predictor.classify, [picture()], [server.predictor.ready_release().route("first")])
        first = client.portal.start_task_soon(work)
        wait_for(lambda: bool(ran))
        client.portal.call(leave_at_once)
        assert sent[0]["status"] == 499
        may_end.set()
        first.result(10)
        assert 'mu2net_requests_total{status="499",task="first"} 1.0' in client.get("/metrics").text
    assert ran == [1]  # the second image never ran


@pytest.mark.parametrize(
    ("fields", "status", "kind", "message"),
    [
        pytest.param(
            [("image", picture())] * 4, 413, "request-too-large",
            "the request has 4 images; at most 3 are allowed: send several requests", id="one-image-too-many",
        ),
        pytest.param(
            [("image", picture())] * 9, 413, "request-too-large",
            "the request has more than 3 images; at most 3 are allowed: send several requests", id="many-too-many",
        ),
        pytest.param(
            [("image", picture()), ("image", b"no"), ("image", picture())], 400, "invalid-image",
            "image 2 of 3: the 2 bytes are not a readable image", id="one-bad-of-three",
        ),
        pytest.param(
            [("file", picture())], 422, "invalid-input",
            "multipart field 'file' holding a file has no meaning here: allowed are 'image' (a file, may repeat) and "
            "'tasks' (text)", id="unknown-field",
        ),
    ],
)  # fmt: skip
def test_bad_multipart_is_refused(
    client: TestClient, fields: list[tuple[str, bytes]], status: int, kind: str, message: str
) -> None:
    assert problem(client.post(PATH, files=fields), status, kind).startswith(message)


def test_multipart_without_an_image_is_refused(client: TestClient) -> None:
    boundary = "multipart/form-data; boundary=x"
    empty = send(client, PATH, b"--x--\r\n", boundary)
    assert problem(empty, 400, "invalid-image") == f"the multipart body has no image: {HOW}"
    text = send(client, PATH, b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--x--\r\n', boundary)
    assert problem(text, 400, "invalid-image").startswith("the 3 bytes are not a readable image")


@pytest.mark.parametrize(
    "disposition", ["", '; filename=""', "; filename*=UTF-8''a.png"], ids=["none", "empty", "star"]
)
@pytest.mark.parametrize("kind", ["", "Content-Type: image/png\r\n", "Content-Type: text/plain\r\n"])
@pytest.mark.parametrize("size", [24, 900], ids=["small", "larger than a text may be"])
def test_an_image_part_needs_no_file_name(tmp_path: Path, store: Store, disposition: str, kind: str, size: int) -> None:
    image = picture(size=size)
    head = f'--x\r\nContent-Disposition: form-data; name="image"{disposition}\r\n{kind}\r\n'.encode()
    with served(store.folder) as (client, _):
        found = send(client, f"{PATH}?logits=1", head + image + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")
        assert found.json() == send(client, f"{PATH}?logits=1", image).json()


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "message"),
    [
        ("POST", "/v1/tasks/digits/classify", 404, "unknown-task",
         "no route for task 'digits'; known tasks: first, second"),
        ("POST", "/v1/tasks/first/classify?topk=3&top_k=1", 422, "invalid-input",
         "query parameter 'topk' is not known at '/v1/tasks/first/classify'; known: logits, top_k"),
        ("GET", "/v1/tasks?page=2", 422, "invalid-input",
         "query parameter 'page' is not known at '/v1/tasks'; known: none"),
        ("GET", "/v1/tasks/digits", 404, "unknown-task", "no route for task 'digits'; known tasks: first, second"),
        ("POST", "/v1/classify?tasks=first,digits,letters", 404, "unknown-task",
         "no route for task 'digits, letters'; known tasks: first, second"),
        ("POST", "/v1/classify", 422, "invalid-input",
         "no task is named: add ?tasks=a,b or a multipart field 'tasks', or the name 'all' for every task; "
         "known tasks: first, second"),
        ("POST", f"{PATH}?top_k=0", 422, "invalid-request",
         "query top_k = '0': Input should be greater than or equal to 1"),
        ("POST", f"{PATH}?logits=maybe", 422, "invalid-request",
         "query logits = 'maybe': Input should be a valid boolean, unable to interpret input"),
        ("GET", "/v1/releases?limit=0", 422, "invalid-request",
         "query limit = '0': Input should be greater than or equal to 1"),
        ("GET", "/v3", 404, "not-found", "there is nothing at '/v3': /docs and /openapi.json list the paths"),
        ("GET", PATH, 405, "method-not-allowed", f"GET is not allowed at '{PATH}': use POST"),
    ],
)  # fmt: skip
def test_a_bad_address_is_refused(
    client: TestClient, method: str, path: str, status: int, kind: str, message: str
) -> None:
    content = picture() if method == "POST" else None
    response = client.request(method, path, content=content, headers={"content-type": "image/png"})
    assert problem(response, status, kind) == message


def test_before_a_release_with_a_task_nothing_is_ready(tmp_path: Path) -> None:
    with served(tmp_path / "store", is_ready=False) as (client, server):
        message = problem(send(client, PATH), 503, "not-ready")
        assert message == "not ready: no release has been loaded yet; /v1/releases says why, if it failed"
        wait_for(lambda: server.watcher.status.failure is not None)
        told = client.get("/v1/releases").json()
        assert (told["serving"], told["active"], told["held"], told["releases"]) == (None, None, None, [])
        assert told["failure"]["error"].startswith(f"no store at '{tmp_path}/store': it has no file CURRENT")
        create_store(tmp_path / "store", load_root(ROOT))
        wait_for(lambda: server.predictor.release is not None)
        response = send(client, PATH)
        message = problem(response, 503, "not-ready")
        assert message == "not ready: release 0 has no task yet; add one with 'mu2net evolve'"
        assert response.headers["retry-after"] == "1"
        assert client.get("/v1/tasks").json() == {"release": 0, "tasks": []}


def test_a_full_queue_answers_429_with_a_time_to_wait(store: Store) -> None:
    with served(store.folder, max_queue_images=2) as (client, _):
        response = client.post(PATH, files=[("image", picture())] * 3)
        assert problem(response, 429, "overloaded") == (
            "the queue is full: 0 images are waiting, 3 more would exceed 2; try again after the time in Retry-After"
        )
        assert response.headers["retry-after"] == "1"
        assert send(client, PATH).status_code == 200


def test_a_request_that_waits_too_long_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(store.folder, timeout_s=0.2) as (client, server):
        assert send(client, PATH).status_code == 200
        monkeypatch.setattr(server.batcher, "_run", lambda rows: time.sleep(0.5))
        response = send(client, PATH)
        assert problem(response, 429, "overloaded").startswith("no answer within 0.2 s, so the request was given up")
        assert "retry-after" in response.headers


def test_an_unforeseen_failure_tells_a_stranger_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret detail")

    with served(store.folder) as (client, server):
        monkeypatch.setattr(server.batcher, "_run", fail)
        message = problem(send(client, PATH), 500, "internal-error")
        assert message.startswith("the server failed unexpectedly; its log has the cause")


@pytest.mark.parametrize("kind", list(STATUS))
def test_every_error_of_the_table_has_its_status(kind: type[Mu2NetError]) -> None:
    assert status_of(kind("text")) == STATUS[kind]


def test_openapi_describes_the_bodies_and_the_refusals(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/tasks/{task}/classify"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
    assert {"200", "400", "404", "413", "415", "422", "429", "503"} <= operation["responses"].keys()
    assert "application/problem+json" in operation["responses"]["404"]["content"]


@pytest.mark.parametrize("path", ["/", "/docs", "/console/index.html", "/console/docs.html", "/console/api.js"])
def test_no_other_page_frames_or_feeds_the_console(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "script-src 'self'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/console/api.js", "/v1/tasks", "/openapi.json", "/metrics", "/nothing"])
def test_browsers_take_every_answer_for_what_it_says_it_is(client: TestClient, path: str) -> None:
    assert client.get(path).headers.get_list("x-content-type-options") == ["nosniff"]
