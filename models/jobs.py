"""Jobs: what was asked for over HTTP, and the durable queue that brings it to a worker.

A table behind a SQLAlchemy URL: SQLite in the store's folder where nothing else is said, PostgreSQL where
several machines work. The usual queues (huey, persist-queue, RQ) forget a job when they hand it out, or have
no lease that is bound to whoever holds it; here a job is held by a lease that must be renewed, and every
write of a worker names its lease, so a worker that was given up can change nothing any more. All times are
those of the queue's database, so machines need no common clock.
"""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.ext.compiler import compiles

from models.errors import InvalidConfig, LeaseLost, QueueUnreachable, TaskBusy, UnknownJob
from models.names import TaskName
from models.store import Store

JobKind = Literal["add", "iterate"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]

LEASE_S = 15.0  # after which a silent worker's job is taken up by another
# A job whose workers die this often in a row without one more candidate is given up: it may be what kills them.
MAX_FRUITLESS_STARTS = 10
BUSY_TIMEOUT_S = 30.0  # that SQLite waits for another writer
WAITING, LOADING, FINISHED = "waiting for a worker", "loading", "finished"


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What is to be done. `upload` is the digest of the task's images, see `models/uploads.py`."""

    task: TaskName
    kind: JobKind
    upload: str
    budget: str | None = None  # see `models.budget`
    private: bool = False
    parents: tuple[TaskName, ...] = ()  # tasks whose routes are tried first


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job has come. Times in seconds."""

    phase: str = WAITING
    generation: int = 0  # those that are done
    generations: int | None = None  # None: until the time is over
    candidates: int = 0
    best_quality: float | None = None
    release: int | None = None  # the last that the job published
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the queue has it."""

    id: str
    request: JobRequest
    state: JobState
    progress: JobProgress
    seconds: float  # since its first worker began
    created: str  # UTC, ISO 8601
    error: str | None
    starts: int  # how often a worker took it up
    is_cancelling: bool

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Claim:
    """A job held by one worker, who proves it by the lease."""

    job: Job
    lease: str


class _Clock(sql.sql.functions.FunctionElement[float]):
    """The database's own clock in seconds of Unix time, the moment of the call and not of the transaction."""

    type = sql.Float()
    inherit_cache = True


