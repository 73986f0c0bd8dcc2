"""Mutated uploads and request heads: none may be answered with 500 or more, and the server must live on."""

import asyncio
import json
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.hostile.attacks import answer_of, head
from benchmarks.hostile.names import TASK
from benchmarks.hostile.pictures import tiny_photo
from benchmarks.hostile.target import Target

CONNECTIONS = 48
WAIT_S = 3.0  # for an answer: of a body that was announced longer than it is, none comes
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
PATHS = ("/v1/tasks", "/v1/releases?limit=3", "/v1/releases/1/diff/2", "/metrics", "/v2", "/", "/readyz", "/v1/jobs")


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Send so many requests and return how they were answered."""
    with Target(folder) as target:
        before = target.footprint()
        started = time.monotonic()
        found = asyncio.run(_send_all(target.port, count))
        seconds = time.monotonic() - started
        body = tiny_photo()
        answer = httpx.post(
            f"{target.url}/v1/tasks/{TASK}/classify", content=body, headers={"content-type": "image/x"}, timeout=60
        )
        after = target.footprint()
    errors = {status: number for status, number in found.items() if status[:1] == "5"}
    return {
        "requests": sum(found.values()),
        "server_errors": sum(errors.values()) + (answer.status_code != 200),
        "statuses": dict(sorted(found.items())),
        "seconds": round(seconds, 1),
        "resident_mib": [round(before.resident_mib, 1), round(after.resident_mib, 1)],
    }


async def _send_all(port: int, count: int) -> Counter[str]:
    found: Counter[str] = Counter()
    numbers = iter(range(count))

    async def sender() -> None:
        for number in numbers:
            request = mutated_request(np.random.default_rng((0, number)))
            found[await _send(port, request)] += 1

    await asyncio.gather(*(sender() for _ in range(CONNECTIONS)))
    return found


async def _send(port: int, request: bytes) -> str:
    """Return the status of the first answer; `none` if none came."""
    try:
        async with asyncio.timeout(WAIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                answer = await answer_of(reader)
            finally:
                writer.close()
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        return "none"
    except ValueError:  # a length of the answer that is no number would be ours to explain
        return "500 unreadable answer"
    if not answer:
        return "closed"
    return answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/1.") else "500 no answer of HTTP"


def mutated_request(rng: np.random.Generator) -> bytes:
    """Return a request whose head, body, or both are broken in one or several places."""
    make = (_raw, _form, _binary_tensor, _json_tensor, _task, _plain)[rng.integers(6)]
    body, path, kind, extra = make(rng)
    if rng.random() < 0.7:
        body = mutated(body, rng)
    found = head("GET" if make is _plain else "POST", path, {"Content-Type": kind, **extra}, length=len(body))
    if rng.random() < 0.4:
        found = mutated(found, rng)
    return found + body


Made = tuple[bytes, str, str, dict[str, str]]  # body, path, content type, further headers


def _image(rng: np.random.Generator) -> bytes:
    return tiny_photo(int(rng.integers(50)), int(rng.integers(1, 48)), FORMATS[rng.integers(len(FORMATS))])


def _raw(rng: np.random.Generator) -> Made:
    return _image(rng), f"/v1/tasks/{TASK}/classify", "image/png", {}


def _form(rng: np.random.Generator) -> Made:
    parts = b"".join(
        b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + _image(rng) + b"\r\n"
        for _ in range(rng.integers(1, 4))
    )
    return parts + b"--cut--\r\n", f"/v1/classify?tasks={TASK}", "multipart/form-data; boundary=cut", {}


def _binary_tensor(rng: np.random.Generator) -> Made:
    image = _image(rng)
    size = {"binary_data_size": len(image) + 4}
    text = json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": size}]}).encode()
    body = text + struct.pack("<I", len(image)) + image
    length = {"Inference-Header-Content-Length": str(len(text))}
    return body, f"/v2/models/{TASK}/infer", "application/octet-stream", length


def _json_tensor(rng: np.random.Generator) -> Made:
    shape = [1, int(rng.integers(1, 5)), int(rng.integers(1, 5)), 3]
    data = rng.integers(0, 256, int(np.prod(shape))).tolist()
    body = json.dumps({"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": shape, "data": data}]}).encode()
    return body, f"/v2/models/{TASK}/infer", "application/json", {}


def _task(rng: np.random.Generator) -> Made:
    """Return an upload of a task without a secret: it must be refused, however broken it is."""
    text = b'--cut\r\nContent-Disposition: form-data; name="name"\r\n\r\nnew\r\n'
    data = b'--cut\r\nContent-Disposition: form-data; name="data"; filename="a.zip"\r\n\r\nPK' + rng.bytes(200)
    return text + data + b"\r\n--cut--\r\n", "/v1/tasks", "multipart/form-data; boundary=cut", {}


def _plain(rng: np.random.Generator) -> Made:
    return b"", PATHS[rng.integers(len(PATHS))], "text/plain", {}


Mutation = Callable[[bytearray, np.random.Generator], bytes]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return `data` broken in one of the ways that hostile bytes are."""
    broken = bytearray(data)
    if not broken:
        return rng.bytes(int(rng.integers(0, 40)))
    way = rng.integers(7)
    start = int(rng.integers(0, len(broken)))
    if way == 0:
        return bytes(broken[:start])
    if way == 1:  # where sizes and offsets stand
        for at in rng.integers(0, min(64, len(broken)), rng.integers(1, 6)):
            broken[at] = rng.integers(256)
    elif way == 2:
        for at in rng.integers(0, len(broken), rng.integers(1, 40)):
            broken[at] ^= 1 << rng.integers(8)
    elif way == 3:
        broken[start : start + int(rng.integers(1, 64))] = rng.bytes(int(rng.integers(1, 64)))
    elif way == 4:
        broken[start : start + 4] = b"\xff\xff\xff\xff" if rng.integers(2) else bytes(4)
    elif way == 5:  # a piece again
        end = start + int(rng.integers(1, 200))
        broken[start:start] = broken[start:end] * int(rng.integers(1, 20))
    else:
        texts = (b"\r\n", b"\x00", b"%00", b"../", b"\xc3\x28", b"-1", b"99999999999999999999", b"chunked", b'"', b"\t")
        broken[start:start] = texts[rng.integers(len(texts))]
    return bytes(broken)
