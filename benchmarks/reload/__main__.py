"""`uv run python -m benchmarks.reload`: 200 reloads in a row under traffic; takes about 6 minutes on 2 cores.

A real server on a store of routes from tiny to ViT-Ti, with random weights; blocks of steady traffic and
of reloads take turns. Each answer is held against what torch says of the release that it names.
"""

import argparse
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import psutil
import torch

from benchmarks import results
from benchmarks.reload.moves import TRAFFIC, Move, Workload
from benchmarks.reload.traffic import Reply, Traffic
from evolve.publish import create_store
from models.root import load_root

COMMAND = "uv run python -m benchmarks.reload"
ROOT = "random:embed_dim=192,depth=12,num_heads=3,patch_size=16,image_size=224"
CYCLES = 20  # of 11 moves each
STEADY_S = 5.0  # before each cycle, and once more at the end
RATE = 25.0  # requests a second
TOLERANCE = 1e-3  # of a float32 logit, times the largest one where that is above 1
START_TIMEOUT_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=CYCLES)
    parser.add_argument("--rate", type=float, default=RATE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the server has the cores
    with tempfile.TemporaryDirectory() as name:
        run(Path(name), arguments.cycles, arguments.rate)


def run(folder: Path, cycles: int, rate: float) -> None:
    store = create_store(folder / "store", load_root(ROOT))
    port = free_port()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        workload = Workload(store, client)
        workload.prepare(cycles)
        environment = {**os.environ, "MU2NET_POLL_INTERVAL_S": "0.2", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(
            [sys.executable, "-m", "models", "serve", str(store.folder), "--port", str(port)], env=environment
        )
        try:
            wait_until_ready(client)
            traffic = Traffic(str(client.base_url), TRAFFIC, rate)
            traffic.start()
            time.sleep(4.0)  # the client's process starts, and the engine warms up
            memory = drive(workload, server, cycles)
            replies = traffic.stop()
        finally:
            server.terminate()
            server.wait(60)
    report(workload, replies, memory, cycles, rate)


def drive(workload: Workload, server: "subprocess.Popen[bytes]", cycles: int) -> list[tuple[int, int]]:
    """Take turns between steady traffic and reloads; return (moves so far, resident bytes) after each cycle."""
    memory = []
    for index in range(cycles):
        time.sleep(STEADY_S)
        workload.cycle(index)
        time.sleep(0.3)
        memory.append((len(workload.moves), resident(server)))
        if index == 0:
            print(f"one cycle: {len(workload.moves)} moves", flush=True)
    time.sleep(STEADY_S)
    return memory


def resident(server: "subprocess.Popen[bytes]") -> int:
    """Return the resident bytes of the process that has the engine: the largest one."""
    root = psutil.Process(server.pid)
    sizes: list[int] = [process.memory_info().rss for process in [root, *root.children(recursive=True)]]
    return max(sizes)


def report(
    workload: Workload, replies: Sequence[Reply], memory: Sequence[tuple[int, int]], cycles: int, rate: float
) -> None:
    moves = workload.moves
    during = [reply for reply in replies if any(_overlaps(reply, move) for move in moves)]
    steady = [reply for reply in replies if not any(_overlaps(reply, move) for move in moves)]
    steady = [reply for reply in steady if reply.due_at >= moves[0].asked_at - STEADY_S]  # without the warm-up
    ratio = percentile_ms(during, 99) / percentile_ms(steady, 99)
    added = [move.bytes_read / move.task_bytes for move in moves if move.task_bytes]
    growth_mib = (memory[-1][1] - memory[0][1]) / 2**20
    wrong = sum(not _is_right(reply, workload) for reply in replies if reply.status == 200)
    bars = [
        results.at_least("reload-1", len(moves), 200),
        results.at_most("reload-2", sum(reply.status != 200 for reply in replies), 0),
        results.at_most("reload-3", wrong, 0),
        results.at_most("reload-4", ratio, 1.5),
        results.at_most("reload-5", growth_mib, 64),
        results.at_most("reload-6", max(added), 1.05),
    ]
    raw = {
        "rate": rate,
        "cycles": cycles,
        "moves": Counter(move.kind for move in moves),
        "refused": Counter(str(move.refused).split(":")[0][:60] for move in moves if move.refused),
        "requests": len(replies),
        "requests_during_reloads": len(during),
        "statuses": Counter(str(reply.status) for reply in replies),
        "steady_ms": {str(q): round(percentile_ms(steady, q), 2) for q in (50, 90, 99)},
        "during_ms": {str(q): round(percentile_ms(during, q), 2) for q in (50, 90, 99)},
        "reload_s": {str(q): round(float(np.percentile(_seconds(moves), q)), 3) for q in (50, 99, 100)},
        "resident_mib": [(count, round(size / 2**20, 1)) for count, size in memory],
        "largest_difference": max((_difference(r, workload) for r in replies if r.status == 200), default=None),
    }
    results.write("reload", command=COMMAND, seeds=[0, 1], raw=raw, bars=bars)
    for line in [*raw.items(), *map(dataclasses.astuple, bars)]:
        print(*line)


def _overlaps(reply: Reply, move: Move) -> bool:
    return reply.due_at < move.settled_at and reply.ended_at > move.asked_at


def _seconds(moves: Sequence[Move]) -> list[float]:
    return [move.seconds for move in moves if move.seconds]


def percentile_ms(replies: Sequence[Reply], q: float) -> float:
    return float(np.percentile([reply.latency_s for reply in replies], q)) * 1000


def _is_right(reply: Reply, workload: Workload) -> bool:
    """Hold an answer against the release that it names: that task's route there, and torch's logits of it."""
    tasks = workload.tasks_of.get(reply.release, {})
    return tasks.get(reply.task) == reply.route and _difference(reply, workload) <= TOLERANCE  # type: ignore[call-overload]


def _difference(reply: Reply, workload: Workload) -> float:
    wanted = workload.expected[reply.route][reply.image]
    return float(np.abs(np.array(reply.logits) - wanted).max() / max(1.0, np.abs(wanted).max()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the server was not ready after {START_TIMEOUT_S:g} s")


if __name__ == "__main__":
    main()
