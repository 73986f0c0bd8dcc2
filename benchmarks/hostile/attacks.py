"""The attacks, each a process of its own that connects from 127.0.0.2 to 127.0.0.9.

Attackers have the lowest priority: they would have machines of their own, and what is measured is the server.
"""

import asyncio
import json
import os
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.hostile.names import PRIVATE, TASK, WIDE
from benchmarks.hostile.pictures import empty_png, progressive_bomb, tiny_photo

ADDRESSES = tuple(f"127.0.0.{last}" for last in range(2, 10))
ANSWER_S = 60.0  # that an attacker waits for an answer
DROP_S = 5.0  # between two bytes of a request that is held
PAUSE_S = 0.05  # before an attacker whose connection was closed tries again
SHUT_OUT_S = 1.0  # the same of one that holds hundreds of connections
NICENESS = 19
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Aim:
    """What an attack is told."""

    port: int
    token: str  # of this machine's user: some attacks come from those who may add tasks
    job: str  # one that is not over


@dataclass
class Outcome:
    """What became of an attack. `seen` holds forbidden things that an answer told."""

    statuses: Counter[str] = field(default_factory=Counter)
    errors_of_server: list[str] = field(default_factory=list)  # heads of answers of 500 and more
    seen: int = 0

    def note(self, answer: bytes) -> None:
        """Count an answer by its status; `closed` for none."""
        status = answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/1.1 ") else "closed"
        self.statuses[status] += 1
        if status[:1] == "5" and len(self.errors_of_server) < 5:
            self.errors_of_server.append(answer[:600].decode(errors="replace"))
        self.seen += PRIVATE.encode() in answer


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Forever = Coroutine[Any, Any, None]
Attack = Callable[[Aim, str, Outcome], Forever]  # of one address, for ever


@asynccontextmanager
async def connected(aim: Aim, address: str) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", aim.port, local_addr=(address, 0))
    try:
        yield reader, writer
    finally:
        writer.close()


def head(method: str, path: str, headers: Mapping[str, str] = {}, *, length: int | None = None) -> bytes:
    lines = {"Host": "127.0.0.1", **({} if length is None else {"Content-Length": str(length)}), **headers}
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode()


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """Return one whole answer, nothing where the connection was closed first."""
    try:
        found = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        return error.partial if isinstance(error, asyncio.IncompleteReadError) else b""
    except ConnectionError:
        return b""
    length = next((int(v) for n, _, v in (line.partition(b":") for line in found.split(b"\r\n"))
                   if n.lower() == b"content-length"), 0)  # fmt: skip
    return found + await reader.readexactly(length)


async def exchange(client: Client, request: bytes, outcome: Outcome) -> bool:
    """Send a request and note its answer; tell whether the connection may be used again."""
    reader, writer = client
    answer = b""
    try:
        async with asyncio.timeout(ANSWER_S):
            writer.write(request)
            with suppress(ConnectionError):  # refused before all was sent: the answer may be there all the same
                await writer.drain()
            answer = await answer_of(reader)
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        pass
    outcome.note(answer)
    return bool(answer) and b"connection: close" not in answer.lower()


async def ask_on(aim: Aim, address: str, outcome: Outcome, request: bytes, *, pause_s: float = 0.0) -> None:
    """Send one request again and again over a kept connection, or a new one where it was closed."""
    while True:
        try:
            async with connected(aim, address) as client:
                while await exchange(client, request, outcome):
                    await asyncio.sleep(pause_s)
        except OSError:
            outcome.statuses["not connected"] += 1
        await asyncio.sleep(PAUSE_S)


async def hold(aim: Aim, address: str, outcome: Outcome, begin: bytes, *, drop: bytes = b"") -> None:
    """Send the beginning of a request and then next to nothing; come again when shut out."""
    while True:
        with suppress(OSError):
            async with connected(aim, address) as (reader, writer):
                writer.write(begin)
                answer = b""
                while not (writer.is_closing() or reader.at_eof()):
                    try:
                        async with asyncio.timeout(DROP_S):
                            found = await reader.read(65536)
                            answer = answer or found
                            if not found:
                                break
                    except TimeoutError:
                        writer.write(drop)
                outcome.note(answer)
        await asyncio.sleep(SHUT_OUT_S)


async def together(*calls: Forever) -> None:
    await asyncio.gather(*calls)


