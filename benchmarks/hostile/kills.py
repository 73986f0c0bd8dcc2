"""SIGKILLs of server, worker, publisher and garbage collector at random moments, under light traffic.

Four processes work on one store; each is killed at a moment of its life drawn at random and started again. A release is
acknowledged when its publisher has written so, a job when the server has answered 202. What is thirty seconds old is
made hours old, so that the garbage collector has something to delete.
"""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.hostile.pictures import tiny_photo
from benchmarks.online.job import send
from benchmarks.online.kills import TAKEN_UP, run_twice
from benchmarks.reload.__main__ import TOLERANCE, free_port
from models.names import RouteId, TaskName
from models.preprocess import load_pixels
from models.store import Store
from models.verify import verify
from tests.support.stores import ROOT, TaskPlan, make_store, route_logits, store_route

TASKS = 4
ROUTES_PER_TASK = 5
KEEP = 20  # releases, for the garbage collector
BUDGET_S = 8
JOBS_AT_ONCE = 2
RATE = 5.0  # requests a second
YOUNG_S, AGE_S = 30.0, 3 * 3600.0
END_S = 900.0  # for the last jobs to be done, nobody being killed any more
FRAME_S = 0.05


@dataclass(frozen=True, slots=True)
class Role:
    """What is killed, and between which seconds of its life."""

    name: str
    command: Sequence[str]
    first_s: float
    last_s: float


@dataclass
class Life:
    """A process of a role, from its start to when it is killed."""

    role: Role
    process: "subprocess.Popen[bytes]"
    dies_at: float
    ended_at: float | None = None


@dataclass
class Traffic(threading.Thread):
    """Asks the server all the while and holds each answer against torch's of the route that it names."""

    url: str
    tasks: Sequence[str]
    expected: Mapping[RouteId, np.ndarray]  # logits of the one image, by route
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.may_end = threading.Event()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        rng = np.random.default_rng(1)
        image = tiny_photo(size=24, kind="PNG")
        while not self.may_end.wait(1 / RATE):
            task = self.tasks[int(rng.integers(len(self.tasks)))]
            try:
                path = f"{self.url}/v1/tasks/{task}/classify?logits=1"
                answer = httpx.post(path, content=image, headers={"content-type": "image/png"}, timeout=20)
            except httpx.TransportError as error:  # its server was killed
                self.statuses[type(error).__name__] += 1
                continue
            self.statuses[str(answer.status_code)] += 1
            if answer.status_code == 200:
                self._check(task, answer.json())
            elif answer.status_code != 503:
                self.wrong.append(f"{task}: {answer.status_code} {answer.text[:300]}")

    def _check(self, task: str, found: dict[str, Any]) -> None:
        wanted = self.expected.get(RouteId(found["route"]))
        if wanted is None or found["task"] != task:
            self.wrong.append(f"{task}: answered by {found['task']} {found['route']}")
            return
        distance = np.abs(np.array(found["results"][0]["logits"]) - wanted).max()
        if not distance <= TOLERANCE * max(1.0, float(np.abs(wanted).max())):
            self.wrong.append(f"{task}: logits of {found['route']} differ by {distance}")