@compiles(_Clock, "sqlite")
def _sqlite_clock(element: _Clock, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(_Clock, "postgresql")
def _postgresql_clock(element: _Clock, compiler: Any, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::float8"


NOW = _Clock()
METADATA = sql.MetaData()
JOBS = sql.Table(
    "jobs",
    METADATA,
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=True),  # the order of arrival
    sql.Column("id", sql.String(32), nullable=False, unique=True),
    sql.Column("task", sql.String(64), nullable=False, index=True),
    sql.Column("kind", sql.String(16), nullable=False),
    sql.Column("upload", sql.String(64), nullable=False),
    sql.Column("budget", sql.String(64)),
    sql.Column("private", sql.Boolean, nullable=False),
    sql.Column("parents", sql.Text, nullable=False),
    sql.Column("state", sql.String(16), nullable=False, index=True),
    sql.Column("phase", sql.String(200), nullable=False),
    sql.Column("generation", sql.Integer, nullable=False),
    sql.Column("generations", sql.Integer),
    sql.Column("candidates", sql.Integer, nullable=False),
    sql.Column("best_quality", sql.Float),
    sql.Column("release", sql.Integer),
    sql.Column("seconds_left", sql.Float),
    sql.Column("error", sql.Text),
    sql.Column("created", sql.Float, nullable=False),
    sql.Column("started", sql.Float),
    sql.Column("ended", sql.Float),
    sql.Column("starts", sql.Integer, nullable=False),
    sql.Column("fruitless_starts", sql.Integer, nullable=False),
    sql.Column("is_cancelling", sql.Boolean, nullable=False),
    sql.Column("lease", sql.String(64)),
    sql.Column("leased_until", sql.Float),
)
UNFINISHED = JOBS.c.state.in_(("queued", "running"))
# The database itself refuses a second unfinished job of a task, whoever asks at the same moment.
sql.Index(
    "one_unfinished_job_a_task",
    JOBS.c.task,
    unique=True,
    sqlite_where=sql.text("state IN ('queued', 'running')"),
    postgresql_where=sql.text("state IN ('queued', 'running')"),
)
LINES = sql.Table(
    "job_lines",
    METADATA,
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("job", sql.String(32), nullable=False, index=True),
    sql.Column("at", sql.Float, nullable=False),
    sql.Column("text", sql.Text, nullable=False),
)


def queue_url(store: Store, url: str | None) -> str:
    """Return where the jobs of a store are kept: `url`, or a SQLite file in the store's folder.

    Raises:
        InvalidConfig: the store is behind a URL, so its folder here is none that others see.
    """
    if url is not None:
        return url
    if store.is_remote:
        raise InvalidConfig(
            f"the jobs of {store.files.shown()} need a queue that its servers and workers all reach: set MU2NET_QUEUE "
            "to postgresql+psycopg://USER@HOST/DATABASE, or to sqlite:////PATH/jobs.sqlite if all run on this machine"
        )
    return f"sqlite:///{store.folder.absolute() / 'jobs.sqlite'}"


class JobQueue:
    """The jobs behind a SQLAlchemy URL; connects when it is first used. Safe in several threads and processes."""

    def __init__(self, url: str) -> None:
        try:
            self._url = sql.make_url(url)
        except ArgumentError as error:
            raise InvalidConfig(_wrong_url(url)) from error
        if self._url.get_backend_name() not in ("sqlite", "postgresql"):
            raise InvalidConfig(_wrong_url(url))

    @property
    def shown(self) -> str:
        """Where the jobs are, for people: without the password."""
        return self._url.render_as_string(hide_password=True)

    def submit(self, request: JobRequest) -> Job:
        """Add a job.

        Raises:
            TaskBusy: the task has one that is not over.
        """
        job = secrets.token_hex(8)
        values = {
            "id": job,
            "task": request.task,
            "kind": request.kind,
            "upload": request.upload,
            "budget": request.budget,
            "private": request.private,
            "parents": json.dumps(request.parents),
            "state": "queued",
            "phase": WAITING,
            "generation": 0,
            "candidates": 0,
            "starts": 0,
            "fruitless_starts": 0,
            "is_cancelling": False,
            "created": NOW,
        }
        try:
            with self._writing() as connection:
                connection.execute(sql.insert(JOBS).values(values))
        except IntegrityError as error:
            raise TaskBusy(self._busy(request.task)) from error
        return self.job(job)

    def require_idle(self, task: TaskName) -> None:
        """Raise TaskBusy if the task has a job that is not over."""
        if self.unfinished(task):
            raise TaskBusy(self._busy(task))

    def _busy(self, task: TaskName) -> str:
        other = next((job.id for job in self.unfinished(task)), "just ended")
        return f"task {task!r} has a job already, {other}: wait for its end, or cancel it with DELETE /v1/jobs/{other}"

    def job(self, job: str) -> Job:
        """Return a job; UnknownJob if there is none."""
        found = self._select(sql.select(JOBS, NOW.label("now")).where(JOBS.c.id == job))
        if not found:
            raise unknown_job(job)
        return found[0]

    def jobs(self, *, limit: int) -> list[Job]:
        """Return the newest jobs, the newest first."""
        return self._select(sql.select(JOBS, NOW.label("now")).order_by(JOBS.c.number.desc()).limit(limit))

    def unfinished(self, task: TaskName | None = None) -> list[Job]:
        """Return the jobs that are not over, of one task or of all, the oldest first."""
        query = sql.select(JOBS, NOW.label("now")).where(UNFINISHED).order_by(JOBS.c.number)
        return self._select(query if task is None else query.where(JOBS.c.task == task))

    def cancel(self, job: str) -> Job:
        """Have a job stopped: at once if nobody works on it, else within seconds by its worker.

        What it has published stays. One that is over stays as it is. UnknownJob if there is none.
        """
        ended = {"state": "cancelled", "phase": FINISHED, "ended": NOW, "seconds_left": None, "lease": None}
        is_idle = sql.or_(JOBS.c.state == "queued", sql.and_(JOBS.c.state == "running", JOBS.c.leased_until < NOW))
        with self._writing() as connection:
            connection.execute(sql.update(JOBS).where(JOBS.c.id == job, is_idle).values(ended))
            asked = sql.update(JOBS).where(JOBS.c.id == job, JOBS.c.state == "running")
            connection.execute(asked.values(is_cancelling=True))
        return self.job(job)

    # what a worker does

    def claim(self) -> Claim | None:
        """Take the oldest job that nobody holds, None if there is none. Its lease must be renewed from now on."""
        lease = secrets.token_hex(16)
        is_free = sql.or_(JOBS.c.state == "queued", sql.and_(JOBS.c.state == "running", JOBS.c.leased_until < NOW))
        oldest = sql.select(JOBS.c.number).where(is_free).order_by(JOBS.c.number).limit(1).scalar_subquery()
        take = (
            # asked again of the row itself: another worker may have been faster
            sql.update(JOBS)
            .where(JOBS.c.number == oldest, is_free)
            .values(
                state="running",
                phase=LOADING,  # the worker imports what trains
                lease=lease,
                leased_until=NOW + LEASE_S,
                started=sql.func.coalesce(JOBS.c.started, NOW),
                starts=JOBS.c.starts + 1,
                fruitless_starts=JOBS.c.fruitless_starts + 1,
            )
        )
        with self._writing() as connection:
            if not connection.execute(take).rowcount:
                return None
        (job,) = self._select(sql.select(JOBS, NOW.label("now")).where(JOBS.c.lease == lease))
        return Claim(job, lease)

    def is_given_up(self, claim: Claim) -> bool:
        """Whether too many workers died in this job without one more candidate."""
        with self._connected() as connection:
            starts = connection.execute(sql.select(JOBS.c.fruitless_starts).where(JOBS.c.lease == claim.lease))
            return bool((starts.scalar() or 0) > MAX_FRUITLESS_STARTS)

    def renew(self, claim: Claim) -> Job:
        """Hold a job for another lease and return it; LeaseLost if it is held no more."""
        self._change(claim, {"leased_until": NOW + LEASE_S})
        return self.job(claim.job.id)

    def tell(self, claim: Claim, progress: JobProgress, *, is_fruitful: bool = False) -> None:
        """Record how far the job has come; LeaseLost if it is held no more.

        Args:
            claim: the worker's.
            progress: replaces what was recorded.
            is_fruitful: whether something was finished that the next worker need not do again.
        """
        values: dict[str, object] = {name: getattr(progress, name) for name in JobProgress.__slots__}
        self._change(claim, values | ({"fruitless_starts": 0} if is_fruitful else {}))

    def end(self, claim: Claim, state: JobState, error: str | None = None) -> None:
        """Record how the job ended; LeaseLost if it is held no more."""
        values = {"state": state, "error": error, "phase": FINISHED, "seconds_left": None, "ended": NOW, "lease": None}
        self._change(claim, values)

    def give_back(self, claim: Claim) -> None:
        """Let another worker go on with the job; nothing happens if it is held no more."""
        values = {"state": "queued", "phase": WAITING, "lease": None, "fruitless_starts": 0}
        with self._writing() as connection:
            connection.execute(sql.update(JOBS).where(JOBS.c.lease == claim.lease).values(values))

    def _change(self, claim: Claim, values: Mapping[str, object]) -> None:
        with self._writing() as connection:
            changed = connection.execute(sql.update(JOBS).where(JOBS.c.lease == claim.lease).values(values)).rowcount
        if not changed:
            raise LeaseLost(f"job {claim.job.id} is held by another worker, or over: this worker leaves it alone")

    # the log

    def log(self, job: str, text: str) -> None:
        with self._writing() as connection:
            connection.execute(sql.insert(LINES).values(job=job, at=NOW, text=text))

    def log_text(self, job: str) -> str:
        """Return a job's log, one line an event, each with its time; UnknownJob if there is none."""
        self.job(job)
        with self._connected() as connection:
            rows = connection.execute(sql.select(LINES).where(LINES.c.job == job).order_by(LINES.c.number)).all()
        return "".join(f"{_iso(row.at)} {row.text}\n" for row in rows)

    def forget_task(self, task: TaskName) -> None:
        """Delete the logs of a task's jobs, which may name its classes and files."""
        mine = sql.select(JOBS.c.id).where(JOBS.c.task == task)
        with self._writing() as connection:
            connection.execute(sql.delete(LINES).where(LINES.c.job.in_(mine)))

    # the database

    @cached_property
    def _engine(self) -> sql.Engine:
        is_sqlite = self._url.get_backend_name() == "sqlite"
        try:
            engine = sql.create_engine(
                self._url,
                poolclass=sql.NullPool,  # a look now and then needs no connection kept open
                connect_args={"timeout": BUSY_TIMEOUT_S} if is_sqlite else {},
            )
        except (ImportError, NoSuchModuleError) as error:
            raise InvalidConfig(
                f"the queue {self.shown} needs a package that is not installed ({error}): install mu2net[postgres]"
            ) from error
        if is_sqlite:
            sql.event.listen(engine, "connect", _prepare_sqlite)
        METADATA.create_all(engine)
        return engine

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise QueueUnreachable(
                f"the queue {self.shown} cannot be used ({str(error.orig).strip()}): check that it runs, and that this "
                "process may write there"
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[sql.Connection]:
        with self._reaching(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _connected(self) -> Iterator[sql.Connection]:
        with self._reaching(), self._engine.connect() as connection:
            yield connection

    def _select(self, query: "sql.Select[Any]") -> list[Job]:
        with self._connected() as connection:
            return [_job(row) for row in connection.execute(query).all()]


def unknown_job(job: str) -> UnknownJob:
    return UnknownJob(f"there is no job {job[:80]!r}: GET /v1/jobs lists them")


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for one another
    connection.execute("PRAGMA synchronous=FULL")  # a job that was accepted outlives a power cut


def _wrong_url(url: str) -> str:
    backend = url.split(":", 1)[0][:40]
    return (
        f"the queue's URL begins with {backend!r}: use postgresql+psycopg://USER@HOST/DATABASE or "
        "sqlite:////PATH/jobs.sqlite"
    )


def _job(row: Any) -> Job:
    until = row.now if row.ended is None else row.ended
    parents: Sequence[str] = json.loads(row.parents)
    return Job(
        id=row.id,
        request=JobRequest(
            TaskName(row.task),
            row.kind,
            row.upload,
            row.budget,
            row.private,
            tuple(TaskName(name) for name in parents),
        ),
        state=row.state,
        progress=JobProgress(*(getattr(row, name) for name in JobProgress.__slots__)),
        seconds=0.0 if row.started is None else max(0.0, until - row.started),
        created=_iso(row.created),
        error=row.error,
        starts=row.starts,
        is_cancelling=row.is_cancelling,
    )


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