async def endless_heads(aim: Aim, address: str, outcome: Outcome) -> None:
    """Header lines without end, on several connections."""

    async def one() -> None:
        line = b"X-Filler: " + b"a" * 16_000 + b"\r\n"
        while True:
            with suppress(OSError):
                async with connected(aim, address) as (reader, writer):
                    writer.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n")
                    answering = asyncio.ensure_future(answer_of(reader))
                    while not (answering.done() or writer.is_closing()):
                        writer.write(line)
                        await writer.drain()
                        await asyncio.sleep(0)
                    answering.cancel()
                    outcome.note(answering.result() if answering.done() and not answering.cancelled() else b"")
            await asyncio.sleep(PAUSE_S)

    await together(*(one() for _ in range(4)))


async def unfinished_heads(aim: Aim, address: str, outcome: Outcome) -> None:
    """As many connections as one gets, each with a head that never ends."""
    begin = b"GET /v1/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: b\r\n"
    await together(*(hold(aim, address, outcome, begin, drop=b"X-B: c\r\n") for _ in range(600)))


async def upgrades(aim: Aim, address: str, outcome: Outcome) -> None:
    """The upgrade to HTTP/2 that some clients offer, with a body."""
    image = tiny_photo()
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAoAAA"}
    request = head("POST", f"/v1/tasks/{TASK}/classify", {**headers, "Content-Type": "image/jpeg"}, length=len(image))
    await ask_on(aim, address, outcome, request + image)


async def many_requests(aim: Aim, address: str, outcome: Outcome) -> None:
    """Requests for nothing, as fast as they are answered."""
    await ask_on(aim, address, outcome, head("GET", "/v1/nothing"))


async def strangers_writing(aim: Aim, address: str, outcome: Outcome) -> None:
    """Changes and reading without a secret: as through a proxy, by a page of another site, by a rebound name."""
    requests = [
        head("POST", "/v1/releases/1/activate", length=0),
        head("DELETE", f"/v1/tasks/{TASK}"),
        head("POST", "/v1/releases/resume", {"Origin": "https://other.example"}, length=0),
        head("GET", "/v1/tasks", {"Host": "other.example"}),
    ]
    await together(*(ask_on(aim, address, outcome, request) for request in requests))


async def pages(aim: Aim, address: str, outcome: Outcome) -> None:
    """The console's files."""
    await ask_on(aim, address, outcome, head("GET", "/console/index.html"))


async def progressive_bombs(aim: Aim, address: str, outcome: Outcome) -> None:
    """Progressive JPEG files of 49 megapixels: with thousands of scans, and with as many as cameras make."""
    await together(*(ask_on(aim, address, outcome, _raw_image(_bomb(scans))) for scans in (6000, 10)))


async def huge_pngs(aim: Aim, address: str, outcome: Outcome) -> None:
    """64 PNG files of 49 megapixels in one request, and one alone."""
    png = _png()
    part = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + png + b"\r\n"
    body = part * 64 + b"--B--\r\n"
    content = {"Content-Type": "multipart/form-data; boundary=B"}
    many = head("POST", f"/v1/tasks/{TASK}/classify", content, length=len(body)) + body
    await together(*(ask_on(aim, address, outcome, request) for request in (many, _raw_image(png, "image/png"))))


@cache
def _bomb(scans: int) -> bytes:
    return progressive_bomb(scans)


@cache
def _png() -> bytes:
    return empty_png()


def _raw_image(data: bytes, kind: str = "image/jpeg") -> bytes:
    return head("POST", f"/v1/tasks/{TASK}/classify", {"Content-Type": kind}, length=len(data)) + data


async def nested_json(aim: Aim, address: str, outcome: Outcome) -> None:
    """60 MiB of empty lists, and a tensor of 120,000 numbers."""
    await together(*(ask_on(aim, address, outcome, request) for request in _json_requests()))


@cache
def _json_requests() -> tuple[bytes, ...]:
    body = b'{"inputs":[{"name":"pixels","datatype":"UINT8","shape":[1,1,1,3],"data":[' + b"[]," * (20 * MIB) + b"0]}]}"
    kind = {"Content-Type": "application/json"}
    large = head("POST", f"/v2/models/{TASK}/infer", kind, length=len(body)) + body
    numbers = b"[" + b"255," * (200 * 200 * 3 - 1) + b"255]"
    tensor = b'{"inputs":[{"name":"pixels","datatype":"UINT8","shape":[1,200,200,3],"data":' + numbers + b"}]}"
    return large, head("POST", f"/v2/models/{TASK}/infer", kind, length=len(tensor)) + tensor


