"""What clients share: places and bytes by kind, a share for each, a least rate; on a port where sockets matter."""

import asyncio
import gc
import json
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from models.errors import BodiesFull, InvalidConfig, Overloaded
from models.jobs import Job, JobProgress, JobRequest
from models.names import TaskName
from models.store import Store
from service import job_feed
from service.addresses import address_of, parse_networks
from service.keys import add_key, new_key, revoke_key
from service.loop_turns import LoopTurns
from service.places import Room
from service.server import Server
from service.settings import load_settings
from service.turns import Turns
from service.upload import read_body
from service.visit import Visit
from tests.support.images import picture
from tests.support.in_process import PATH, problem, served, wait_for
from tests.support.on_a_port import listening
from tests.support.requests import head
from tests.support.stores import TaskPlan, make_store
from tests.support.uploads import PETS, send

BIRDS = JobRequest(TaskName("birds"), "add", "0" * 64)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("places") / "store", TaskPlan("first"), TaskPlan("second", seed=2))


@pytest.fixture
def teams(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", TaskPlan("first"))


def keyed(store: Store, name: str) -> tuple[str, str]:
    """Make a key that may do all with tasks; return its id and the key itself."""
    key, token = new_key(name, classify=("all",), manages=("tasks",), rate=None)
    add_key(store.files, key)
    return key.id, token


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_request_leaves_nothing_for_the_garbage_collection(store: Store) -> None:
    with listening(store.folder) as (url, _), httpx.Client(base_url=url) as client:
        client.get("/v1/tasks")
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                client.get("/v1/tasks")
                client.post(PATH, content=picture(), headers={"content-type": "image/png"})
            visits = sum(type(found) is Visit for found in gc.get_objects())
        finally:
            gc.enable()
    assert visits <= 1  # the latest may not have ended


@contextmanager
def line_to(url: str, text: bytes, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((str(address.hostname), address.port or 0), 30, (source, 0)) as line:
        line.sendall(text)
        yield line


def received(line: socket.socket) -> bytes:
    """Return all that comes until the server closes."""
    found = b""
    try:
        while part := line.recv(2**16):
            found += part
    except ConnectionResetError:  # it was closed while more of a body was on its way
        pass
    return found


def slow_body(size: int = 1000) -> bytes:
    return head(PATH, "Content-Type: image/png", f"Content-Length: {size}") + b"x"


def classify(url: str) -> httpx.Response:
    return httpx.post(f"{url}{PATH}", content=picture(), headers={"content-type": "image/png"}, timeout=30)


# room


def test_a_newcomer_finds_room_however_much_others_hold() -> None:
    room = Room(100, "things are held")
    for number in range(8):  # one after the other: the worst order for those who come later
        while takes(room, f"a{number}"):
            pass
    for newcomer in ("b", "c"):
        assert takes(room, newcomer)
    with pytest.raises(Overloaded, match=r"^\d+ things are held for this client alone, which is its share: room for "):
        room.take("a0")


def takes(room: Room, holder: str) -> bool:
    try:
        room.take(holder)
    except Overloaded:
        return False
    return True


def test_one_holder_alone_has_its_share_and_what_is_given_back_is_free() -> None:
    room = Room(9, "things are held", BodiesFull)
    for _ in range(3):
        room.take("a")
    with pytest.raises(BodiesFull, match=r"^3 things are held for this client alone, which is its share: room for 6 "):
        room.take("a")
    with pytest.raises(BodiesFull, match=r"^3 things are held, 7 more would exceed 9; try again after the time in "):
        room.take("b", 7)
    room.take("b", 6)
    with pytest.raises(BodiesFull, match=r"^9 things are held, as many as may be; try again after the time in "):
        room.take("c")
    room.give_back("a", 3)
    room.give_back("b", 6)
    assert room.used == 0
    room.take("c", 9)


def test_addresses_are_counted_by_network_and_proxies_not_at_all() -> None:
    proxies = "10.0.0.5, 192.168.0.0/16"
    found = [
        address_of({"client": (host, 1)}, proxies)
        for host in ("10.0.0.4", "10.0.0.5", "192.168.3.4", "::ffff:10.0.0.4", "2001:db8:1:2:3::4", "2001:db8:1:2::9")
    ]
    assert found == ["10.0.0.4", "", "", "10.0.0.4", "2001:db8:1:2::/64", "2001:db8:1:2::/64"]
    assert address_of({"client": None}, proxies) == ""
    with pytest.raises(
        InvalidConfig, match=r"^setting MU2NET_TRUSTED_PROXIES = '10\.0\.0': .*; write addresses or CIDR"
    ):
        parse_networks("10.0.0")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("MU2NET_TRUSTED_PROXIES", "proxy", "'proxy' does not appear to be an IPv4 or IPv6 network; write addresses"),
        (
            "MU2NET_MAX_BODY_BYTES_UNDER_WAY",
            "70000000",
            "leaves one client 1/3, too little for a request of MU2NET_MAX_REQUEST_BYTES",
        ),
        (
            "MU2NET_MAX_UPLOAD_BYTES_UNDER_WAY",
            "9",
            "leaves one client 1/3, too little for a request of MU2NET_MAX_UPL",
        ),
        (
            "MU2NET_MAX_PIXELS_UNDER_WAY",
            "9",
            "leaves one client 1/3, too little for a request of MU2NET_MAX_REQUEST_PIXELS = 800000000: raise",
        ),
        ("MU2NET_MAX_REQUEST_PIXELS", "9", "is too little for one image of MU2NET_MAX_IMAGE_PIXELS = 50000000: raise"),
    ],
)
def test_limits_that_no_body_fits_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidConfig, match=text):
        load_settings("somewhere")


