"""Jobs: what was asked for over HTTP, and the durable queue that brings it to a worker.

A table behind a SQLAlchemy URL: SQLite in the store's folder where nothing else is said, PostgreSQL where
several machines work. The usual queues (huey, persist-queue, RQ) forget a job when they hand it out, or have
no lease that is bound to whoever holds it; here a job is held by a lease that must be renewed, and every
write of a worker names its lease, so a worker that was given up can change nothing any more. All times are
those of the queue's database, so machines need no common clock.
"""

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.ext.compiler import compiles

from models.budget import DEFAULT_BUDGET, parse_budget
from models.errors import (
    InvalidConfig,
    LeaseLost,
    QueueFull,
    QueueUnreachable,
    QuotaExceeded,
    TaskBusy,
    UnknownJob,
)
from models.files import folder_mode, private
from models.names import TaskName
from models.store import Store

JobKind = Literal["add", "iterate"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]

JOBS_FILE = "jobs.sqlite"  # in the store's folder
LEASE_S = 15.0  # after which a silent worker's job is taken up by another
# Nobody sets a lease that ends later than a whole one from now. One that does was set before the database's clock
# stepped back, and could otherwise never run out. Its worker, if it lives, renews it within seconds. Smaller steps
# only let the lease last longer by as much.
MAX_LEASE_S = 2 * LEASE_S
# A job whose workers die, or meet an error of their machine, this often in a row without one more candidate is given
# up: it may be what kills them.
MAX_FRUITLESS_STARTS = 10
CONNECT_TIMEOUT_S = 5  # to a PostgreSQL that may accept and never answer
BUSY_TIMEOUT_S = 30.0  # that SQLite waits for another writer
QUOTA_RETRY_S = 300.0  # jobs take minutes: a client that is refused need not ask every second
LEAST_FREE_BYTES = 2**16  # that SQLite needs to open a database: it makes a file of half of that beside it
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
    key: str | None = None  # id of the API key that asks; all without one count as one client