def measure(folder: Path, kills: int) -> dict[str, Any]:
    """Return how often was killed, and what was lost, done twice or answered wrongly."""
    store = make_store(folder / "store", *(TaskPlan(f"task-{at}", seed=at + 1) for at in range(TASKS)))
    pool, expected = make_pool(folder / "pool", store)
    log = folder / "published.log"
    log.touch()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    mu2net = [sys.executable, "-m", "models"]
    where = str(store.folder)
    publisher = [sys.executable, "-m", "benchmarks.hostile.publisher", str(pool.folder), where, str(log)]
    roles = (
        Role("server", [*mu2net, "serve", where, "--port", str(port)], 2.0, 20.0),
        Role("worker", [*mu2net, "worker", where], 2.0, 16.0),
        Role("publisher", publisher, 0.3, 4.0),
        Role("gc", [*mu2net, "releases", "gc", where, "--keep", str(KEEP), "--grace-hours", "2"], 0.2, 3.0),
    )
    traffic = Traffic(url, [f"task-{at}" for at in range(TASKS)], expected)
    chaos = Chaos(folder, store, roles, url, log)
    traffic.start()
    started = time.time()
    try:
        chaos.run(kills)
        traffic.may_end.set()
        jobs, logs = chaos.finish()
    finally:
        traffic.may_end.set()
        chaos.end()
    died_at = {life.process.pid: life.ended_at for life in chaos.lives}
    live = store.release().tasks
    lost_jobs = [job for job, view in jobs.items() if view["state"] != "done" or view["task"] not in live]
    return {
        "kills": sum(life.ended_at is not None for life in chaos.lives),
        "by_role": Counter(life.role.name for life in chaos.lives if life.ended_at is not None),
        "releases": len(chaos.acknowledged()),
        "releases_lost": len(chaos.lost) + len(lost_at_the_end(store, log)),
        "lost": [*chaos.lost, *lost_at_the_end(store, log)][:5],
        "jobs": len(jobs),
        "jobs_lost": len(lost_jobs),
        "lost_jobs": [jobs[job] for job in lost_jobs][:5],
        "jobs_done_twice": sum(run_twice(store, view["task"], logs[job], died_at) for job, view in jobs.items()),
        "starts_of_jobs": [len(TAKEN_UP.findall(text)) for text in logs.values()],
        "answers": traffic.statuses,
        "wrong_answers": len(traffic.wrong),
        "first_wrong": traffic.wrong[:5],
        "seconds": round(time.time() - started, 1),
    }


def make_pool(folder: Path, store: Store) -> tuple[Store, dict[RouteId, np.ndarray]]:
    """Return a store that nobody disturbs, with the routes that are published, and what each must answer."""
    pool = make_store(folder, root=ROOT)
    lines, expected = [], {}
    image = tiny_photo(size=24, kind="PNG")
    for at in range(TASKS):
        for variant in range(ROUTES_PER_TASK):
            plan = TaskPlan(f"task-{at}", own_blocks=[variant % 3], seed=100 * at + variant + 10)
            route_id = store_route(pool, plan)
            lines.append(f"{plan.name} {route_id}")
            route = pool.route(route_id, needed_by="the benchmark")
            expected[route_id] = route_logits(pool, route, load_pixels(image, route.image_size)[None])[0]
    (folder / "routes.txt").write_text("\n".join(lines))
    for route_id in store.release().tasks.values():
        route = store.route(route_id, needed_by="the benchmark")
        expected[route_id] = route_logits(store, route, load_pixels(image, route.image_size)[None])[0]
    return pool, expected


