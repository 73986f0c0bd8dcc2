"""A task is sent to a server that answers for four others, and is asked for as soon as it is live.

How right each release is, is asked when the job is over, by making one after the other the active one again: 500
images for each release would be a load that the job does not make.
"""

import io
import os
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.reload.__main__ import be_own_user, free_port, percentile_ms, wait_until_ready
from benchmarks.reload.traffic import Reply, Traffic, pictures
from evolve.hparams import DataHParams, OptimiserHParams
from evolve.publish import create_store
from models.root import load_root
from models.store import Store
from tests.support.shared_data import shared_folder
from tests.support.stores import TaskPlan, add_task

TASK = "devanagari"
BUDGET_S = 300
BEFORE_S = 45.0  # of traffic alone
RATE = 10.0  # requests a second of the other tasks
OTHERS = (
    TaskPlan("tiny", depth=2, image_size=32, seed=1),
    TaskPlan("small", own_blocks=[1], depth=3, image_size=32, seed=2),
    TaskPlan("adapted", adapters={0: 8, 2: 16}, depth=4, image_size=64, seed=3),
    TaskPlan("middle", own_blocks=[4, 5], depth=6, image_size=64, seed=4),
)
IMAGES_PER_REQUEST = 50
GOOD_ENOUGH = 0.80
POLL_S = 0.5


def measure(folder: Path, *, before_s: float = BEFORE_S, budget_s: int = BUDGET_S) -> dict[str, Any]:
    """Return accuracy over time, latencies of the other tasks, and how many of their answers changed by a bit."""
    store = make_store(folder / "store")
    port = free_port()
    environment = {**os.environ, "HOME": str(folder), "MU2NET_POLL_INTERVAL_S": "0.2"}
    mu2net = [sys.executable, "-m", "models"]
    server = subprocess.Popen([*mu2net, "serve", str(store.folder), "--port", str(port)], env=environment)
    worker: subprocess.Popen[bytes] | None = None
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until_ready(client)
            be_own_user(client, folder)
            answers = quiet_answers(client)
            traffic = Traffic(str(client.base_url), [plan.name for plan in OTHERS], RATE)
            traffic.start()
            time.sleep(5.0)  # its process starts, and the engine warms up
            began = time.time()
            time.sleep(before_s)
            sent_at = time.time()
            job = send(client, TASK, images("train"), budget_s)
            command = [*mu2net, "worker", str(store.folder), "--once"]
            worker = subprocess.Popen(command, env=environment, start_new_session=True)  # as --with-worker starts it
            seen = follow(client, job, sent_at)
            ended_at = time.time()
            replies = traffic.stop()
            again = quiet_answers(client)
            curve = [{**live, "accuracy": judged(client, int(live["release"]))} for live in seen]
            log = client.get(f"/v1/jobs/{job}/log").text
    finally:
        server.terminate()
        server.wait(60)
        if worker is not None:
            worker.terminate()
            worker.wait(60)
    return figures(curve, replies, began, sent_at, ended_at) | {
        "changed_answers": sum(answers[key] != again[key] for key in answers),
        "log": log.splitlines(),
    }


