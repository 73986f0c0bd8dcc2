"""Hostile and broken requests, thousands: none is answered with 500 or more, nobody beside them notices."""

import io
import json
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from service import engine
from service.engine import Logits, Row
from service.memory import resident_bytes
from service.server import Server
from tests.support.images import picture
from tests.support.in_process import PATH, wait_for
from tests.support.on_a_port import listening
from tests.support.requests import head
from tests.support.stores import TaskPlan, make_store

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
PER_FORMAT, MANY_PER_FORMAT = 350, 5000  # files, always and in the slow test
MAX_GROWTH_BYTES = 300 * 2**20  # wide: one image at the limit of pixels takes 3 MB, an uncaught leak of each far more


@pytest.fixture(scope="module")
def served_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    store = make_store(tmp_path_factory.mktemp("bad") / "store", TaskPlan("first"))
    limits = {"max_image_pixels": 1_000_000, "max_request_bytes": 3_000_000, "upload_timeout_s": 1.0}
    with listening(store.folder, **limits) as found:
        yield found


@pytest.fixture
def url(served_at: tuple[str, Server]) -> str:
    return served_at[0]


class Neighbour(threading.Thread):
    """Asks a healthy question all the while; every answer must be the first one."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._may_end = threading.Event()
        self.answers: list[str] = []

    def __enter__(self) -> "Neighbour":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._may_end.set()
        self.join()
        assert len(self.answers) > 1
        assert len(set(self.answers)) == 1

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._may_end.is_set():
                answer = client.post(f"{PATH}?logits=1", content=picture(), headers={"content-type": "image/png"})
                self.answers.append(f"{answer.status_code} {answer.text}")
                self._may_end.wait(0.05)


def encoded(kind: str, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (20, 28, 3), dtype=np.uint8))
    file = io.BytesIO()
    options = (
        {"save_all": True, "append_images": [image.rotate(90)]} if kind in {"GIF", "WEBP", "TIFF"} and seed % 2 else {}
    )
    image.save(file, kind, **options)
    return file.getvalue()


def fuzzed(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a file that is broken in one of the ways that files are."""
    broken = bytearray(data)
    way = rng.integers(5)
    if way == 0:
        return bytes(broken[: int(rng.integers(1, len(broken)))])
    if way == 1:  # the header, where sizes and offsets stand
        for at in rng.integers(0, min(64, len(broken)), rng.integers(1, 6)):
            broken[at] = rng.integers(256)
    elif way == 2:
        for at in rng.integers(0, len(broken), rng.integers(1, 40)):
            broken[at] ^= 1 << rng.integers(8)
    elif way == 3:
        start, length = int(rng.integers(0, len(broken))), int(rng.integers(1, 64))
        broken[start : start + length] = rng.bytes(length) * 2
    else:
        start = int(rng.integers(0, len(broken) - 4))
        broken[start : start + 4] = b"\xff\xff\xff\xff" if rng.integers(2) else b"\x00\x00\x00\x00"
    return bytes(broken)


def as_body(client: httpx.Client, image: bytes, _: np.random.Generator) -> httpx.Response:
    return client.post(PATH, content=image, headers={"content-type": "image/x"})


def as_form(client: httpx.Client, image: bytes, rng: np.random.Generator) -> httpx.Response:
    """Send a form that holds the image; every second one is broken itself."""
    body = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + image + b"\r\n--cut--\r\n"
    body = fuzzed(body, rng) if rng.integers(2) else body
    return client.post(PATH, content=body, headers={"content-type": "multipart/form-data; boundary=cut"})


def as_tensor(client: httpx.Client, image: bytes, rng: np.random.Generator) -> httpx.Response:
    """Send a binary tensor of the Open Inference Protocol; every second one is broken itself."""
    size = {"binary_data_size": len(image) + 4}
    told = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": size}]}
    head, body = json.dumps(told).encode(), struct.pack("<I", len(image)) + image
    whole = fuzzed(head + body, rng) if rng.integers(2) else head + body
    headers = {"inference-header-content-length": str(len(head))}
    return client.post("/v2/models/first/infer", content=whole, headers=headers)


SENT_AS = (as_body, as_body, as_form, as_tensor)