class Chaos:
    """The processes, and who dies when."""

    def __init__(self, folder: Path, store: Store, roles: Sequence[Role], url: str, log: Path) -> None:
        self.lives: list[Life] = []
        self.lost: list[str] = []
        self._store = store
        self._roles = roles
        self._url = url
        self._log = log
        self._rng = np.random.default_rng(0)
        self._environment = {**os.environ, "HOME": str(folder)}
        self._token_file = folder / ".cache" / "mu2net" / "token"
        self._output = (folder / "output.log").open("ab")
        self._alive: dict[str, Life] = {}
        self._jobs: list[str] = []
        self._asked_at = 0.0

    def run(self, kills: int) -> None:
        """Keep all roles up and kill them until there were so many kills."""
        killed = 0
        next_look = 0.0
        while killed < kills:
            for role in self._roles:
                self._keep_up(role)
            for life in [life for life in self._alive.values() if time.time() > life.dies_at]:
                self._kill(life)
                killed += 1
                self._check_releases()
            if time.time() > next_look:
                next_look = time.time() + 5.0
                self._age()
                self._send_jobs()
                self._tell(killed, kills)
            time.sleep(FRAME_S)

    def _tell(self, killed: int, kills: int) -> None:
        print(f"{killed} of {kills} kills, {len(self.acknowledged())} releases, {len(self._jobs)} jobs", flush=True)

    def finish(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Let server and worker do what is left; return all acknowledged jobs and their logs."""
        for name in ("publisher", "gc"):
            if name in self._alive:
                self._kill(self._alive[name], counts=False)
        for life in self._alive.values():
            life.dies_at = float("inf")
        self._check_releases()
        deadline = time.time() + END_S
        while time.time() < deadline:
            for role in self._roles[:2]:
                self._keep_up(role, for_ever=True)
            try:
                found = {job: self._get(f"/v1/jobs/{job}").json() for job in self._jobs}
                if all(view.get("state") not in ("queued", "running") for view in found.values()):
                    return found, {job: self._get(f"/v1/jobs/{job}/log").text for job in self._jobs}
            except httpx.TransportError:
                pass
            time.sleep(1.0)
        raise AssertionError("the jobs are not done in time")

    def end(self) -> None:
        for life in list(self._alive.values()):
            self._kill(life, counts=False)
        self._output.close()

    def acknowledged(self) -> list[tuple[str, str, int]]:
        """Return task, route and number of every release that its publisher has acknowledged."""
        done = (line.split() for line in self._log.read_text().splitlines() if line.startswith("done "))
        return [(task, route, int(number)) for _, task, route, number in done]

    def _keep_up(self, role: Role, *, for_ever: bool = False) -> None:
        life = self._alive.get(role.name)
        if life is not None and life.process.poll() is None:
            return
        extra = [str(len(self.lives))] if role.name == "publisher" else []
        process = subprocess.Popen(
            [*role.command, *extra], env=self._environment, stdout=self._output, stderr=self._output
        )
        dies_at = time.time() + float(self._rng.uniform(role.first_s, role.last_s))
        life = Life(role, process, float("inf") if for_ever else dies_at)
        self._alive[role.name] = life
        self.lives.append(life)

    def _kill(self, life: Life, *, counts: bool = True) -> None:
        """Kill the process, of the server's now and then only the one below, which has the engine."""
        children = psutil.Process(life.process.pid).children() if life.process.poll() is None else []
        if counts and life.role.name == "server" and children and self._rng.random() < 0.5:
            children[0].kill()
            life.dies_at = time.time() + float(self._rng.uniform(life.role.first_s, life.role.last_s))
            self.lives.append(Life(life.role, life.process, 0.0, ended_at=time.time()))
            return
        life.process.kill()
        life.process.wait()
        if counts:
            life.ended_at = time.time()
        del self._alive[life.role.name]

    def _check_releases(self) -> None:
        acknowledged = self.acknowledged()
        if acknowledged:
            newest = max(number for _, _, number in acknowledged)
            active = self._store.current().release
            if active < newest:
                self.lost.append(f"release {newest} was acknowledged, and {active} is active")

    def _age(self) -> None:
        """Make what is no longer young old, as if hours had passed."""
        now = time.time()
        for path in [*(self._store.folder / "objects").iterdir(), *(self._store.folder / "releases").iterdir()]:
            try:
                modified = path.stat().st_mtime
                if YOUNG_S < now - modified < AGE_S:
                    os.utime(path, (now - AGE_S, now - AGE_S))
            except FileNotFoundError:  # collected meanwhile
                continue

    def _send_jobs(self) -> None:
        """Keep some jobs unfinished; one that was not acknowledged does not count."""
        try:
            views = self._get("/v1/jobs").json().get("jobs", ())
            if sum(view["state"] in ("queued", "running") for view in views) < JOBS_AT_ONCE:
                headers = {"authorization": f"Bearer {self._token_file.read_text().strip()}"}
                with httpx.Client(base_url=self._url, headers=headers, timeout=30) as client:
                    files = {f"{'ab'[at % 2]}/{at}.png": tiny_photo(at, 16, "PNG") for at in range(24)}
                    self._jobs.append(send(client, f"job-{len(self._jobs)}-{time.time_ns()}", files, BUDGET_S))
        except (httpx.HTTPError, OSError, ValueError, KeyError):
            return  # the server is away, or was killed in between

    def _get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self._url}{path}", timeout=30)


def lost_at_the_end(store: Store, log: Path) -> list[str]:
    """Return which acknowledged routes a later release lacks without being asked to, and what is damaged."""
    allowed: dict[str, set[str]] = {}  # the last acknowledged route of each task, and those tried since
    for line in log.read_text().splitlines():
        verb, task, route, *_ = line.split()
        allowed[task] = {route} if verb == "done" else allowed.get(task, set()) | {route}
    tasks = store.release().tasks
    lost = [
        f"task {task} has route {tasks.get(TaskName(task))}, acknowledged or tried were {sorted(routes)}"
        for task, routes in allowed.items()
        if tasks.get(TaskName(task)) not in routes and any(f"done {task} " in text for text in [log.read_text()])
    ]
    return lost + [str(problem) for problem in verify(store, store.release_numbers()).problems]
