"""Workers: a job becomes a live task, early and then better; one that is killed, cancelled or wrong ends well."""

import errno
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sql

from evolve import worker
from evolve.anytime import anytime_config, first_size
from evolve.journal import Journal
from evolve.loop import evolve_task
from evolve.run import Progress
from evolve.task import Task
from evolve.worker import JobStopped, work_on
from models.errors import InvalidConfig, InvalidData, StoreUnreachable
from models.jobs import JOBS, Claim, Job, JobQueue, JobRequest, queue_url
from models.names import TaskName
from models.store import Store
from models.uploads import Uploads, drop_unused
from tests.support.images import zipped
from tests.support.tiny import TINY_CONFIG, draw_image_folder

BIRDS = TaskName("birds")


@pytest.fixture
def queue(opened_store: Store) -> JobQueue:
    return JobQueue(queue_url(opened_store, None))


def submitted(store: Store, queue: JobQueue, data: Path, budget: str = "1s") -> Job:
    return queue.submit(JobRequest(BIRDS, "add", Uploads(store).put(BIRDS, data), budget))


def claimed(queue: JobQueue) -> Claim:
    claim = queue.claim()
    assert claim is not None
    return claim


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return zipped(draw_image_folder(tmp_path / "birds", images_per_class=12))


def started(store: Store) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "models", "worker", str(store.folder), "--once"])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow  # two workers at the lowest priority import torch one after the other
def test_a_killed_workers_job_goes_on_where_it_was(opened_store: Store, queue: JobQueue, data: Path) -> None:
    job = submitted(opened_store, queue, data, budget="5s")
    first = started(opened_store)
    journal = Journal(opened_store, BIRDS, 1)
    wait_until(lambda: journal.generation(0) is not None)
    first.kill()
    first.wait()
    begun = opened_store.release().number
    assert BIRDS in opened_store.release().tasks, "it is live before its job is over"
    generation = journal.generation(0)
    assert queue.job(job.id).state == "running"
    assert queue.claim() is None
    with queue._writing() as connection:  # what waiting does
        connection.execute(sql.update(JOBS).values(leased_until=0.0))
    assert started(opened_store).wait(120) == 0
    found = queue.job(job.id)
    assert (found.state, found.starts, found.error) == ("done", 2, None)
    assert found.progress.candidates == 2 * found.progress.generation >= 2
    assert journal.generation(0) == generation
    assert journal.end() is not None
    assert found.progress.release == opened_store.release().number >= begun
    assert ", start 2\n" in queue.log_text(job.id)
    drop_unused(opened_store, queue, BIRDS)
    assert Uploads(opened_store).newest(BIRDS) == job.request.upload


@pytest.mark.skipif(not worker.AUTOGROUP.exists(), reason="this system does not schedule by sessions")
@pytest.mark.parametrize("has_own_session", [True, False])
def test_a_worker_puts_its_own_session_behind_all_others(has_own_session: bool) -> None:
    code = "from evolve.worker import AUTOGROUP, step_back; step_back(); print(AUTOGROUP.read_text())"
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, start_new_session=has_own_session, check=True, capture_output=True, text=True).stdout
    assert told.strip().endswith("nice 19") == has_own_session
    assert os.getpriority(os.PRIO_PROCESS, 0) < worker.NICENESS, "what started it goes on as before"


