"""The queue of jobs: leases, cancelling, and that no job is lost or held twice, on SQLite and on PostgreSQL."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sql

from models.budget import parse_budget
from models.errors import InvalidConfig, LeaseLost, QueueUnreachable, QuotaExceeded, TaskBusy, UnknownJob
from models.jobs import JOBS, MAX_FRUITLESS_STARTS, Claim, JobProgress, JobQueue, JobRequest, Quota, queue_url
from models.names import TaskName
from models.store import Store

BIRDS, FISH = (JobRequest(TaskName(name), "add", "0" * 64) for name in ("birds", "fish"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, where its programs are installed."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("needs PostgreSQL's initdb and pg_ctl")
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="mu2net-pg-") as folder:  # pytest's own can only be entered by one user
        if user is not None:
            shutil.chown(folder, user)
        control = ["pg_ctl", "-D", f"{folder}/data", "-l", f"{folder}/log"]
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"

        def run(*command: str) -> None:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder)

        run("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "mu2net", "--no-sync")
        run(*control, "-o", options, "-w", "start")
        try:
            yield f"postgresql+psycopg://mu2net@/postgres?host={folder}"
        finally:
            run(*control, "-m", "immediate", "stop")


@pytest.fixture(params=["sqlite", "postgresql"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> JobQueue:
    if request.param == "sqlite":
        return JobQueue(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    queue = JobQueue(request.getfixturevalue("postgres"))
    with queue._writing() as connection:
        connection.execute(sql.delete(JOBS))
    return queue


def claimed(queue: JobQueue) -> Claim:
    claim = queue.claim()
    assert claim is not None
    return claim


def set_clock_back(queue: JobQueue, claim: Claim, seconds: float) -> None:
    """What a clock that is set back does to a lease: it ends so much later."""
    with queue._writing() as connection:
        later = JOBS.c.leased_until + seconds
        connection.execute(sql.update(JOBS).where(JOBS.c.lease == claim.lease).values(leased_until=later))


@pytest.mark.parametrize("seconds", [30.0, 3600.0, 365 * 86400.0])
def test_a_dead_workers_job_is_taken_though_the_clock_was_set_back(queue: JobQueue, seconds: float) -> None:
    job = queue.submit(BIRDS)
    set_clock_back(queue, claimed(queue), seconds)
    assert claimed(queue).job.id == job.id


def test_a_dead_workers_job_is_cancelled_and_sent_again_though_the_clock_was_set_back(queue: JobQueue) -> None:
    job = queue.submit(BIRDS)
    set_clock_back(queue, claimed(queue), 3600.0)
    assert queue.cancel(job.id).state == "cancelled"
    again = queue.submit(BIRDS)
    assert claimed(queue).job.id == again.id


def test_a_living_worker_keeps_its_job_when_the_clock_is_set_back(queue: JobQueue) -> None:
    queue.submit(BIRDS)
    claim = claimed(queue)
    set_clock_back(queue, claim, 3600.0)
    queue.renew(claim)
    assert queue.claim() is None


def let_lease_end(queue: JobQueue, claim: Claim) -> None:
    """What the clock does to a worker that is dead."""
    with queue._writing() as connection:
        connection.execute(sql.update(JOBS).where(JOBS.c.lease == claim.lease).values(leased_until=0.0))


def test_a_job_goes_through_the_queue(queue: JobQueue) -> None:
    job = queue.submit(BIRDS)
    assert (job.state, job.progress, job.seconds) == ("queued", JobProgress(), 0.0)
    claim = claimed(queue)
    assert (claim.job.id, claim.job.state, claim.job.starts) == (job.id, "running", 1)
    queue.tell(claim, JobProgress("training", 1, None, 2, 0.5, 3, 10.0))
    queue.log(job.id, "a line")
    assert queue.job(job.id).progress == JobProgress("training", 1, None, 2, 0.5, 3, 10.0)
    queue.end(claim, "done")
    found = queue.job(job.id)
    assert (found.state, found.progress.phase, found.progress.release, found.is_over) == ("done", "finished", 3, True)
    assert queue.log_text(job.id).endswith(" a line\n")
    assert queue.claim() is None


def test_a_job_that_a_worker_has_taken_does_not_wait_for_one(queue: JobQueue) -> None:
    job = queue.submit(replace(BIRDS, budget="15s"))
    assert queue.job(job.id).progress.phase == "waiting for a worker"
    claim = claimed(queue)
    assert claim.job.progress.phase == queue.job(job.id).progress.phase == "loading"
    queue.give_back(claim)
    assert queue.job(job.id).progress.phase == "waiting for a worker"


def test_jobs_are_listed_newest_first_and_worked_on_oldest_first(queue: JobQueue) -> None:
    first, second = queue.submit(BIRDS), queue.submit(FISH)
    assert [job.id for job in queue.jobs(limit=10)] == [second.id, first.id]
    assert [job.id for job in queue.jobs(limit=1)] == [second.id]
    assert [claimed(queue).job.id for _ in range(2)] == [first.id, second.id]


def test_a_task_has_one_unfinished_job(queue: JobQueue) -> None:
    job = queue.submit(BIRDS)
    told = rf"^task 'birds' has a job already, {job.id}: wait for its end, or cancel it with DELETE /v1/jobs/{job.id}$"
    for refuse in (lambda: queue.submit(BIRDS), lambda: queue.require_idle(BIRDS.task)):
        with pytest.raises(TaskBusy, match=told):
            refuse()
    queue.end(claimed(queue), "done")
    assert queue.submit(BIRDS).id != job.id


def test_a_job_whose_worker_died_is_taken_up_again_and_the_dead_one_can_change_nothing(queue: JobQueue) -> None:
    queue.submit(BIRDS)
    dead = claimed(queue)
    assert queue.claim() is None
    let_lease_end(queue, dead)
    alive = claimed(queue)
    assert (alive.job.id, alive.job.starts) == (dead.job.id, 2)
    for write in (
        lambda: queue.renew(dead),
        lambda: queue.tell(dead, JobProgress("training")),
        lambda: queue.end(dead, "failed"),
    ):
        with pytest.raises(LeaseLost, match=f"^job {dead.job.id} is held by another worker, or over"):
            write()
    queue.give_back(dead)
    assert queue.renew(alive).state == "running"


def test_a_job_that_was_given_back_is_there_for_the_next(queue: JobQueue) -> None:
    job = queue.submit(BIRDS)
    queue.give_back(claimed(queue))
    assert queue.job(job.id).state == "queued"
    assert claimed(queue).job.id == job.id


def test_cancelling(queue: JobQueue) -> None:
    waiting = queue.submit(BIRDS)
    assert queue.cancel(waiting.id).state == "cancelled"
    running = queue.submit(FISH)
    claim = claimed(queue)
    assert queue.cancel(running.id).state == "running"
    assert queue.renew(claim).is_cancelling
    let_lease_end(queue, claim)
    assert queue.cancel(running.id).state == "cancelled"
    assert queue.cancel(running.id).state == "cancelled"
    with pytest.raises(UnknownJob, match=r"^there is no job 'nothing': GET /v1/jobs lists them$"):
        queue.cancel("nothing")


def test_a_job_that_only_kills_its_workers_is_given_up(queue: JobQueue) -> None:
    queue.submit(BIRDS)
    for _ in range(MAX_FRUITLESS_STARTS):
        claim = claimed(queue)
        assert not queue.is_given_up(claim)
        let_lease_end(queue, claim)
    queue.tell(claim, JobProgress("training"), is_fruitful=True)
    claim = claimed(queue)
    assert not queue.is_given_up(claim)
    for _ in range(MAX_FRUITLESS_STARTS):
        let_lease_end(queue, claim)
        claim = claimed(queue)
    assert queue.is_given_up(claim)


def test_of_many_workers_at_once_one_gets_a_job(queue: JobQueue) -> None:
    jobs = {queue.submit(JobRequest(TaskName(f"task{number}"), "add", "")).id for number in range(5)}
    claims: list[Claim] = []

    def work() -> None:
        while claim := queue.claim():
            claims.append(claim)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claim.job.id for claim in claims) == sorted(jobs)


def keyed(task: str, key: str | None, budget: str = "5m") -> JobRequest:
    return JobRequest(TaskName(task), "add", "0" * 64, budget, key=key)


def test_keys_take_turns_and_each_ones_jobs_keep_their_order(queue: JobQueue) -> None:
    order = [("a1", "a"), ("a2", "a"), ("a3", "a"), ("n1", None), ("b1", "b"), ("b2", "b"), ("n2", None)]
    for task, key in order:
        assert queue.submit(keyed(task, key)).request.key == key
    done = []
    while claim := queue.claim():
        done.append(claim.job.request.task)
        queue.end(claim, "done")
    assert done == ["a1", "n1", "b1", "a2", "n2", "b2", "a3"]


def test_a_job_that_is_given_back_over_and_over_lets_other_keys_go_first(queue: JobQueue) -> None:
    queue.submit(keyed("a1", "a"))
    queue.submit(keyed("b1", "b"))
    queue.give_back(claimed(queue))
    assert claimed(queue).job.request.task == "b1"
    assert claimed(queue).job.request.task == "a1"


def test_a_quota_is_held_among_those_who_ask_at_the_same_moment(queue: JobQueue) -> None:
    outcomes: list[str] = []
    quota = Quota(jobs=3, budget_s=10_000)

    def ask(number: int) -> None:
        try:
            queue.submit(keyed(f"task{number}", "a"), quota)
            outcomes.append("taken")
        except QuotaExceeded as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = "3 jobs of this client are not over, and 3 are allowed: wait for the end of one, or cancel one with DELETE "
    assert outcomes.count("taken") == 3
    assert [text for text in outcomes if text.startswith(told)] == [text for text in outcomes if text != "taken"]
    queue.submit(keyed("other", "b"), quota)
    with pytest.raises(QuotaExceeded, match=r"budgets of 600 s together, and 500 s are allowed"):
        queue.require_quota(keyed("another", "b"), Quota(jobs=3, budget_s=500))


def test_a_queue_of_an_older_version_is_brought_up_to_date_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    old = sql.MetaData()
    columns = [
        sql.Column(column.name, column.type, primary_key=column.primary_key, nullable=column.nullable)
        for column in JOBS.columns
        if column.name not in ("key", "served")
    ]
    table = sql.Table("jobs", old, *columns)
    engine = sql.create_engine(f"sqlite:///{path}")
    old.create_all(engine)
    row = {"id": "x", "task": "owls", "kind": "add", "upload": "", "private": False, "parents": "[]", "state": "queued",
           "phase": "", "generation": 0, "candidates": 0, "created": 1.0, "starts": 0, "fruitless_starts": 0,
           "is_cancelling": False}  # fmt: skip
    with engine.begin() as connection:
        connection.execute(sql.insert(table).values(row))
    queues = [JobQueue(f"sqlite:///{path}") for _ in range(4)]
    threads = [threading.Thread(target=queue.job, args=("x",)) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queues[0].job("x").request.key is None
    queues[1].submit(keyed("birds", "a"))
    assert [claimed(queues[2]).job.request.task for _ in range(2)] == ["owls", "birds"]
    with engine.begin() as connection:  # an older version that is still running
        connection.execute(sql.insert(table).values(row | {"id": "y", "task": "fish"}))
    assert claimed(queues[3]).job.id == "y"


def test_a_queue_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(QueueUnreachable, match=r"cannot be used \(unable to open database file\): check that it runs"):
        JobQueue(f"sqlite:///{tmp_path / 'nowhere' / 'jobs.sqlite'}").jobs(limit=1)
    with pytest.raises(InvalidConfig, match=r"^the queue's URL begins with 'redis': use postgresql\+psycopg://USER@"):
        JobQueue("redis://somewhere")


def test_the_jobs_of_a_store_behind_a_url_need_a_place_that_all_reach(opened_store: Store, tmp_path: Path) -> None:
    assert queue_url(opened_store, None) == f"sqlite:///{opened_store.folder / 'jobs.sqlite'}"
    release = opened_store.release()
    remote = Store.begin("memory://jobs", lambda _: release, cache=tmp_path / "cache")
    with pytest.raises(InvalidConfig, match=r"^the jobs of memory://jobs need a queue .* set MU2NET_QUEUE to "):
        queue_url(remote, None)
    assert queue_url(remote, "sqlite:////somewhere") == "sqlite:////somewhere"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("5m", 300.0), (" 1.5h ", 5400.0)])
def test_budgets(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "0s", "-1m", "5 minutes", "200h", "1e3s"])
def test_no_budgets(text: str) -> None:
    with pytest.raises(InvalidConfig, match=r"is no time: write 90s, 5m or 1\.5h, at most 604800s$"):
        parse_budget(text)