# bodies


def test_slow_bodies_leave_the_places_of_others_alone(store: Store) -> None:
    with listening(store.folder, max_requests=1, upload_grace_s=3600, upload_timeout_s=3600) as (url, server):
        with ExitStack() as lines:
            for _ in range(20):
                lines.enter_context(line_to(url, slow_body()))
            wait_for(lambda: server.places.bodies.used == 20)
            assert server.places.requests.used == 0
            assert httpx.get(f"{url}/v1/tasks").status_code == 200
            assert classify(url).status_code == 200
        wait_for(lambda: server.places.bodies.used == server.places.body_bytes.used == 0)


def test_bodies_beyond_an_addresss_share_are_refused_and_another_address_has_room(store: Store) -> None:
    limits = {"max_bodies": 9, "upload_grace_s": 3600, "upload_timeout_s": 3600}
    with listening(store.folder, **limits) as (url, server), ExitStack() as lines:
        for _ in range(3):
            lines.enter_context(line_to(url, slow_body(), "127.0.0.2"))
        wait_for(lambda: server.places.bodies.used == 3)
        with line_to(url, slow_body(), "127.0.0.2") as line:
            told = received(line)
        assert told.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1\r\n" in told
        assert b"connection: close\r\n" in told.lower()
        assert b"3 request bodies are being received for this client alone, which is its share" in told
        assert classify(url).status_code == 200


def upload(token: str) -> bytes:
    """The head of an upload, and the beginning of its body."""
    form = ("Content-Type: multipart/form-data; boundary=B", "Content-Length: 1000")
    return head("/v1/tasks", f"Authorization: Bearer {token}", *form) + b"--B\r\n"


def test_a_body_that_comes_slower_than_it_may_is_given_up(teams: Store) -> None:
    token = keyed(teams, "sender")[1]
    limits = {"upload_grace_s": 0.2, "min_body_bytes_per_s": 10**6, "upload_timeout_s": 3600}
    with listening(teams.folder, **limits) as (url, server):
        wait_for(lambda: server.keys.holder(token) is not None)
        classified = slow_body().replace(b"\r\n", f"\r\nAuthorization: Bearer {token}\r\n".encode(), 1)
        for text in (classified, upload(token)):
            with line_to(url, text) as line:
                told = received(line)
            assert told.startswith(b"HTTP/1.1 408 "), told
            assert b"bytes of the request body were there after 0.2 s, and at least 1,000,000 bytes a second" in told
        assert (server.places.bodies.used, server.places.uploads.used) == (0, 0)


