"""The server without HTTP: settings in, the parts wired together, started and stopped as one."""

import logging
from dataclasses import dataclass, field
from functools import cached_property, partial

from opentelemetry.trace import NoOpTracer, Tracer

from models.errors import InvalidConfig
from models.inspection import Inspections
from models.jobs import JobQueue, queue_url
from models.own_token import own_token
from models.records import DecodedRecords
from models.signatures import Trust, load_signer
from models.store import Store
from service import engine
from service.batcher import Batcher
from service.decoders import Decoders
from service.door import Door
from service.job_feed import JobFeed
from service.keys import KeyRing, key_files
from service.memory import Trimmer
from service.metrics import Metrics
from service.own_pages import as_host, is_loopback_name
from service.places import Places, places_of
from service.predictor import Predictor
from service.prepared import prepared_graphs
from service.proof_process import ProofLimits
from service.rate_limit import RateLimit
from service.release import StagePool
from service.reload import Watcher
from service.residents import Residents
from service.runtime import Runtime, start_runtime
from service.settings import Settings
from service.threads import Threads, answer_threads, store_threads, upload_threads

log = logging.getLogger("mu2net.server")


@dataclass(frozen=True)
class Server:
    """What a process needs to answer. Make it with `build_server`; start and stop it in one event loop."""

    settings: Settings
    runtime: Runtime
    metrics: Metrics
    batcher: Batcher
    residents: Residents
    decoders: Decoders
    predictor: Predictor
    watcher: Watcher
    keys: KeyRing
    rate_limit: RateLimit
    places: Places
    door: Door
    trust: Trust | None = None  # whose signatures a release needs, None where it needs none
    store_threads: Threads = field(default_factory=store_threads)
    upload_threads: Threads = field(default_factory=upload_threads)
    answer_threads: Threads = field(default_factory=answer_threads)

    def store(self) -> Store:
        """Open the store; StoreNotFound or StoreUnreachable if it has gone."""
        store = Store.open(self.settings.store, cache=self.settings.cache, decoded=self.decoded)
        if self.settings.sign is not None:
            store.signer = load_signer(self.settings.sign)
        return store

    @cached_property
    def is_for_own_user(self) -> bool:
        """Tell whether the server is bound to a loopback address, where this machine's user needs no key."""
        address = self.settings.bind_address
        return is_loopback_name(as_host(address)) and address != "localhost"

    @cached_property
    def own_token(self) -> str | None:
        """The token of this machine's user; None where it gives nothing, or cannot be kept."""
        if not self.is_for_own_user:
            return None
        try:
            return own_token(self.settings.token_folder)
        except InvalidConfig as error:
            log.error("without an API key nobody can change anything here: %s", error)
            return None

    @cached_property
    def decoded(self) -> DecodedRecords:
        """The store's records as requests have read them, so that none is decoded twice."""
        return DecodedRecords()

    @cached_property
    def queue(self) -> JobQueue:
        """The jobs; InvalidConfig if the store is behind a URL and no queue is set."""
        return JobQueue(queue_url(self.store(), self.settings.queue))

    @cached_property
    def job_feed(self) -> JobFeed:
        """The changes of the jobs, one look at the queue for all who follow them."""
        return JobFeed(lambda: self.queue)

    @cached_property
    def inspections(self) -> Inspections:
        """The processes that look at uploaded images."""
        return Inspections(at_once=self.settings.max_inspections, max_bytes=self.settings.max_inspection_bytes)

    @cached_property
    def trimmer(self) -> Trimmer:
        """Gives free memory back to the system."""
        return Trimmer()

    def start(self) -> None:
        _ = self.own_token  # made at the start, and no request has to wait for the disk
        self.batcher.start()
        self.watcher.start()
        self.trimmer.start()
        self.keys.start()  # last: it waits a moment for the store

    async def stop(self) -> None:
        self.keys.stop()
        self.trimmer.stop()
        self.watcher.stop()
        self.job_feed.stop()
        await self.batcher.stop()
        self.decoders.stop()
        for threads in (self.store_threads, self.upload_threads, self.answer_threads):
            threads.stop()


def build_server(
    settings: Settings, metrics: Metrics, tracer: Tracer | None = None, door: Door | None = None
) -> Server:
    """Wire the parts; nothing runs and no store is read before `start`.

    `door` is the one that the server's connections come through, None if something else receives them.

    Raises:
        InvalidConfig: CUDA is asked for and not usable, or a trusted key cannot be read.
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
    trust = None if settings.trust is None else Trust.of(settings.trust)
    residents = Residents(settings.resident_releases)
    decoders = Decoders(settings, tracer)
    predictor = Predictor(batcher, residents, decoders, timeout_s=settings.timeout_s)
    watcher = Watcher(
        settings.store,
        StagePool(runtime, prepared_graphs(settings.cache, runtime)),
        lambda rows: batcher.run_in_turns(engine.run_in_pieces(rows, metrics.count_subgraph)),
        residents,
        cache=settings.cache,
        poll_interval_s=settings.poll_interval_s,
        metrics=metrics,
        limits=ProofLimits(settings.proof_timeout_s, settings.proof_memory_bytes),
        trust=trust,
    )
    keys = KeyRing(
        lambda: key_files(settings.store, settings.keys),
        poll_interval_s=settings.poll_interval_s,
        is_demanded=settings.keys is not None,
    )
    rate_limit = RateLimit(settings.key_rate)
    places = places_of(settings)
    door = Door() if door is None else door
    door.open(settings.door_limits, trusted_proxies=settings.trusted_proxies)
    return Server(
        settings,
        runtime,
        metrics,
        batcher,
        residents,
        decoders,
        predictor,
        watcher,
        keys,
        rate_limit,
        places,
        door,
        trust,
    )
