"""What the server counts, for Prometheus. Labels are bounded: a task's name, never what a stranger typed."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from models.names import SubgraphId
from service.engine import LoadedRoute

NO_TASK = "-"  # of requests that name no known task; no task can be called so, nor
PRIVATE_TASK = "-private"  # of all private tasks, whose names are not told
LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
DIGEST_DIGITS = 12  # of a subgraph's digest in a label; whole ones would only make the page long
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


LIVE_GAUGES = re.compile(r"gauge_live[a-z]+_(\d+)\.db")  # prometheus_client's name for a process's file of them


def task_label(loaded: LoadedRoute) -> str:
    return PRIVATE_TASK if loaded.route.private else loaded.task


def subgraph_label(subgraph: SubgraphId) -> str:
    return subgraph[:DIGEST_DIGITS]


@dataclass(frozen=True, slots=True)
class Visible:
    """What a reader of the metrics may know of, who may not see every task."""

    tasks: int  # of the release that answers
    subgraphs: frozenset[str]  # labels of those that these tasks run


class _Restricted:
    """The metrics without what tells of private tasks: of them there is no series, and no total that has a part."""

    WITHHELD = frozenset({"mu2net_reload_read_bytes", "mu2net_reload_subgraphs"})  # totals of all tasks' subgraphs

    def __init__(self, source: CollectorRegistry, visible: Visible) -> None:
        self._source = source
        self._visible = visible

    def collect(self) -> Iterator[Metric]:
        subgraphs = {None, *self._visible.subgraphs}
        for metric in self._source.collect():
            if metric.name in self.WITHHELD:
                continue
            shown = Metric(metric.name, metric.documentation, metric.type)
            shown.samples = [
                sample._replace(value=float(self._visible.tasks)) if sample.name == "mu2net_tasks" else sample
                for sample in metric.samples
                if sample.labels.get("task") != PRIVATE_TASK and sample.labels.get("subgraph") in subgraphs
            ]
            yield shown


class Metrics:
    """All of the server's metrics, registered with `registry`: one instance for each registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self.requests = Counter("mu2net_requests", "Classify requests answered", ["task", "status"], registry=registry)
        self.latency = Histogram(
            "mu2net_request_seconds", "From a request's head to its answer, of those answered", ["task"],
            buckets=LATENCY_S, registry=registry,
        )  # fmt: skip
        self.images_waiting = Gauge(
            "mu2net_queue_images",
            "Images accepted and not yet answered",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queue_seconds = Histogram(
            "mu2net_queue_seconds", "Wait of a decoded image for the engine", ["task"],
            buckets=LATENCY_S, registry=registry,
        )  # fmt: skip
        self.batch_rows = Histogram(
            "mu2net_batch_rows", "Pairs of image and task in the run of the engine that answered an image", ["task"],
            buckets=ROWS, registry=registry,
        )  # fmt: skip
        self.engine_seconds = Counter(
            "mu2net_engine_busy_seconds", "Time the engine computed: its rate is its occupancy", registry=registry
        )
        self.subgraph_calls = Counter("mu2net_subgraph_calls", "Runs of a subgraph", ["subgraph"], registry=registry)
        self.subgraph_rows = Counter("mu2net_subgraph_rows", "Rows in them", ["subgraph"], registry=registry)
        self.release = Gauge(
            "mu2net_release", "Number of the release that answers", registry=registry, multiprocess_mode="liveall"
        )
        self.tasks = Gauge(
            "mu2net_tasks", "Tasks of the release that answers", registry=registry, multiprocess_mode="livemax"
        )
        self.reloads = Counter("mu2net_reloads", "Releases taken up", registry=registry)
        self.reload_failures = Counter(
            "mu2net_reload_failures", "Attempts to take up a release that failed", ["reason"], registry=registry
        )
        self.active_release = Gauge(
            "mu2net_active_release", "Number of the release that the store asks for", registry=registry,
            multiprocess_mode="liveall",
        )  # fmt: skip
        self.release_skew = Gauge(
            "mu2net_release_skew", "1 while another release answers than the store asks for", registry=registry,
            multiprocess_mode="liveall",
        )  # fmt: skip
        self.resident_releases = Gauge(
            "mu2net_resident_releases", "Releases in memory", registry=registry, multiprocess_mode="liveall"
        )
        self.reload_bytes = Counter("mu2net_reload_read_bytes", "Read from the store to take up releases",
                                    registry=registry)  # fmt: skip
        self.reload_subgraphs = Counter(
            "mu2net_reload_subgraphs", "Subgraphs of releases taken up: added, reused, freed", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self.reload_seconds = Histogram(
            "mu2net_reload_seconds", "Time to load, check and swap to a release", buckets=LATENCY_S, registry=registry
        )
        self.device = Gauge(
            "mu2net_device_info", "1 for where the engine runs", ["provider", "threads", "onnxruntime"],
            registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip

    def count(self, tasks: Sequence[str], status: int, seconds: float) -> None:
        """Count one classify request for each task it asked about."""
        for task in tasks:
            self.requests.labels(task, str(status)).inc()
            if status == 200:
                self.latency.labels(task).observe(seconds)

    def count_batched(self, tasks: Sequence[str], *, waited_s: float, batch_rows: int) -> None:
        """Count one image that comes to the engine, for each task it is asked about."""
        for task in tasks:
            self.queue_seconds.labels(task).observe(waited_s)
            self.batch_rows.labels(task).observe(batch_rows)

    def count_subgraph(self, subgraph: SubgraphId, rows: int) -> None:
        label = subgraph_label(subgraph)
        self.subgraph_calls.labels(label).inc()
        self.subgraph_rows.labels(label).inc(rows)

    def render(self, shared_folder: str | None, visible: Visible | None = None) -> bytes:
        """Return the metrics as text; those of every worker process if they share them in `shared_folder`.

        With `visible` what tells of other tasks than those is left out.
        """
        together = self._registry
        if shared_folder is not None:
            forget_dead_processes(shared_folder)
            together = CollectorRegistry()
            MultiProcessCollector(together, path=shared_folder)  # type: ignore[no-untyped-call]
        if visible is None:
            return generate_latest(together)
        restricted = CollectorRegistry()
        restricted.register(_Restricted(together, visible))
        return generate_latest(restricted)


def forget_dead_processes(shared_folder: str | None) -> None:
    """Drop the gauges of processes that serve no more from what workers share; what was counted stays.

    A killed process cannot do so itself, and an alert on its last value would never end.
    """
    if shared_folder is None:
        return
    names = [LIVE_GAUGES.fullmatch(path.name) for path in Path(shared_folder).glob("gauge_live*")]
    for pid in {int(name[1]) for name in names if name}:
        if not _is_serving(pid):
            mark_process_dead(pid, shared_folder)  # type: ignore[no-untyped-call]


def _is_serving(pid: int) -> bool:
    """Whether `pid` is this process or another worker of its parent: a dead one's id may be another program's."""
    if pid == os.getpid():
        return True
    try:
        process = psutil.Process(pid)
        return bool(process.ppid() == os.getppid() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