def test_uploads_of_tasks_have_places_of_their_own(teams: Store) -> None:
    token, other = keyed(teams, "sender")[1], keyed(teams, "other")[1]
    with listening(teams.folder, max_uploads=4, upload_grace_s=3600) as (url, server):
        wait_for(lambda: server.keys.holder(other) is not None)
        with line_to(url, upload(token)):
            wait_for(lambda: server.places.uploads.used == 1)
            assert (server.places.requests.used, server.places.bodies.used) == (0, 0)
            with line_to(url, upload(token)) as line:
                told = received(line)
            assert told.startswith(b"HTTP/1.1 429 "), told
            assert b"1 uploads are under way for this client alone, which is its share" in told
            assert httpx.get(f"{url}/v1/tasks", headers=bearer(token)).status_code == 200
            with line_to(url, upload(other)):
                wait_for(lambda: server.places.uploads.used == 2)
        wait_for(lambda: server.places.uploads.used == server.places.upload_bytes.used == 0)


def part(size: int, announced: int, path: str = PATH, kind: str = "image/png") -> bytes:
    """The head of a body of `announced` bytes, and the first `size` of them."""
    return head(path, f"Content-Type: {kind}", f"Content-Length: {announced}") + bytes(size)


def test_bytes_of_bodies_are_counted_as_they_arrive_over_all_requests(store: Store) -> None:
    limits = {"max_body_bytes_under_way": 3_000_000, "upload_grace_s": 3600, "upload_timeout_s": 3600}
    with listening(store.folder, **limits) as (url, server), ExitStack() as lines:
        for _ in range(5):  # an announced length alone costs nobody anything
            lines.enter_context(line_to(url, part(0, 60_000_000)))
        for _ in range(2):
            lines.enter_context(line_to(url, part(400_000, 700_000), "127.0.0.2"))
        wait_for(lambda: server.places.body_bytes.used == 800_000)
        for path, kind in ((PATH, "image/png"), ("/v2/models/first/infer", "application/octet-stream")):
            with line_to(url, part(500_000, 500_000, path, kind), "127.0.0.2") as line:
                told = received(line)
            assert told.startswith(b"HTTP/1.1 429 "), told[:200]
            assert b"bytes of request bodies are under way for this client alone, which is its share" in told
        assert server.places.body_bytes.used == 800_000
        assert classify(url).status_code == 200


def test_the_bytes_of_a_body_are_given_back_with_the_answer(store: Store) -> None:
    with served(store.folder) as (client, server):
        for files in ([("image", picture())], [("image", picture(size=600))] * 3):  # the latter over a mebibyte
            assert client.post(PATH, files=files).status_code == 200
        assert server.places.body_bytes.used == server.places.requests.used == server.places.bodies.used == 0


def test_who_does_not_read_an_answer_holds_no_place(store: Store) -> None:
    with served(store.folder) as (client, server):
        held: list[int] = []

        async def ask() -> None:
            async def receive() -> dict[str, object]:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send_to(message: MutableMapping[str, Any]) -> None:
                held.append(server.places.requests.used)  # as long as this waits, the client does not read

            scope = {"type": "http", "method": "GET", "path": "/v1/tasks", "query_string": b""}
            scope["headers"] = [(b"host", b"127.0.0.1")]
            await client.app(scope, receive, send_to)

        assert client.portal is not None
        client.portal.call(ask)
        assert held == [1, 0]