@dataclass(frozen=True, slots=True)
class Quota:
    """What the unfinished jobs of one key may take together; see `JobQueue.submit`."""

    jobs: int
    budget_s: float


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
    # What came after the first version: nullable, so that a queue of that version gets them added.
    sql.Column("key", sql.String(32)),
    sql.Column("served", sql.Float),  # when a worker took the job up last
)
ADDED_COLUMNS = (JOBS.c.key, JOBS.c.served)
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
        DamagedObject: a link, a pipe or a device stands there in place of the file.
    """
    if url is not None:
        return url
    if store.is_remote:
        raise InvalidConfig(
            f"the jobs of {store.files.shown()} need a queue that its servers and workers all reach: set MU2NET_QUEUE "
            "to postgresql+psycopg://USER@HOST/DATABASE, or to sqlite:////PATH/jobs.sqlite if all run on this machine"
        )
    with suppress(FileNotFoundError):
        store.local_files.open(JOBS_FILE).close()  # SQLite would follow a link
    return f"sqlite:///{store.folder.absolute() / JOBS_FILE}"


def absolute_queue(url: str) -> str:
    """Return a queue's URL such that it names the same place in whatever folder a process runs.

    Raises:
        InvalidConfig: it is no URL.
    """
    try:
        found = sql.make_url(url)
    except ArgumentError as error:
        raise InvalidConfig(_wrong_url(url)) from error
    if found.get_backend_name() != "sqlite" or not found.database or found.database.startswith((":", "file:")):
        return url
    return found.set(database=str(Path(found.database).absolute())).render_as_string(hide_password=False)


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

    def submit(self, request: JobRequest, quota: Quota | None = None) -> Job:
        """Add a job.

        Raises:
            TaskBusy: the task has one that is not over.
            QuotaExceeded: with this one, the jobs of the request's key would exceed `quota`.
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
            "key": request.key,
        }
        try:
            with self._writing() as connection:
                if quota is not None and connection.dialect.name == "postgresql":
                    # two requests of one key at the same moment would not see one another's job
                    connection.execute(sql.select(sql.func.pg_advisory_xact_lock(sql.func.hashtext(request.key or ""))))
                connection.execute(sql.insert(JOBS).values(values))
                if quota is not None:
                    _require_quota(list(connection.execute(_budgets(request.key)).scalars()), quota)
        except IntegrityError as error:
            raise TaskBusy(self._busy(request.task)) from error
        return self.job(job)

    def require_quota(self, request: JobRequest, quota: Quota) -> None:
        """Raise QuotaExceeded if `submit` would: asked before a large upload is read or looked at."""
        with self._connected() as connection:
            budgets = list(connection.execute(_budgets(request.key)).scalars())
        _require_quota([*budgets, request.budget], quota)

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

    def jobs(self, *, limit: int, private: Collection[TaskName] | None = None) -> list[Job]:
        """Return the newest jobs, the newest first; of private tasks those of `private` alone, None for all."""
        query = sql.select(JOBS, NOW.label("now")).order_by(JOBS.c.number.desc()).limit(limit)
        if private is not None:
            query = query.where(sql.or_(JOBS.c.private.is_(False), JOBS.c.task.in_(list(private))))
        return self._select(query)

    def unfinished(self, task: TaskName | None = None) -> list[Job]:
        """Return the jobs that are not over, of one task or of all, the oldest first."""
        query = sql.select(JOBS, NOW.label("now")).where(UNFINISHED).order_by(JOBS.c.number)
        return self._select(query if task is None else query.where(JOBS.c.task == task))

    def recent(self, ended_within_s: float) -> list[Job]:
        """Return the jobs that are not over or ended lately, the oldest first."""
        query = sql.select(JOBS, NOW.label("now")).where(sql.or_(UNFINISHED, JOBS.c.ended > NOW - ended_within_s))
        return self._select(query.order_by(JOBS.c.number))

    def uploads_of(self, key: str | None) -> set[tuple[TaskName, str]]:
        """Return the tasks and digests of all that jobs of a key brought, kept or not."""
        with self._connected() as connection:
            rows = connection.execute(sql.select(JOBS.c.task, JOBS.c.upload).where(_is_of(JOBS, key)).distinct()).all()
        return {(TaskName(row.task), row.upload) for row in rows}

    def cancel(self, job: str) -> Job:
        """Have a job stopped: at once if nobody works on it, else within seconds by its worker.

        What it has published stays. One that is over stays as it is. UnknownJob if there is none.
        """
        ended = {"state": "cancelled", "phase": FINISHED, "ended": NOW, "seconds_left": None, "lease": None}
        with self._writing() as connection:
            connection.execute(sql.update(JOBS).where(JOBS.c.id == job, _is_free(JOBS)).values(ended))
            asked = sql.update(JOBS).where(JOBS.c.id == job, JOBS.c.state == "running")
            connection.execute(asked.values(is_cancelling=True))
        return self.job(job)

    # what a worker does

    def claim(self) -> Claim | None:
        """Take a job that nobody holds, None if there is none. Its lease must be renewed from now on.

        Keys take turns: it is the oldest job of the key that a worker served least lately.
        """
        lease = secrets.token_hex(16)
        take = (
            # asked again of the row itself: another worker may have been faster
            sql.update(JOBS)
            .where(JOBS.c.number == _next_in_turn(), _is_free(JOBS))
            .values(
                state="running",
                phase=LOADING,  # the worker imports what trains
                lease=lease,
                leased_until=NOW + LEASE_S,
                started=sql.func.coalesce(JOBS.c.started, NOW),
                served=NOW,
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
        """Whether too many workers died in this job, or met errors of their machines, without one more candidate."""
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

    def give_back(self, claim: Claim, error: str | None = None) -> None:
        """Let another worker go on with the job; nothing happens if it is held no more.

        Args:
            claim: the worker's.
            error: what kept its machine from the job; None if nothing did. It is told until a worker ends the job.
        """
        values: dict[str, object] = {"state": "queued", "phase": WAITING, "lease": None, "seconds_left": None}
        values |= {"fruitless_starts": 0} if error is None else {"error": error}
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
                connect_args={"timeout": BUSY_TIMEOUT_S} if is_sqlite else {"connect_timeout": CONNECT_TIMEOUT_S},
            )
        except (ImportError, NoSuchModuleError) as error:
            raise InvalidConfig(
                f"the queue {self.shown} needs a package that is not installed ({error}): install mu2net[postgres]"
            ) from error
        if is_sqlite:
            _make_private(self._url.database)
            sql.event.listen(engine, "connect", _prepare_sqlite)
        METADATA.create_all(engine)
        _add_missing_columns(engine)
        return engine

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise self._refusal(str(error.orig).strip()) from error
        except OSError as error:  # of the file's folder
            raise self._refusal(str(error)) from error

    def _refusal(self, reason: str) -> QueueUnreachable:
        """Return what the database's words mean."""
        is_full = re.search(r"disk is full|No space left|Disk quota|DiskFull", reason) is not None
        if is_full or self._free_bytes() < LEAST_FREE_BYTES:
            return QueueFull(
                f"the disk of the jobs' database is full ({reason}): whoever operates this must free space there; then "
                "try again",
                path=self.shown,
            )
        if "readonly" in reason or self._is_read_only():
            return QueueUnreachable(
                f"the jobs' database cannot be written to ({reason}): whoever operates this must mount its folder "
                "writable, give this process the right to write there, or set MU2NET_QUEUE to another place"
            )
        if re.search(r"malformed|not a database|no such (table|column)|disk image", reason):
            return QueueUnreachable(
                f"the queue {self.shown} is damaged ({reason}): stop all servers and workers, restore it from a copy, "
                "or move its files away to begin without jobs"
            )
        return QueueUnreachable(
            f"the queue {self.shown} cannot be used ({reason}): check that it runs, and that this process may write "
            "there"
        )

    def _free_bytes(self) -> float:
        """Return how much room SQLite has for the files that it keeps beside its own; infinity elsewhere."""
        folder = self._folder()
        return math.inf if folder is None else shutil.disk_usage(folder).free

    def _is_read_only(self) -> bool:
        folder = self._folder()
        return folder is not None and not os.access(folder, os.W_OK)

    def _folder(self) -> Path | None:
        """Return the folder of the SQLite file, if it is one and its folder is there."""
        name = self._url.database
        if self._url.get_backend_name() != "sqlite" or not name or name == ":memory:":
            return None
        return Path(name).parent if Path(name).parent.is_dir() else None

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
            rows = connection.execute(query).all()
        try:
            return [_job(row) for row in rows]
        except (ValueError, TypeError) as error:  # a field that this program did not write
            raise self._refusal(f"malformed row: {error}") from error


def _is_free(jobs: sql.FromClause) -> "sql.ColumnElement[bool]":
    """Whether nobody works on a job: it was never taken up, was given back, or its lease has run
    out, which it counts as having done where the clock was set back."""
    until = jobs.c.leased_until
    is_void = sql.or_(until < NOW, until > NOW + MAX_LEASE_S, until.is_(None))
    return sql.or_(jobs.c.state == "queued", sql.and_(jobs.c.state == "running", is_void))


def _is_of(jobs: sql.FromClause, key: str | None) -> "sql.ColumnElement[bool]":
    return sql.func.coalesce(jobs.c.key, "") == (key or "")


def _next_in_turn() -> "sql.ScalarSelect[Any]":
    """Select the number of the job that is next: of the key served least lately, the oldest."""
    free, served = JOBS.alias("free"), JOBS.alias("served_jobs")
    owner = sql.func.coalesce(served.c.key, "").label("owner")
    turns = sql.select(owner, sql.func.max(served.c.served).label("last")).group_by(owner).subquery("turns")
    return (
        sql.select(free.c.number)
        .join_from(free, turns, sql.func.coalesce(free.c.key, "") == turns.c.owner)
        .where(_is_free(free))
        .order_by(sql.func.coalesce(turns.c.last, 0.0), free.c.number)
        .limit(1)
        .scalar_subquery()
    )


def _budgets(key: str | None) -> "sql.Select[Any]":
    return sql.select(JOBS.c.budget).where(UNFINISHED, _is_of(JOBS, key))


def _require_quota(budgets: Sequence[str | None], quota: Quota) -> None:
    """Raise QuotaExceeded if a key may not have unfinished jobs with all these budgets."""
    how = "wait for the end of one, or cancel one with DELETE /v1/jobs/{id}"
    if len(budgets) > quota.jobs:
        raise QuotaExceeded(
            f"{len(budgets) - 1} jobs of this client are not over, and {quota.jobs} are allowed: {how}",
            retry_after_s=QUOTA_RETRY_S,
        )
    seconds = sum(parse_budget(budget or DEFAULT_BUDGET) for budget in budgets)
    if seconds > quota.budget_s:
        raise QuotaExceeded(
            f"with this one, the unfinished jobs of this client would have budgets of {seconds:,.0f} s together, and "
            f"{quota.budget_s:,.0f} s are allowed: {how}, or ask for less",
            retry_after_s=QUOTA_RETRY_S,
        )


def _add_missing_columns(engine: sql.Engine) -> None:
    """Bring a queue of an older version up to date; older versions go on with it, since they name their columns."""
    for column in ADDED_COLUMNS:
        if _has(engine, column):
            continue
        kind = column.type.compile(engine.dialect)
        try:
            with engine.begin() as connection:
                connection.execute(sql.text(f"ALTER TABLE {JOBS.name} ADD COLUMN {column.name} {kind}"))
        except DBAPIError:
            if not _has(engine, column):  # another process was not faster
                raise


def _has(engine: sql.Engine, column: "sql.Column[Any]") -> bool:
    return column.name in {found["name"] for found in sql.inspect(engine).get_columns(JOBS.name)}


def unknown_job(job: str) -> UnknownJob:
    return UnknownJob(f"there is no job {job[:80]!r}: GET /v1/jobs lists them")


def _make_private(database: str | None) -> None:
    """Make SQLite's file, which says what private tasks there are; the files beside it get its mode."""
    if database and not database.startswith((":", "file:")):
        path = Path(database)
        with suppress(OSError), open(path, "xb", opener=private) as file:  # it is there, or cannot be: SQLite says why
            os.fchmod(file.fileno(), folder_mode(path.parent) & 0o666)


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
            row.key,
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
