"""The server without HTTP: settings in, the parts wired together, started and stopped as one."""

import logging
from dataclasses import dataclass
from functools import cached_property, partial

from opentelemetry.trace import NoOpTracer, Tracer

from models.inspection import Inspections
from models.jobs import JobQueue, queue_url
from models.store import Store, open_files
from service import engine
from service.batcher import Batcher
from service.keys import KeyRing
from service.metrics import Metrics
from service.predictor import Predictor
from service.prepared import prepared_graphs
from service.rate_limit import RateLimit
from service.release import StagePool
from service.reload import Watcher
from service.residents import Residents
from service.runtime import Runtime, start_runtime
from service.settings import Settings

log = logging.getLogger("mu2net.server")


@dataclass(frozen=True)
class Server:
    """What a process needs to answer. Make it with `build_server`; start and stop it in one event loop."""

    settings: Settings
    runtime: Runtime
    metrics: Metrics
    batcher: Batcher
    residents: Residents
    predictor: Predictor
    watcher: Watcher
    keys: KeyRing
    rate_limit: RateLimit

    def store(self) -> Store:
        """Open the store; StoreNotFound or StoreUnreachable if it has gone."""
        return Store.open(self.settings.store, cache=self.settings.cache)

    @cached_property
    def queue(self) -> JobQueue:
        """The jobs; InvalidConfig if the store is behind a URL and no queue is set."""
        return JobQueue(queue_url(self.store(), self.settings.queue))

    @cached_property
    def inspections(self) -> Inspections:
        """The processes that look at uploaded images."""
        return Inspections(at_once=self.settings.max_inspections, max_bytes=self.settings.max_inspection_bytes)

    def start(self) -> None:
        self.keys.start()
        self.batcher.start()
        self.watcher.start()

    async def stop(self) -> None:
        self.keys.stop()
        self.watcher.stop()
        await self.batcher.stop()
        self.predictor.stop()


def build_server(settings: Settings, metrics: Metrics, tracer: Tracer | None = None) -> Server:
    """Wire the parts; nothing runs and no store is read before `start`.

    Raises:
        InvalidConfig: CUDA is asked for and not usable.
    """
    tracer = NoOpTracer() if tracer is None else tracer
    runtime = start_runtime(settings.device, settings.engine_threads)
    metrics.device.labels(runtime.provider, str(runtime.threads), runtime.version).set(1)
    batcher = Batcher(
        partial(engine.run, observe=metrics.count_subgraph),
        max_batch_rows=settings.max_batch_rows,
        max_batch_s=settings.max_batch_s,
        max_queue_images=settings.max_queue_images,
        metrics=metrics,
        tracer=tracer,
    )
    residents = Residents(settings.resident_releases)
    predictor = Predictor(
        batcher,
        residents,
        limits=settings.image_limits,
        decode_threads=settings.decode_threads,
        timeout_s=settings.timeout_s,
        tracer=tracer,
    )

    watcher = Watcher(
        settings.store,
        StagePool(runtime, prepared_graphs(settings.cache, runtime)),
        lambda rows: batcher.run_in_turns(engine.run_in_pieces(rows, metrics.count_subgraph)),
        residents,
        cache=settings.cache,
        poll_interval_s=settings.poll_interval_s,
        metrics=metrics,
    )
    keys = KeyRing(lambda: open_files(settings.store, settings.cache)[0], poll_interval_s=settings.poll_interval_s)
    rate_limit = RateLimit(settings.key_rate)
    return Server(settings, runtime, metrics, batcher, residents, predictor, watcher, keys, rate_limit)