def test_an_upload_whose_key_is_revoked_meanwhile_is_not_queued(teams: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key, token = keyed(teams, "sender")

    async def inspect(path: Path, *, shown_as: str, max_bytes: int) -> None:
        revoke_key(teams.files, key)
        while server.keys.holder(token) is not None:
            await asyncio.sleep(0.01)

    monkeypatch.setattr("models.inspection.inspect_apart", inspect)
    with served(teams.folder) as (client, server):
        wait_for(lambda: server.keys.holder(token) is not None)
        client.headers.update(bearer(token))
        told = problem(send(client, name="pets"), 401, "key-needed")
        assert told.startswith("the key of this upload was revoked while it was under way")
        assert server.queue.jobs(limit=1) == []


def test_a_raw_body_is_read_without_a_second_copy() -> None:
    from starlette.requests import Request

    chunks = [b"ab", b"cd", b""]

    async def receive() -> dict[str, object]:
        part = chunks.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(chunks)}

    scope = {"type": "http", "headers": []}
    assert asyncio.run(read_body(Request(scope, receive), max_bytes=4)) == b"abcd"


def test_the_index_of_models_reads_no_more_than_it_needs(store: Store) -> None:
    with served(store.folder) as (client, _):
        assert len(client.post("/v2/repository/index", json={"ready": True}).json()) == 2
        assert len(client.post("/v2/repository/index").json()) == 2
        told = problem(client.post("/v2/repository/index", content=b"[" * 2000), 413, "request-too-large")
        assert "the request body has 2,000 bytes or more; at most 1,024 are allowed" in told
        assert "the index request is wrong" in problem(
            client.post("/v2/repository/index", content=b"{"), 422, "invalid-input"
        )


def test_an_upload_that_would_fill_the_disk_is_refused(teams: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.visit.DISK_CHECK_BYTES", 100)
    monkeypatch.setattr("service.visit.DISK_RESERVE_SHARE", 2.0)
    monkeypatch.setattr("service.visit.DISK_RESERVE_BYTES", 2**62)
    _, token = keyed(teams, "sender")
    with served(teams.folder) as (client, server):
        wait_for(lambda: server.keys.holder(token) is not None)
        client.headers.update(bearer(token))
        answer = send(client, name="pets")
        assert problem(answer, 507, "storage-full").startswith("the folder for temporary files is full: ")
        assert server.places.upload_bytes.used == 0


def run_in_turns(turns: Turns, *names: str, amount: int = 0, giving_up: Sequence[str] = ()) -> tuple[list[str], int]:
    """Have work of each name, whose holder is its first letter, ask at the same time; return the order of their turns,
    and how many had one at once."""
    order: list[str] = []
    at_once = most = 0

    async def work(name: str) -> None:
        nonlocal at_once, most
        async with turns.turn(name[0], amount):
            order.append(name)
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            at_once -= 1

    async def run() -> None:
        tasks = {name: asyncio.create_task(work(name)) for name in names}
        await asyncio.sleep(0)
        for name in giving_up:
            tasks[name].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 30))
    assert turns.waiting == 0
    return order, most


def test_a_long_line_delays_another_holder_by_one_turn() -> None:
    assert run_in_turns(Turns(1), "a1", "a2", "a3", "a4", "b1", "c1", "b2") == (
        ["a1", "b1", "c1", "a2", "b2", "a3", "a4"],
        1,
    )


def test_as_many_work_at_once_as_may_and_their_amounts_fit() -> None:
    names = ("a1", "b1", "a2", "c1", "a3", "a4")
    assert run_in_turns(Turns(3), *names)[1] == 3
    assert run_in_turns(Turns(3, total=20), *names, amount=10)[1] == 2
    assert run_in_turns(Turns(3, total=5), *names, amount=10)[1] == 1  # more than all that may be goes alone


def test_who_gives_up_leaves_the_line_and_its_turn() -> None:
    turns = Turns(1)
    assert run_in_turns(turns, "a1", "a2", "b1", "c1", giving_up=("a1", "b1"))[0] == ["a1", "c1", "a2"]
    assert run_in_turns(turns, "a1")[0] == ["a1"]


