"""Starts `service.prove` for what is new in a release, and ends it when a route takes too long or too much memory."""

import json
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from models import apart
from models.errors import ProofFailed, ProofTimeout
from models.names import RouteId, SubgraphId, TaskName
from models.store import Signature
from service.prepared import PreparedGraphs
from service.prove import OUT_OF_MEMORY, OUT_OF_TIME, Proved, Request
from service.runtime import Runtime

LOOK_S = 0.1
TOLD_CHARS = 400  # of what a process said before it died


class Stopped(Exception):
    """Whether the release is right does not matter any more."""


@dataclass(frozen=True, slots=True)
class ProofLimits:
    """What one proof may take."""

    timeout_s: float = 300.0  # for each route: a large store has hundreds
    memory_bytes: int = 2 * 2**30  # beside three times what the new weights take


class ProofProcess:
    """Proves routes of one store. Used from one thread only, the watcher's."""

    def __init__(
        self,
        location: str | Path,
        cache: Path | None,
        runtime: Runtime,
        prepared: PreparedGraphs | None,
        limits: ProofLimits | None = None,
    ) -> None:
        self._location = str(location)
        self._cache = None if cache is None else str(cache)
        self._runtime = runtime
        self._prepared = None if prepared is None else str(prepared.folder)
        self._limits = ProofLimits() if limits is None else limits

    def prove(
        self,
        routes: Sequence[tuple[TaskName, RouteId]],
        is_stopped: Callable[[], bool],
        *,
        verified: Mapping[str, Signature],
        checked: Collection[SubgraphId],
    ) -> Proved:
        """Prove routes in a process of their own, and return what it leaves to this one.

        Args:
            routes: what is new in a release.
            is_stopped: asked again and again; the process is ended when it says so.
            verified: files of the store that were found right, as they looked: they are not read again.
            checked: subgraphs whose graphs were allowed.

        Raises:
            ProofFailed: what is wrong, in the words and with the kind of the process.
            ProofTimeout: it took longer than it may, and was ended.
        """
        limits = self._limits
        request = Request(
            location=self._location,
            cache=self._cache,
            prepared=self._prepared,
            provider=self._runtime.provider,
            threads=self._runtime.threads,
            precision=self._runtime.precision,
            routes=tuple(routes),
            memory_bytes=limits.memory_bytes,
            timeout_s=limits.timeout_s,
            cpu_s=limits.timeout_s * len(routes) * max(1, self._runtime.threads),
            verified=dict(verified),
            checked=tuple(sorted(checked)),
        )
        pipe = subprocess.PIPE
        command, environment = apart.command_of("service.prove"), apart.environment()
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:
            try:
                answer, said = self._talk(process, json.dumps(asdict(request)).encode(), len(routes), is_stopped)
            finally:
                if process.poll() is None:
                    process.kill()
        if process.returncode == OUT_OF_TIME:
            raise self._too_long(len(routes))
        return _proved(answer, process.returncode, said)

    def _talk(
        self, process: "subprocess.Popen[bytes]", asked: bytes, count: int, is_stopped: Callable[[], bool]
    ) -> tuple[bytes, bytes]:
        """Return what the process answered and what it said beside; no disk is needed for either."""
        deadline = time.monotonic() + self._limits.timeout_s * count  # in case that the process cannot watch itself
        unsent: bytes | None = asked
        while True:
            try:
                return process.communicate(unsent, LOOK_S)
            except subprocess.TimeoutExpired:
                unsent = None  # the rest goes with the next call
            if is_stopped():
                raise Stopped
            if time.monotonic() > deadline:
                raise self._too_long(count)

    def _too_long(self, count: int) -> ProofTimeout:
        return ProofTimeout(
            f"the proof of one of {count} new routes took longer than {self._limits.timeout_s:g} s and was ended: its "
            "graph may never end; publish the task again, or allow more with MU2NET_PROOF_TIMEOUT_S"
        )


def _proved(answer: bytes, status: int, said: bytes) -> Proved:
    try:
        plain = json.loads(answer)
    except ValueError:
        if status == OUT_OF_MEMORY:
            raise ProofFailed(
                "the proof of the new routes took more memory than it may, and was ended: publish the task again, or "
                "allow more with MU2NET_PROOF_MEMORY_BYTES",
                kind="out-of-memory",
            ) from None
        told = said.decode(errors="replace").strip()[-TOLD_CHARS:]
        raise ProofFailed(
            f"the proof of the new routes died with status {status} before it answered: {told or 'it said nothing'}",
            kind="out-of-memory" if "MemoryError" in told or "bad_alloc" in told else "proof-failed",
        ) from None
    if "error" in plain:
        raise ProofFailed(plain["error"], kind=plain["kind"])
    return Proved(
        bytes_read=plain["bytes_read"],
        answers={name: (found[0], found[1], found[2]) for name, found in plain["answers"].items()},
        verified={name: (look[0], look[1], look[2]) for name, look in plain["verified"].items()},
        objects=plain["objects"],
    )
