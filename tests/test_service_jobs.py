"""Tasks sent over HTTP: what is accepted, what is refused with which words, and that nothing of it stays behind."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from evolve.task import load_task
from models.errors import InvalidData
from models.jobs import JobProgress
from models.names import TaskName
from models.store import Store
from models.uploads import Uploads
from service.server import Server
from tests.support.in_process import problem, served
from tests.support.stores import TaskPlan, make_store
from tests.support.uploads import PETS, image, send, zip_of

Served = tuple[TestClient, Server]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store = make_store(tmp_path_factory.mktemp("jobs") / "store", TaskPlan("first", seed=1), TaskPlan("second", seed=2))
    with served(store.folder, bind_address="127.0.0.1", max_upload_bytes=200_000) as found:
        found[0].headers["host"] = "127.0.0.1"
        yield found


@pytest.fixture
def client(shared: Served) -> Iterator[TestClient]:
    """A client of a server without unfinished jobs; afterwards, no upload is without its job."""
    client, server = shared
    yield client
    for job in server.queue.unfinished():
        client.delete(f"/v1/jobs/{job.id}")
    assert [name for name in Uploads(server.store()).tasks() if Uploads(server.store()).digests(name)] == []


def test_a_task_is_accepted_as_a_job(client: TestClient, shared: Served) -> None:
    answer = send(client, name="pets", budget="90s", private="true", parents="second, first")
    assert answer.status_code == 202, answer.text
    job = answer.json()["job"]
    assert job == {
        "id": job["id"],
        "task": "pets",
        "kind": "add",
        "state": "queued",
        "phase": "waiting for a worker",
        "generation": 0,
        "generations": None,
        "candidates": 0,
        "best_quality": None,
        "release": None,
        "seconds": 0.0,
        "seconds_left": None,
        "created": job["created"],
        "key": None,
        "error": None,
    }
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert client.get(f"/v1/jobs/{job['id']}").json() == job
    assert client.get("/v1/jobs").json()["jobs"][0] == job
    request = shared[1].queue.job(job["id"]).request
    assert (request.budget, request.private, request.parents) == ("90s", True, ("second", "first"))
    store = shared[1].store()
    kept = Uploads(store).local_copy(TaskName("pets"), request.upload)
    assert kept.read_bytes() == PETS
    assert kept.stat().st_mode & 0o077 == 0
    assert f"has a job already, {job['id']}" in problem(send(client, name="pets"), 409, "task-busy")


def test_a_known_task_gets_more_images_and_further_iterations(client: TestClient, shared: Served) -> None:
    missing = problem(client.post("/v1/tasks/first/iterations"), 422, "invalid-data")
    assert (
        missing == "no images of task 'first' are kept here: send them with PUT /v1/tasks/first/data, which evolves it"
    )
    job = send(client, path="/v1/tasks/first/data", method="PUT", budget="60s").json()["job"]
    assert (job["task"], job["kind"], job["state"]) == ("first", "iterate", "queued")
    queue = shared[1].queue
    claim = queue.claim()
    assert claim is not None
    queue.end(claim, "done")
    again = client.post("/v1/tasks/first/iterations", data={"budget": "30s"}).json()["job"]
    assert queue.job(again["id"]).request.upload == queue.job(job["id"]).request.upload
    client.delete(f"/v1/jobs/{again['id']}")
    Uploads(shared[1].store()).delete(TaskName("first"))
    for answer in (client.post("/v1/tasks/third/iterations"), send(client, path="/v1/tasks/third/data", method="PUT")):
        assert "known tasks: first, second" in problem(answer, 404, "unknown-task")


@pytest.mark.parametrize(
    ("fields", "status", "kind", "text"),
    [
        ({}, 422, "invalid-name", "'' is not a task name: use 1 to 64 of the characters a-z 0-9 _ - ."),
        ({"name": "../x"}, 422, "invalid-name", "'../x' is not a task name"),
        ({"name": "all"}, 422, "invalid-name", "'all' is reserved"),
        ({"name": "first"}, 409, "task-exists", "there is a task 'first' already: send more images with PUT"),
        ({"name": "pets", "budget": "soon"}, 422, "invalid-config", "the budget 'soon' is no time"),
        ({"name": "pets", "private": "maybe"}, 422, "invalid-input", "field 'private' is 'maybe': use true or false"),
        ({"name": "pets", "parents": "third"}, 404, "unknown-task", "known tasks: first, second"),
        ({"name": "pets", "colour": "red"}, 422, "invalid-input", "allowed are name, data, budget, private, parents"),
    ],
)
def test_fields_are_checked(client: TestClient, fields: dict[str, str], status: int, kind: str, text: str) -> None:
    assert text in problem(send(client, PETS, **fields), status, kind)


def linked() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ant/0.png", image())
        member = zipfile.ZipInfo("bee/0.png")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/passwd")
    return file.getvalue()


def huge_image() -> bytes:
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


BOMB = zip_of({"ant/0.png": bytes(60 * 2**20), "bee/0.png": bytes(60 * 2**20)})
HOSTILE = {
    "no zip": (b"not a zip at all", "is a damaged zip"),
    "empty": (b"", "is a damaged zip"),
    "slip": (zip_of({"../../ant/0.png": image(), "bee/0.png": image()}), "points outside of the zip"),
    "absolute": (zip_of({"/ant/0.png": image(), "bee/0.png": image()}), "points outside of the zip"),
    "link": (linked(), "is a link or a device"),
    "bomb": (BOMB, "at most 200 times its own size is allowed"),
    "wrong types": (zip_of({"ant/0.txt": b"a", "bee/0.exe": b"b"}), "has no images (.png, .apng"),
    "no image": (zip_of({"ant/0.png": b"<svg/>", "bee/0.png": image()}), "1 of 2 images cannot be used"),
    "huge image": (zip_of({"ant/0.png": huge_image(), "bee/0.png": image()}), "at most 50,000,000 pixels are allowed"),
    "one class": (zip_of({"ant/0.png": image(), "ant/1.png": image(1)}), "has the one class 'ant'; at least two"),
    "alike": (zip_of({"Ant/0.png": image(), "ant /1.png": image(1)}), "differ only in case, spaces or the form"),
    "only a test part": (zip_of({f"test/{c}/0.png": image() for c in ("ant", "bee")}), "but no images in 'train'"),
    "names in a code page": (
        zip_of({f"ant{n}/0.png": image() for n in "12"}).replace(b"ant", b"\x94\x4c_"),
        "whose name is not UTF-8: make the zip again",
    ),
    "too few": (zip_of({"ant/0.png": image(), "bee/0.png": image(1)}), "has one image per class, none is left"),
    "twins": (zip_of({f"{c}/{n}.png": image() for c in ("ant", "bee") for n in range(3)}), "has one image per class"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_uploads_are_refused_in_the_command_lines_words(
    client: TestClient, shared: Served, tmp_path: Path, name: str
) -> None:
    data, text = HOSTILE[name]
    told = problem(send(client, data, name="pets"), 422, "invalid-data")
    assert text in told
    assert "--" not in told  # there are no options here
    assert shared[1].queue.unfinished() == []
    path = tmp_path / "pets.zip"
    path.write_bytes(data)
    with pytest.raises(InvalidData) as caught:
        load_task(TaskName("pets"), path, seed=0, cache_folder=tmp_path / "cache")
    assert told == str(caught.value).replace(repr(str(path)), "'pets.zip'")


def test_bodies_are_limited_and_must_be_forms(client: TestClient) -> None:
    assert "at most 200,000 are allowed" in problem(send(client, bytes(200_001), name="pets"), 413, "request-too-large")
    assert "the form has no file 'data'" in problem(send(client, None, name="pets"), 422, "invalid-input")
    as_json = client.post("/v1/tasks", json={"name": "pets"})
    assert "content type 'application/json' is not supported" in problem(as_json, 415, "unsupported-media")
    broken = client.post("/v1/tasks", content=b"--x", headers={"content-type": "multipart/form-data; boundary=x"})
    assert broken.status_code == 422
    cut = client.post("/v1/tasks", content=b"x", headers={"content-type": "multipart/form-data"})
    assert "the form cannot be read" in problem(cut, 422, "invalid-input")


def test_progress_is_told_as_events_until_the_end(client: TestClient, shared: Served) -> None:
    queue = shared[1].queue
    job = send(client, name="pets").json()["job"]["id"]
    claim = queue.claim()
    assert claim is not None
    queue.tell(claim, JobProgress("training", 1, None, 2, 0.75, 3, 10.0))
    queue.log(job, "half way")
    with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = _events(stream.iter_lines())
        name, first = next(events)
        assert (name, first["state"], first["best_quality"], first["seconds_left"]) == (
            "progress",
            "running",
            0.75,
            10.0,
        )
        queue.end(claim, "failed", "no luck")
        rest = list(events)
    assert [name for name, _ in rest] == ["progress", "end"]
    assert (rest[-1][1]["state"], rest[-1][1]["error"]) == ("failed", "no luck")
    assert client.get(f"/v1/jobs/{job}/log").text.endswith(" half way\n")
    for path in ("", "/log", "/events"):
        assert "there is no job 'x'" in problem(client.get(f"/v1/jobs/x{path}"), 404, "unknown-job")
    Uploads(shared[1].store()).delete(TaskName("pets"))


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, object]]]:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_a_removed_task_takes_its_jobs_and_images_along(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first", seed=1), TaskPlan("second", seed=2))
    with served(store.folder, bind_address="127.0.0.1") as (client, server):
        client.headers["host"] = "127.0.0.1"
        job = send(client, path="/v1/tasks/first/data", method="PUT").json()["job"]["id"]
        send(client, path="/v1/tasks/second/data", method="PUT")
        server.queue.log(job, "classes: ant, bee2")
        removed = client.delete("/v1/tasks/first").json()
        assert removed == {"task": "first", "release": 3, "uploads_deleted": 1, "cancelled": [job]}
        assert client.get(f"/v1/jobs/{job}").json()["state"] == "cancelled"
        assert client.get(f"/v1/jobs/{job}/log").text == ""
        assert client.delete("/v1/tasks/second?delete_data=false").json()["uploads_deleted"] == 0
        assert Store.open(store.folder).release().tasks == {}
        assert "known tasks" in problem(client.delete("/v1/tasks/first"), 404, "unknown-task")
        assert [name for name in Uploads(store).tasks() if Uploads(store).digests(name)] == ["second"]


def test_nothing_is_taken_where_writing_is_off(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first", seed=1))
    with served(store.folder, bind_address="0.0.0.0") as (client, _):
        for answer in (
            send(client, name="pets"),
            send(client, path="/v1/tasks/first/data", method="PUT"),
            client.post("/v1/tasks/first/iterations"),
            client.delete("/v1/tasks/first"),
            client.delete("/v1/jobs/x"),
        ):
            assert "this server takes no changes" in problem(answer, 403, "writing-is-off")
        assert client.get("/v1/jobs").json() == {"jobs": []}