def test_who_gives_up_in_the_moment_of_its_turn_keeps_nothing() -> None:
    async def run() -> None:
        turns = Turns(1)

        async def wait() -> None:
            async with turns.turn("a"):
                pass

        async with turns.turn("b"):
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
            waiting.cancel()  # and at once, before it knows, the turn ends
        async with asyncio.timeout(30), turns.turn("c"):
            assert turns.waiting == 0
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(30), turns.turn("a"):
            pass

    asyncio.run(run())


async def answers_in_turns(turns: LoopTurns, *names: str) -> list[str]:
    """Send requests at the same time, of the client that each name's first letter says; return their order."""
    order: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        order.append(scope["path"])

    async def body() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request"}

    async def no_answer(_: Message) -> None: ...

    def request(name: str) -> Awaitable[None]:
        answer = turns.before(app, lambda: name.endswith("gone"))
        return answer({"type": "http", "path": name, "state": {}}, body, no_answer)

    await asyncio.gather(*map(request, names))
    assert turns.waiting == 0
    return order


def test_a_hundred_requests_of_one_client_delay_another_ones_by_a_few() -> None:
    turns = LoopTurns(lambda scope: scope["path"][0])
    order = asyncio.run(answers_in_turns(turns, *(f"a{k}" for k in range(100)), "b"))
    assert order.index("b") < 10
    assert [name for name in order if name != "b"] == [f"a{k}" for k in range(100)]


def test_what_a_client_no_longer_waits_for_is_not_begun() -> None:
    turns = LoopTurns(lambda scope: scope["path"][0])
    assert asyncio.run(answers_in_turns(turns, "a-gone", "a-there", "b-gone")) == ["a-there"]


def test_a_request_that_fails_or_is_given_up_keeps_no_turn() -> None:
    turns = LoopTurns(lambda scope: "all")

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError(await asyncio.sleep(0, "of the request"))

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    async def run() -> None:
        for app, error in ((fails, RuntimeError), (waits, TimeoutError)) * 5:
            with pytest.raises(error):
                await turns.before(app, lambda: False)({"type": "http", "state": {}}, None, None)  # type: ignore[arg-type]
        cancelled = [
            asyncio.ensure_future(turns.before(waits, lambda: False)({"type": "http", "state": {}}, None, None))  # type: ignore[arg-type]
            for _ in range(5)
        ]
        await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        assert await answers_in_turns(turns, "a", "b", "c") == ["a", "b", "c"]

    asyncio.run(asyncio.wait_for(run(), 30))


# streams


def events(line: socket.socket) -> Callable[[str], None]:
    """Return what waits until a text has come on a line."""
    found = b""

    def wait(text: str) -> None:
        nonlocal found
        while text.encode() not in found:
            part = line.recv(2**16)
            assert part, f"it ended: {found!r}"
            found += part

    return wait