async def large_bodies(aim: Aim, address: str, outcome: Outcome) -> None:
    """24 bodies of 63 MiB at once, raw and as binary tensors."""
    await together(*(ask_on(aim, address, outcome, request) for request in _large_requests()))


@cache
def _large_requests() -> tuple[bytes, ...]:
    junk = b"\x89PNG\r\n\x1a\n" + bytes(63 * MIB)
    size = {"binary_data_size": len(junk) + 4}
    told = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": size}]}
    text = json.dumps(told).encode()
    length = {"Inference-Header-Content-Length": str(len(text))}
    body = text + struct.pack("<I", len(junk)) + junk
    tensor = head("POST", f"/v2/models/{TASK}/infer", length, length=len(body)) + body
    raw = _raw_image(junk, "image/png")
    return raw, raw, tensor


async def held_streams(aim: Aim, address: str, outcome: Outcome) -> None:
    """Event streams: 40 of each address."""
    request = head("GET", f"/v1/jobs/{aim.job}/events", {"Authorization": f"Bearer {aim.token}"})
    await together(*(hold(aim, address, outcome, request) for _ in range(40)))


async def slow_bodies(aim: Aim, address: str, outcome: Outcome) -> None:
    """Bodies of images and of tasks that hardly move: 60 of each address."""
    image = head("POST", f"/v1/tasks/{TASK}/classify", {"Content-Type": "image/png"}, length=1000)
    form = {"Content-Type": "multipart/form-data; boundary=B", "Authorization": f"Bearer {aim.token}"}
    task = head("POST", "/v1/tasks", form, length=100_000) + b"--B\r\n"
    await together(*(hold(aim, address, outcome, (image, task)[at % 2], drop=b"x") for at in range(60)))


async def wide_records(aim: Aim, address: str, outcome: Outcome) -> None:
    """Differences between releases whose routes have 40,000 classes each."""
    requests = [head("GET", "/v1/releases/3/diff/4"), head("GET", "/v1/releases/4/diff/0")]
    await together(*(ask_on(aim, address, outcome, request) for request in requests))


async def counting(aim: Aim, address: str, outcome: Outcome) -> None:
    """What might tell of private tasks: metrics, lists, a task that shares with them."""
    paths = ("/metrics", "/v1/tasks", f"/v1/tasks/{WIDE}", "/v1/releases")
    await together(*(ask_on(aim, address, outcome, head("GET", path), pause_s=0.02) for path in paths))


ATTACKS: Mapping[str, Attack] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        endless_heads,
        unfinished_heads,
        upgrades,
        many_requests,
        strangers_writing,
        pages,
        progressive_bombs,
        huge_pngs,
        nested_json,
        large_bodies,
        held_streams,
        slow_bodies,
        wide_records,
        counting,
    )
}


class Attacker:
    """One attack from all addresses, in a process of its own that runs this module."""

    def __init__(self, name: str, aim: Aim) -> None:
        command = [sys.executable, "-m", __name__, name, json.dumps(asdict(aim))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def wait(self) -> None:
        """Return when the attack has begun."""
        assert self._process.stdout is not None, "it is a pipe"
        self._process.stdout.readline()

    def stop(self) -> None:
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.close()

    def outcome(self) -> Outcome:
        """Return what became of it, when it has ended."""
        assert self._process.stdout is not None, "it is a pipe"
        found = json.loads(self._process.stdout.read())
        self._process.wait()
        return Outcome(**{**found, "statuses": Counter(found["statuses"])})


def main() -> None:
    """Attack until stdin ends, then print the outcome."""
    os.nice(NICENESS)
    with suppress(OSError):  # Linux may share the processor between sessions first, this is one
        Path("/proc/self/autogroup").write_text(str(NICENESS))
    name, aim = sys.argv[1:]
    print(json.dumps(vars(asyncio.run(_attack(ATTACKS[name], Aim(**json.loads(aim)))))))


async def _attack(attack: Attack, aim: Aim) -> Outcome:
    outcome = Outcome()
    running = [asyncio.create_task(attack(aim, address, outcome)) for address in ADDRESSES]
    print("begun", flush=True)
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait({ended, *running}, return_when=asyncio.FIRST_COMPLETED)
    for task in running:
        if task.done():
            task.result()  # an attack ends only by a mistake of its own
        task.cancel()
    await asyncio.wait(running, timeout=10)
    return outcome


if __name__ == "__main__":
    main()