def test_a_stopped_worker_gives_its_job_back(
    opened_store: Store, queue: JobQueue, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submitted(opened_store, queue, data)

    def work(claim: Claim) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    with pytest.raises(SystemExit, match="143"):
        work_on(claimed(queue), opened_store, queue, work)
    assert (queue.job(job.id).state, queue.job(job.id).progress.phase) == ("queued", "waiting for a worker")


def test_a_cancelled_job_stops_and_leaves_nothing(
    opened_store: Store, queue: JobQueue, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "BEAT_S", 0.01)
    job = submitted(opened_store, queue, data)

    def work(claim: Claim) -> None:
        queue.cancel(job.id)
        time.sleep(60)
        pytest.fail("it went on")

    work_on(claimed(queue), opened_store, queue, work)
    assert queue.job(job.id).state == "cancelled"
    assert Uploads(opened_store).digests(BIRDS) == set()


def test_a_worker_that_lost_its_lease_stops_and_changes_nothing(
    opened_store: Store, queue: JobQueue, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "BEAT_S", 0.01)
    job = submitted(opened_store, queue, data)
    others: list[Claim] = []

    def take_over() -> None:
        while not others:  # the lease may be renewed between these two
            with queue._writing() as connection:
                connection.execute(sql.update(JOBS).values(leased_until=0.0))
            if claim := queue.claim():
                others.append(claim)

    def work(claim: Claim) -> None:
        other.start()
        time.sleep(60)
        pytest.fail("it went on")

    other = threading.Thread(target=take_over)
    work_on(claimed(queue), opened_store, queue, work)
    other.join()
    assert queue.job(job.id).state == "running"
    queue.renew(others[0])


def test_a_job_is_not_stopped_in_the_middle_of_an_import(
    opened_store: Store, queue: JobQueue, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is half loaded, as torch was, cannot be loaded again: every later job of the process failed."""
    monkeypatch.setattr(worker, "BEAT_S", 0.01)
    (tmp_path / "slow_to_load.py").write_text("import time\ntime.sleep(1)\nis_whole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    job = submitted(opened_store, queue, data)

    def work(claim: Claim) -> None:
        queue.cancel(job.id)
        importlib.import_module("slow_to_load")
        time.sleep(60)
        pytest.fail("it went on")

    assert work_on(claimed(queue), opened_store, queue, work) is None
    assert sys.modules.pop("slow_to_load").is_whole
    assert queue.job(job.id).state == "cancelled"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch.so: cannot open"),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("file write failed"),
        StoreUnreachable("away"),
    ],
    ids=["memory", "import", "disk", "library", "network"],
)
def test_an_error_of_the_machine_is_none_of_the_job(
    opened_store: Store, queue: JobQueue, data: Path, error: Exception
) -> None:
    job = submitted(opened_store, queue, data)

    def work(claim: Claim) -> None:
        raise error

    assert work_on(claimed(queue), opened_store, queue, work) is error
    assert queue.job(job.id).state == "queued"
    assert Uploads(opened_store).digests(BIRDS) == {job.request.upload}
    assert "another worker goes on from here" in queue.log_text(job.id)


def test_a_worker_that_shall_not_wait_fails_on_a_damaged_queue(opened_store: Store) -> None:
    (opened_store.folder / "jobs.sqlite").write_bytes(b"garbage" * 1000)
    ended = subprocess.run(
        [sys.executable, "-m", "models", "worker", str(opened_store.folder), "--once"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "is damaged (file is not a database): stop all servers and workers, restore it" in ended.stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InvalidData("mend this"), "mend this"),
        (OSError("image file is truncated"), "image file is truncated"),
        (ValueError("x"), "the job failed unexpectedly (ValueError: x): its log has more"),
    ],
    ids=["expected", "image", "unexpected"],
)
def test_a_failed_job_says_why_and_leaves_nothing(
    opened_store: Store, queue: JobQueue, data: Path, error: Exception, told: str
) -> None:
    job = submitted(opened_store, queue, data)

    def work(claim: Claim) -> None:
        raise error

    work_on(claimed(queue), opened_store, queue, work)
    assert (queue.job(job.id).state, queue.job(job.id).error) == ("failed", told)
    assert told in queue.log_text(job.id)
    assert Uploads(opened_store).digests(BIRDS) == set()


def test_each_better_candidate_is_published_at_once(opened_store: Store, toy_task: Task) -> None:
    before = opened_store.release()
    told: list[Progress] = []
    config = replace(TINY_CONFIG, anytime=True, generations=3, epochs=4.0)
    outcome = evolve_task(toy_task, opened_store, config, report=told.append)
    published = [progress for progress in told if progress.release is not None]
    scores = [progress.record.score for progress in published]
    assert scores == sorted(set(scores))
    assert scores[-1] == max(progress.record.score for progress in told)
    assert [progress.release for progress in published] == list(
        range(before.number + 1, before.number + 1 + len(published))
    )
    assert published[0].record.quality > 1 / 3
    assert outcome.release.number == before.number + len(published) + 1
    assert before.tasks.items() <= outcome.release.tasks.items(), "no other task has changed"
    plain = evolve_task(replace(toy_task, name=toy_task.name), opened_store, replace(config, anytime=False))
    assert plain.route.quality is not None


def test_a_resumed_run_publishes_nothing_older_again(opened_store: Store, toy_task: Task) -> None:
    config = replace(TINY_CONFIG, anytime=True, generations=3, epochs=4.0)
    told: list[Progress] = []

    def stop(progress: Progress) -> None:
        told.append(progress)
        if progress.generation == 2:
            raise JobStopped

    with pytest.raises(JobStopped):
        evolve_task(toy_task, opened_store, config, report=stop)
    live = opened_store.release().tasks[toy_task.name]
    again: list[Progress] = []
    outcome = evolve_task(toy_task, opened_store, config, report=again.append)
    assert [progress.release for progress in again if progress.is_replayed] == [None] * 4
    assert opened_store.route(live, needed_by="the test").quality is not None
    assert outcome.is_new


def test_a_budget_of_time_ends_between_generations(opened_store: Store, toy_task: Task) -> None:
    told: list[Progress] = []
    config = replace(TINY_CONFIG, minutes=1e-6)
    evolve_task(toy_task, opened_store, config, report=told.append)
    assert [progress.generation for progress in told] == [0, 0]


def test_wanted_parents_are_tried_first(opened_store: Store, toy_task: Task) -> None:
    told: list[Progress] = []
    config = replace(TINY_CONFIG, parents="shapes_b", children_per_generation=1)
    evolve_task(toy_task, opened_store, config, report=told.append)
    assert told[0].record.candidate.parent.startswith("shapes_b@")
    with pytest.raises(InvalidConfig, match=r"'shapes_z' is no other task of release 3, or private; known: shapes_a, "):
        evolve_task(toy_task, opened_store, replace(config, parents="shapes_z"))


def test_first_candidates_are_small(opened_store: Store, toy_task: Task) -> None:
    config = anytime_config(TINY_CONFIG, "90s", opened_store.root(), toy_task.train)
    assert (config.minutes, config.anytime, config.depth, config.image_size) == (1.5, True, 1, 8)
    wide = tuple(range(16, 225, 16))
    assert [first_size(wide, native) for native in (8, 28, 32, 33, 500)] == [16, 32, 32, 48, 112]
