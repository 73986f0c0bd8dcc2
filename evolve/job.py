"""One job: a task's images become a route, and the queue is told how far it is."""

from dataclasses import replace

from evolve.anytime import anytime_config
from evolve.config import EvolveConfig, load_config
from evolve.loop import evolve_task
from evolve.run import Executor, Progress
from evolve.task import Task, load_task
from models.budget import DEFAULT_BUDGET
from models.jobs import Claim, Job, JobProgress, JobQueue
from models.store import Store
from models.uploads import Uploads

PRESET = "online"
READING, LOOKING, TRAINING = "reading the images", "looking at the images", "training"


class JobTeller:
    """Tells the queue about one claimed job."""

    def __init__(self, queue: JobQueue, claim: Claim) -> None:
        self._queue = queue
        self._claim = claim
        self._progress = replace(claim.job.progress, generation=0, candidates=0)

    def phase(self, text: str) -> None:
        self._progress = replace(self._progress, phase=text)
        self._queue.tell(self._claim, self._progress)

    def log(self, text: str) -> None:
        self._queue.log(self._claim.job.id, text)

    def candidate(self, progress: Progress, config: EvolveConfig) -> None:
        """Tell of a candidate, trained now or found in the journal."""
        before = self._progress
        is_last = progress.place + 1 == config.children(progress.generation)
        left = None if config.minutes is None else max(0.0, 60 * config.minutes - progress.seconds)
        self._progress = JobProgress(
            phase=TRAINING,
            generation=progress.generation + is_last,
            candidates=before.candidates + 1,
            best_quality=progress.best_quality,
            release=before.release if progress.release is None else progress.release,
            seconds_left=left,
        )
        self._queue.tell(self._claim, self._progress, is_fruitful=not progress.is_replayed)
        record = progress.record
        if not progress.is_replayed:
            self.log(f"{record.candidate.name}: accuracy {record.quality:.4f}, trained for {record.seconds:.1f} s")
        if progress.release is not None:
            self.log(f"{record.candidate.name}: published in release {progress.release}")

    def published(self, release: int) -> None:
        self._progress = replace(self._progress, release=release)
        self._queue.tell(self._claim, self._progress)
        self.log(f"published in release {release}")


def run_job(job: Job, store: Store, teller: JobTeller, execute: Executor) -> None:
    """Evolve a job's task until its budget is over; a job that was interrupted goes on.

    Raises:
        Mu2NetError: the job cannot be done.
    """
    request = job.request
    uploads = Uploads(store)
    teller.phase(READING)
    path = uploads.local_copy(request.task, request.upload)
    base = load_config(None, preset=PRESET)
    cache = uploads.work_folder(request.task) / "pixels"
    teller.phase(LOOKING)
    task = load_task(request.task, path, seed=base.seed, cache_folder=cache)
    _log_task(task, teller)
    config = anytime_config(
        replace(base, parents=", ".join(request.parents)),
        request.budget or DEFAULT_BUDGET,
        store.root(),
        task.train,
    )
    teller.phase(TRAINING)
    outcome = evolve_task(
        task,
        store,
        config,
        private=request.private,
        execute=execute,
        report=lambda progress: teller.candidate(progress, config),
    )
    if outcome.is_new:
        teller.published(outcome.release.number)
    else:
        teller.log("the task keeps its route: nothing better was found")


def _log_task(task: Task, teller: JobTeller) -> None:
    teller.log(f"{task.num_classes} classes; {len(task.train):,} images to train on, {len(task.val):,} to select on")
    for warning in task.describe().warnings():
        teller.log(f"note: {warning}")