def asking(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode()


def test_streams_have_places_of_their_own_and_one_look_at_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    with listening(store.folder, max_streams=24) as (url, server), ExitStack() as lines:
        job = server.queue.submit(BIRDS)
        looks: list[float] = []
        recent = server.queue.recent

        def look(within_s: float) -> list[Job]:
            looks.append(within_s)
            return recent(within_s)

        monkeypatch.setattr(server.queue, "recent", look)
        followers = [
            events(lines.enter_context(line_to(url, asking(path), "127.0.0.2")))
            for path in [f"/v1/jobs/{job.id}/events", "/v1/jobs/events"] * 4
        ]
        for wait in followers:
            wait('"state":"queued"')
        assert server.places.streams.used == 8
        assert server.places.requests.used == 0
        with line_to(url, asking("/v1/jobs/events", "Connection: close"), "127.0.0.2") as line:
            told = received(line)
        assert told.startswith(b"HTTP/1.1 429 ")
        assert b"8 event streams are open for this client alone, which is its share" in told
        events(lines.enter_context(line_to(url, asking("/v1/jobs/events"))))('"state":"queued"')
        assert httpx.get(f"{url}/v1/tasks").status_code == 200
        claim = server.queue.claim()
        assert claim is not None
        before = len(looks)
        server.queue.tell(claim, JobProgress("training", 1, None, 2, 0.5, 3, 10.0))
        for wait in followers:
            wait('"phase":"training"')
        assert len(looks) - before < len(followers), "each stream looked at the queue by itself"
        server.queue.end(claim, "done")
        for wait in followers:
            wait("event: end")
    wait_for(lambda: server.places.streams.used == 0)


def test_a_stream_of_all_jobs_begins_with_those_that_are_not_over(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    with listening(store.folder) as (url, server):
        old = server.queue.submit(BIRDS)
        server.queue.cancel(old.id)
        fish = server.queue.submit(JobRequest(TaskName("fish"), "add", "0" * 64))
        with httpx.stream("GET", f"{url}/v1/jobs/events", timeout=30) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.iter_lines()
            assert next_event(lines) == ("progress", "fish", "queued")
            server.queue.submit(JobRequest(TaskName("owls"), "add", "0" * 64))
            assert next_event(lines) == ("progress", "owls", "queued")
            server.queue.cancel(fish.id)
            assert next_event(lines) == ("end", "fish", "cancelled")


def next_event(lines: Iterator[str]) -> tuple[str, str, str]:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        if line.startswith("data: "):
            data = json.loads(line.removeprefix("data: "))
            return name, data["task"], data["state"]
    raise AssertionError("it ended")


@pytest.mark.parametrize("path", ["/v1/jobs/{job}/events", "/v1/jobs/events"])
def test_a_stream_ends_with_its_key(tmp_path: Path, path: str) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    keys = [new_key(name, classify=("all",), manages=(), rate="3/day") for name in ("gone", "stays")]
    for key, _ in keys:
        add_key(store.files, key)
    with listening(store.folder) as (url, server), ExitStack() as lines:
        job = server.queue.submit(BIRDS)
        wait_for(lambda: all(server.keys.holder(token) is not None for _, token in keys))
        asked = [asking(path.format(job=job.id), f"Authorization: Bearer {token}") for _, token in keys]
        gone, stays = (lines.enter_context(line_to(url, text)) for text in asked)
        follow = events(stays)
        events(gone)('"state":"queued"')
        follow('"state":"queued"')
        revoke_key(store.files, "gone")
        wait_for(lambda: server.keys.holder(keys[0][1]) is None)
        wait_for(lambda: server.places.streams.used == 1)
        server.queue.cancel(job.id)
        assert b"cancelled" not in gone.recv(2**16)
        follow("event: end")  # its rate of 3 a day counts requests, not looks at the key


def test_a_stream_tells_nobody_of_private_tasks_but_those_who_may_know(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    anybody, token = new_key("anybody", classify=("all",), manages=(), rate=None)
    manager, full = new_key("manager", classify=(), manages=("tasks",), rate=None)
    add_key(store.files, anybody)
    add_key(store.files, manager)
    with listening(store.folder) as (url, server), ExitStack() as lines:
        wait_for(lambda: server.keys.holder(full) is not None)
        lines_of = [
            lines.enter_context(
                httpx.stream("GET", f"{url}/v1/jobs/events", headers={"authorization": f"Bearer {key}"}, timeout=30)
            ).iter_lines()
            for key in (token, full)
        ]
        server.queue.submit(JobRequest(TaskName("secret"), "add", "0" * 64, private=True, key=manager.id))
        server.queue.submit(BIRDS)
        assert next_event(lines_of[0])[1] == "birds"
        assert [next_event(lines_of[1])[1] for _ in range(2)] == ["secret", "birds"]


def test_a_feed_keeps_only_the_newest_state_for_a_slow_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_feed, "POLL_S", 0.001)
    store = make_store(tmp_path / "store", TaskPlan("first"))

    async def run(server: Server) -> None:
        queue, feed = server.queue, job_feed.JobFeed(lambda: server.queue)
        queue.submit(BIRDS)
        slow, quick = feed.changes(), feed.changes()
        await anext(slow)
        await anext(quick)
        claim = queue.claim()
        assert claim is not None
        for number in range(5):
            queue.tell(claim, JobProgress("training", number))
            while not any(job.progress.generation == number and job.state == "running" for job in await anext(quick)):
                pass
        assert [job.progress.generation for job in await anext(slow)] == [4]
        for changes in (slow, quick):
            await changes.aclose()
        assert feed._polling is None

    with served(store.folder) as (_, server):
        asyncio.run(asyncio.wait_for(run(server), 60))


# quotas


@pytest.mark.parametrize(
    ("limits", "budget", "kind", "status", "text"),
    [
        ({"max_jobs_per_key": 1}, "60s", "quota-exceeded", 429,
         "1 jobs of this client are not over, and 1 are allowed: wait for the end of one, or cancel one with DELETE"),
        ({"max_budget_per_key_s": 100}, "60s", "quota-exceeded", 429,
         "the unfinished jobs of this client would have budgets of 120 s together, and 100 s are allowed"),
        ({"max_bytes_per_key": len(PETS) + 10}, "60s", "quota-exceeded", 429,
         f"{len(PETS):,} bytes of this client's uploads are kept, and {len(PETS):,} more would exceed"),
        ({"max_budget_s": 60}, "61s", "invalid-config", 422,
         "the budget '61s' is longer than one job may take here, 60 s: ask for less"),
    ],
    ids=["jobs", "budgets", "bytes", "budget"],
)  # fmt: skip
def test_a_key_has_a_quota_and_another_keys_jobs_do_not_count(
    teams: Store, limits: dict[str, Any], budget: str, kind: str, status: int, text: str
) -> None:
    flood, other = keyed(teams, "flood"), keyed(teams, "other")
    with served(teams.folder, **limits) as (client, server):
        wait_for(lambda: server.keys.holder(other[1]) is not None)
        client.headers.update(bearer(flood[1]))
        first = send(client, name="one", budget="60s")
        assert first.status_code == 202, first.text
        assert first.json()["job"]["key"] == flood[0]
        refused = send(client, name="two", budget=budget)
        assert text in problem(refused, status, kind)
        if status == 429:
            assert int(refused.headers["retry-after"]) > 60, "clients give up at once, and tell why"
        assert server.queue.unfinished() == [server.queue.job(first.json()["job"]["id"])]
        client.headers.update(bearer(other[1]))
        assert send(client, name="three", budget="60s").status_code == 202
        client.headers.update(bearer(flood[1]))
        client.delete(f"/v1/jobs/{first.json()['job']['id']}")
        assert send(client, name="two", budget="60s").status_code == 202


def test_a_budget_that_is_too_long_is_refused_for_iterations_too(teams: Store) -> None:
    key, token = keyed(teams, "sender")
    with served(teams.folder, max_budget_s=60) as (client, server):
        wait_for(lambda: server.keys.holder(token) is not None)
        client.headers.update(bearer(token))
        assert send(client, path="/v1/tasks/first/data", method="PUT", budget="30s").status_code == 202
        for answer in (
            client.post("/v1/tasks/first/iterations", data={"budget": "2m"}),
            send(client, path="/v1/tasks/first/data", method="PUT"),  # five minutes, where none is named
        ):
            assert "is longer than one job may take here, 60 s" in problem(answer, 422, "invalid-config")
        assert [job["key"] for job in client.get("/v1/jobs").json()["jobs"]] == [key]


def test_the_key_of_a_job_is_told_to_who_manages_tasks_alone(teams: Store) -> None:
    manager, full = keyed(teams, "manager")
    anybody, token = new_key("anybody", classify=("all",), manages=("releases",), rate=None)
    add_key(teams.files, anybody)
    with served(teams.folder) as (client, server):
        wait_for(lambda: server.keys.holder(token) is not None)
        server.queue.submit(replace(BIRDS, key=manager))
        told = [client.get("/v1/jobs", headers=bearer(key)).json()["jobs"][0]["key"] for key in (full, token)]
        assert told == [manager, None]