def make_store(folder: Path) -> Store:
    """Return a store on the real root with four tasks."""
    source = shared_folder() / "weights" / "vit_tiny_patch16_224.safetensors"
    store = create_store(folder, load_root(str(source), num_heads=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    for plan in OTHERS:
        add_task(store, plan)
    routes = store.routes(store.release())
    # what evolution expects of any seed: routes made by hand have no hyperparameters
    whole = {
        task: store.put_route(
            replace(route, hparams=asdict(OptimiserHParams()) | asdict(DataHParams(route.image_size)))
        )
        for task, route in routes.items()
    }
    store.publish(lambda _: whole, reason="with hyperparameters")
    return store


@cache
def images(part: str) -> dict[str, bytes]:
    """Return the images of a part by their names in the zip."""
    with zipfile.ZipFile(shared_folder() / "datasets" / f"{TASK}.zip") as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{part}/") and not name.endswith("/")]
        return {name: archive.read(name) for name in names}


def send(client: httpx.Client, name: str, files: dict[str, bytes], budget_s: int) -> str:
    """Send images, by their names in a zip, as a task, and return the job."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    form = {"name": name, "budget": f"{budget_s}s"}
    answer = client.post("/v1/tasks", data=form, files={"data": ("train.zip", file.getvalue(), "application/zip")})
    answer.raise_for_status()
    job: str = answer.json()["job"]["id"]
    return job


def follow(client: httpx.Client, job: str, sent_at: float) -> list[dict[str, float]]:
    """Ask for the task until its job is over; return when each release gave its first answer."""
    name, content = next(iter(images("test").items()))
    seen: list[dict[str, float]] = []
    known = None
    while True:
        is_over = client.get(f"/v1/jobs/{job}").json()["state"] not in ("queued", "running")
        found = client.get(f"/v1/tasks/{TASK}")
        if found.status_code == 200 and found.json()["route"] != known:
            answer = client.post(f"/v1/tasks/{TASK}/classify", files={"image": (name, content, "image/png")}).json()
            known = answer["route"]
            seen.append({"seconds": time.time() - sent_at, "release": answer["release"]})
        if is_over:
            return seen
        time.sleep(POLL_S)


def judged(client: httpx.Client, release: int) -> float:
    """Return the accuracy of the task's answers over HTTP when `release` is the active one."""
    client.post(f"/v1/releases/{release}/activate").raise_for_status()
    while client.get("/v1/tasks").json()["release"] != release:
        time.sleep(POLL_S)
    test = list(images("test").items())
    right = 0
    for at in range(0, len(test), IMAGES_PER_REQUEST):
        part = test[at : at + IMAGES_PER_REQUEST]
        files = [("image", (name, content, "image/png")) for name, content in part]
        answer = client.post(f"/v1/tasks/{TASK}/classify?top_k=1", files=files).json()
        assert answer["release"] == release, answer
        labels = [result["predictions"][0]["label"] for result in answer["results"]]
        right += sum(name.split("/")[1] == label for (name, _), label in zip(part, labels, strict=True))
    return right / len(test)


def quiet_answers(client: httpx.Client) -> dict[str, list[float]]:
    """Return the logits of every other task for every image, one at a time with nothing else under way."""
    found = {}
    for plan in OTHERS:
        for index, image in enumerate(pictures()):
            headers = {"content-type": "image/jpeg"}
            answer = client.post(f"/v1/tasks/{plan.name}/classify?logits=1", content=image, headers=headers)
            found[f"{plan.name} {index}"] = answer.json()["results"][0]["logits"]
    return found


def figures(
    curve: list[dict[str, float]], replies: list[Reply], began: float, sent_at: float, ended_at: float
) -> dict[str, Any]:
    before = [reply for reply in replies if began <= reply.due_at and reply.ended_at < sent_at]
    during = [reply for reply in replies if sent_at <= reply.due_at < ended_at]
    return {
        "curve": curve,
        "seconds_to_live": curve[0]["seconds"] if curve else None,
        "seconds_to_080": next((point["seconds"] for point in curve if point["accuracy"] >= GOOD_ENOUGH), None),
        "final_accuracy": curve[-1]["accuracy"] if curve else None,
        "job_seconds": ended_at - sent_at,
        "requests": {"before": len(before), "during": len(during)},
        "failed_requests": sum(reply.status != 200 for reply in replies),
        "before_ms": {str(q): round(percentile_ms(before, q), 2) for q in (50, 90, 99)},
        "during_ms": {str(q): round(percentile_ms(during, q), 2) for q in (50, 90, 99)},
        "p99_ratio": percentile_ms(during, 99) / percentile_ms(before, 99),
        "p50_ratio": float(np.median([r.latency_s for r in during]) / np.median([r.latency_s for r in before])),
    }
