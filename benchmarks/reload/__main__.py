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
from models.cores import usable_cores
from models.own_token import own_token
from models.root import load_root

COMMAND = "uv run python -m benchmarks.reload"
ROOT = "random:embed_dim=192,depth=12,num_heads=3,patch_size=16,image_size=224"
CYCLES = 20  # of 11 reloads each
STEADY_S = 5.0  # before each cycle, and once more at the end
RATE = 20.0  # requests a second: the server then takes somewhat more than half of two cores
TOLERANCE = 1e-3  # of a float32 logit, times the largest one where that is above 1
QUANTILES = (50, 90, 99, 100)
START_TIMEOUT_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=CYCLES)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--smoke", action="store_true", help="one cycle to see that it works; nothing is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the server has the cores
    with tempfile.TemporaryDirectory() as name:
        run(Path(name), 1 if arguments.smoke else arguments.cycles, arguments.rate, is_kept=not arguments.smoke)


def run(folder: Path, cycles: int, rate: float, *, is_kept: bool) -> None:
    store = create_store(folder / "store", load_root(ROOT))
    port = free_port()
    environment = {**os.environ, "MU2NET_POLL_INTERVAL_S": "0.05", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "models", "serve", str(store.folder), "--port", str(port)]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        workload = Workload(store, client, lambda: engine_process(server).memory_info().rss)
        workload.prepare(cycles)
        server = subprocess.Popen(command, env=environment)
        try:
            wait_until_ready(client)
            be_own_user(client, folder)
            traffic = Traffic(str(client.base_url), TRAFFIC, rate)
            traffic.start()
            time.sleep(4.0)  # the client's process starts, and the engine warms up
            busy = drive(workload, server, cycles)
            replies = traffic.stop()
        finally:
            server.terminate()
            server.wait(60)
    report(workload, replies, busy, cycles, rate, is_kept=is_kept)


def drive(workload: Workload, server: "subprocess.Popen[bytes]", cycles: int) -> float:
    """Take turns between steady traffic and reloads; return the share of the cores that steady traffic takes."""
    process = engine_process(server)
    busy_s = 0.0
    for index in range(cycles):
        before = sum(process.cpu_times()[:2])
        time.sleep(STEADY_S)
        busy_s += sum(process.cpu_times()[:2]) - before
        workload.cycle(index)
    time.sleep(STEADY_S)
    return busy_s / (STEADY_S * cycles * usable_cores())


def engine_process(server: "subprocess.Popen[bytes]") -> psutil.Process:
    """Return the process that has the engine: the largest one."""
    root = psutil.Process(server.pid)
    processes: list[psutil.Process] = [root, *root.children(recursive=True)]
    return max(processes, key=lambda process: process.memory_info().rss)


def report(
    workload: Workload, replies: Sequence[Reply], busy: float, cycles: int, rate: float, *, is_kept: bool
) -> None:
    moves = workload.moves
    during = [reply for reply in replies if any(_overlaps(reply, move) for move in moves)]
    steady = [reply for reply in replies if not any(_overlaps(reply, move) for move in moves)]
    steady = [reply for reply in steady if reply.due_at >= moves[0].asked_at - STEADY_S]  # without the warm-up
    ratio = percentile_ms(during, 99) / percentile_ms(steady, 99)
    added = [move.bytes_read / move.task_bytes for move in moves if move.task_bytes]
    memory = [round(move.resident_bytes / 2**20, 1) for move in moves]
    wrong = sum(not _is_right(reply, workload) for reply in replies if reply.status == 200)
    bars = [
        results.at_least("reload-1", len(moves), 200),
        results.at_most("reload-2", sum(reply.status != 200 for reply in replies), 0),
        results.at_most("reload-3", wrong, 0),
        results.at_most("reload-4", ratio, 1.5),
        results.at_most("reload-5", memory[-1] - memory[4], 64),
        results.at_most("reload-6", max(added), 1.05),
    ]
    raw = {
        "rate": rate,
        "cycles": cycles,
        "busy_share_of_cores": round(busy, 3),
        "moves": Counter(move.kind for move in moves),
        "refused": Counter(move.refused for move in moves if move.refused),
        "requests": len(replies),
        "requests_during_reloads": len(during),
        "statuses": Counter(str(reply.status) for reply in replies),
        "steady_ms": {str(q): round(percentile_ms(steady, q), 2) for q in QUANTILES},
        "during_ms": {str(q): round(percentile_ms(during, q), 2) for q in QUANTILES},
        "during_ms_by_kind": _by_kind(replies, moves),
        "reload_s": {str(q): round(float(np.percentile(_seconds(moves), q)), 3) for q in QUANTILES},
        "resident_mib": memory,
        "largest_difference": max((_difference(r, workload) for r in replies if r.status == 200), default=None),
    }
    if is_kept:
        results.write("reload", command=COMMAND, seeds=[0, 1], raw=raw, bars=bars)
    for line in [*raw.items(), *map(dataclasses.astuple, bars)]:
        print(*line)


def _by_kind(replies: Sequence[Reply], moves: Sequence[Move]) -> dict[str, dict[str, float]]:
    found = {}
    for kind in dict.fromkeys(move.kind for move in moves):
        own = [move for move in moves if move.kind == kind]
        during = [reply for reply in replies if any(_overlaps(reply, move) for move in own)]
        if during:
            found[kind] = {str(q): round(percentile_ms(during, q), 2) for q in QUANTILES}
    return found


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


def be_own_user(client: httpx.Client, home: Path) -> None:
    """Let a client change the store of a server without keys, which was started with `home` as its home folder."""
    cache = os.environ.get("MU2NET_CACHE")
    folder = home / ".cache" / "mu2net" if cache is None else Path(cache)
    client.headers["authorization"] = f"Bearer {own_token(folder)}"


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