# Starlette leaves the file of a part that has no end to the garbage collector, which frees it at once.
@pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.Spooled:ResourceWarning")
@pytest.mark.parametrize(
    ("per_format", "seed"), [(PER_FORMAT, 0), pytest.param(MANY_PER_FORMAT, 1, marks=pytest.mark.slow)]
)
def test_fuzzed_images_are_answered_or_refused(url: str, per_format: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = {kind: [encoded(kind, seed) for seed in range(8)] for kind in FORMATS}
    statuses: dict[int, int] = {}
    with httpx.Client(base_url=url, timeout=30) as client:
        before = None
        with Neighbour(url):
            for index in range(per_format):
                for number, kind in enumerate(FORMATS):
                    send = SENT_AS[(index + number) % len(SENT_AS)]
                    status = send(client, fuzzed(whole[kind][index % 8], rng), rng).status_code
                    statuses[status] = statuses.get(status, 0) + 1
                if index == per_format // 4:  # by now all that is loaded once is loaded
                    before = resident_bytes()
    assert statuses.keys() <= {200, 400, 413, 422}, statuses
    assert statuses[400] > per_format
    after = resident_bytes()
    if before is not None and after is not None:
        assert after - before < MAX_GROWTH_BYTES


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of(Image.new("RGB", (30, 20)), "JPEG", exif=exif)


STRANGE = {
    "one-pixel": (file_of(Image.new("RGB", (1, 1)), "PNG"), 200),
    "very-wide": (file_of(Image.new("RGB", (900_000, 1)), "PNG"), 200),
    "very-high": (file_of(Image.new("L", (1, 900_000)), "PNG"), 200),
    "16-bit": (file_of(Image.fromarray(np.full((20, 20), 40_000, np.uint16)), "PNG"), 200),
    "float": (file_of(Image.fromarray(np.full((20, 20), np.nan, np.float32)), "TIFF"), 200),
    "cmyk": (file_of(Image.new("CMYK", (20, 20)), "JPEG"), 200),
    "palette": (file_of(Image.new("P", (20, 20)), "GIF", transparency=0), 200),
    "one-bit": (file_of(Image.new("1", (20, 20)), "BMP"), 200),
    "exif-rotated": (rotated(), 200),
    "animated": (encoded("GIF", 1), 200),
    "animated-webp": (encoded("WEBP", 1), 200),
    "bomb": (file_of(Image.new("L", (20_000, 20_000)), "PNG"), 413),
    "bomb-gif": (file_of(Image.new("P", (9_000, 9_000)), "GIF"), 413),
    "not-allowed": (file_of(Image.new("RGB", (20, 20)), "PPM"), 400),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400),
    "zip": (b"PK\x03\x04" + bytes(100), 400),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_images(url: str, name: str) -> None:
    body, status = STRANGE[name]
    answer = httpx.post(url + PATH, content=body, headers={"content-type": "application/octet-stream"}, timeout=30)
    assert answer.status_code == status, answer.text


def exchange(url: str, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send raw bytes and return all that comes back until the server closes, or is silent for a while."""
    address = urlsplit(url)
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=5) as line:
        received = b""
        try:
            for part in parts:
                line.sendall(part)
                if pause_s:
                    threading.Event().wait(pause_s)
            line.settimeout(3.0)
            while chunk := line.recv(65536):
                received += chunk
        except (TimeoutError, ConnectionError):
            pass
        return received


TRICKS = {
    "dots": head("/../../etc/passwd", method="GET"),
    "encoded-dots": head("/v1/tasks/%2e%2e%2f%2e%2e%2fetc", method="GET"),
    "null": head("/v1/tasks/%00", method="GET"),
    "not-utf8": head("/v1/tasks/%ff%fe", method="GET"),
    "two-slashes": head("//v1//tasks", method="GET"),
    "absolute": head("http://evil.example/v1/tasks", method="GET"),
    "long-path": head("/v1/tasks/" + "a" * 60_000, method="GET"),
    "long-query": head(PATH + "?top_k=" + "9" * 5000, "Content-Length: 0"),
    "long-name": head(PATH.replace("first", "f" * 3000), "Content-Length: 0"),
    "release": head(PATH, "MU2NET-Release: -1", "Content-Length: 0"),
    "release-text": head(PATH, "MU2NET-Release: \xff\xfe", "Content-Length: 0"),
    "request-id": head("/v1/tasks", "X-Request-ID: a b\xff<script>", method="GET"),
    "key": head("/v1/tasks", "Authorization: Bearer \xff\xfe" + "x" * 9000, method="GET"),
    "method": head(method="BREW"),
    "trace": head(method="TRACE"),
    "length-text": head(PATH, "Content-Length: many"),
    "length-negative": head(PATH, "Content-Length: -5"),
    "length-huge": head(PATH, "Content-Length: 99999999999999999999"),
    "length-twice": head(PATH, "Content-Length: 3", "Content-Length: 4") + b"abcd",
    "length-and-chunks": head(PATH, "Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "chunk-broken": head(PATH, "Transfer-Encoding: chunked") + b"zz\r\nabc\r\n",
    "chunk-huge": head(PATH, "Transfer-Encoding: chunked") + b"ffffffffffffffff\r\nabc\r\n",
    "gzip": head(PATH, "Content-Encoding: gzip", "Content-Length: 3", "Content-Type: image/png") + b"abc",
    "type": head(PATH, "Content-Type: " + "image/" * 3000, "Content-Length: 1") + b"x",
    "boundary": head(PATH, "Content-Type: multipart/form-data; boundary=" + "b" * 9000, "Content-Length: 1") + b"x",
    "boundary-odd": head(PATH, 'Content-Type: multipart/form-data; boundary="\xff"', "Content-Length: 4") + b"--\xff\r",
    "form": head(PATH, "Content-Type: application/x-www-form-urlencoded", "Content-Length: 3") + b"a=b",
    "many-headers": head(PATH, *(f"X-{index}: {index}" for index in range(2000)), "Content-Length: 0"),
    "v2-length": head("/v2/models/first/infer", "Inference-Header-Content-Length: \xb2", "Content-Length: 2") + b"{}",
    "v2-deep": head("/v2/models/first/infer", "Content-Length: 100000") + b"[" * 100_000,
    "not-http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "old-http": b"GET /v1/tasks\r\n\r\n",
}


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_with_paths_and_headers(url: str, name: str) -> None:
    received = exchange(url, TRICKS[name])
    assert not received or received.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200")), received[:300]
    assert b"root:" not in received


def test_slow_and_broken_off_uploads_harm_nobody(served_at: tuple[str, Server]) -> None:
    url, server = served_at
    start = head(PATH, "Content-Type: image/png", "Content-Length: 3000").replace(b"Connection: close\r\n", b"")
    with Neighbour(url) as neighbour:
        for _ in range(50):  # gone in the middle of the body
            address = urlsplit(url)
            with socket.create_connection((str(address.hostname), address.port or 0)) as line:
                line.sendall(start + picture()[:100])
        received = exchange(url, start, *[b"x"] * 4, pause_s=0.15)
        assert received.startswith(b"HTTP/1.1 408 "), received[:300]
        assert b"the request body was not there after 1 s" in received
        asked = len(neighbour.answers)
        wait_for(lambda: len(neighbour.answers) > asked)
    assert server.batcher.images_waiting == 0


def test_more_requests_than_may_be_are_told_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    may_end = threading.Event()

    def block(rows: Sequence[Row]) -> list[Logits]:
        assert may_end.wait(60)
        return engine.run(rows)

    def classify(address: str) -> int:
        with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=60) as client:
            return client.post(f"{url}{PATH}", content=picture(), headers={"content-type": "image/png"}).status_code

    with listening(store.folder, max_requests=2) as (url, server), ThreadPoolExecutor(2) as clients:
        monkeypatch.setattr(server.batcher, "_run", block)
        answers = [clients.submit(classify, address) for address in ("127.0.0.2", "127.0.0.3")]
        wait_for(lambda: server.batcher.images_waiting == 2)
        refused = httpx.get(f"{url}/v1/tasks")
        may_end.set()
        assert refused.status_code == 429
        assert refused.json()["detail"].startswith("2 requests are under way, as many as may be; try again")
        assert refused.headers["retry-after"] == "1"
        assert [answer.result() for answer in answers] == [200, 200]
        wait_for(lambda: httpx.get(f"{url}/v1/tasks").status_code == 200)


def test_a_bomb_of_many_pixels_as_a_tensor_is_refused(url: str) -> None:
    body = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 10**9, 10**9, 3], "data": [1]}]}
    assert httpx.post(f"{url}/v2/models/first/infer", json=body).status_code == 422
