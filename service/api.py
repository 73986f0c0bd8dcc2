"""The BentoML service: `bentoml serve service.api:Mu2Net`. The only file that knows BentoML.

Switched off, because they cost more than answering a small request does (measured: 870 requests/s with
BentoML's access log, 1,100 without, 2,500 for bare uvicorn): the access log, tracing (unless MU2NET_TRACES is set),
and BentoML's own request metrics, whose label is the path that a client typed and which so grow without
bound. Each can be switched on again: BENTOML_CONFIG_OPTIONS='services.mu2net.logging.access.enabled=true'.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import bentoml
import psutil
import uvicorn.config
from bentoml._internal.configuration.containers import BentoMLContainer  # nothing public has its tracer provider
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from bentoml.exceptions import BentoMLException
from circus.sighandler import SysHandler  # type: ignore[import-untyped]
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from models.errors import InvalidConfig, NotReady
from models.family import end_with_parent
from models.turn_length import SHORT_S, ask_for_turns
from service import errors, views
from service.door import Door, raised_file_limit
from service.draining import drain_on_sigterm
from service.head import HeadAsGet
from service.http import create_app
from service.listener import loop_class
from service.logs import write_json_logs
from service.loop_turns import LoopTurns
from service.memory import arrange_allocator
from service.metrics import Metrics, forget_dead_processes
from service.protocol import protocol_class
from service.runtime import start_runtime
from service.server import Server, build_server
from service.settings import become_parent, load_settings, metrics_folder, traces_endpoint
from service.visit import holder_of

app = create_app()
door = Door()
uvicorn.config.HTTP_PROTOCOLS["auto"] = protocol_class(door)  # type: ignore[assignment]  # BentoML names none
uvicorn.config.LOOP_FACTORIES["auto"] = "service.api:loop_factory"  # nor does it name one
SWITCH_S = 0.0005  # that the event loop waits for a thread that computes, each time; 5 ms by default
# All objects are searched seldom: requests leave no cycles, and to search 2,000 of them takes 150 ms.
GC_THRESHOLDS = 700, 10, 500
UNTRACED = [r"^[^/]+//[^/]+/(livez|readyz|healthz|metrics)$"]  # asked every few seconds


def loop_factory(use_subprocess: bool = False) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the server's event loop; uvicorn calls this by its name."""
    return loop_class(door)


def tracing(endpoint: str | None) -> dict[str, object]:
    """Return BentoML's options for sending every request's trace to `endpoint`, None for tracing nothing."""
    if endpoint is None:
        return {"excluded_urls": ".*"}
    return {
        "exporter_type": "otlp",
        "sample_rate": 1.0,
        "excluded_urls": UNTRACED,
        "otlp": {"protocol": "http", "endpoint": endpoint},
    }


def choose_endings() -> None:
    """Say what signals mean to BentoML's parent process, which ends its workers with SIGTERM, whatever comes.

    SIGHUP, a closed terminal, is taken for SIGTERM; its own handler would reload. A process that was started to
    outlive its terminal, by nohup, goes on as it is. SIGINT, Ctrl-C, is passed on: nobody waits for the draining.
    """
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    SysHandler.handle_hup = SysHandler.handle_winch if is_ignored else SysHandler.handle_term
    SysHandler.handle_int = interrupt_workers


def interrupt_workers(handler: SysHandler) -> None:
    """End without draining."""
    for worker in psutil.Process().children():
        worker.send_signal(signal.SIGINT)
    handler.quit()


async def untimed(middleware: TimeoutMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
    """Stand in for BentoML's time limit, whose timers outlive their requests: 850 bytes each, for all its time."""
    await middleware.app(scope, receive, send)


TimeoutMiddleware.__call__ = untimed  # type: ignore[method-assign, assignment]  # no setting leaves it out


async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
    """Pass on to `app`. As a FastAPI object BentoML would keep unknown paths and answer them in plain text."""
    await app(scope, receive, send)


@bentoml.service(
    name="mu2net",
    workers=1,  # one engine for the machine; more processes would share its cores and load the weights again
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing=tracing(traces_endpoint()),
)
@bentoml.asgi_app(mounted, path="/")
class Mu2Net:
    """Answers classify requests of every task in the store that MU2NET_STORE names."""

    def __init__(self) -> None:
        write_json_logs()
        os.umask(0o077)  # what libraries write is nobody else's
        arrange_allocator()
        ask_for_turns(SHORT_S)  # of this thread, and of those that it starts
        sys.setswitchinterval(SWITCH_S)
        settings = load_settings()
        if settings.parent not in (None, os.getpid()):  # the latter where BentoML serves within its own process
            end_with_parent(settings.parent)
        forget_dead_processes(metrics_folder())
        # not set for the whole process: FastAPI would make spans of its own, the request's a second time
        tracer = BentoMLContainer.tracer_provider.get().get_tracer("mu2net")
        self._server: Server = build_server(settings, Metrics(), tracer, door)
        app.state.server = self._server
        door.loop_turns = LoopTurns(partial(holder_of, self._server))

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Refuse wrong settings once, before any worker starts and is started again; tie the processes together."""
        try:
            settings = load_settings()
            write_json_logs()
            choose_endings()
            raised_file_limit()
            if settings.parent is not None:
                end_with_parent(settings.parent)
            become_parent()
            if settings.device == "cuda":  # tried in a process of its own, which gives the device back
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    pool.submit(start_runtime, "cuda", 1).result()
        except InvalidConfig as error:
            raise BentoMLException(str(error)) from error  # its command line prints this without a traceback

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    def start(self) -> None:
        gc.set_threshold(*GC_THRESHOLDS)
        gc.freeze()  # what was imported stays: collecting after a reload must not stop requests to search it all
        self._server.start()
        drain_on_sigterm(door, self._server.settings.drain_s)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        await self._server.stop()

    async def __is_ready__(self) -> bool:
        """Answer /readyz: with 503 and the reason until a release with a task has proved itself.

        Raises:
            HTTPException: always, also with status 200: BentoML has no other way to give its answer a body.
        """
        try:
            ready = views.readiness(self._server)
        except NotReady as error:
            told = errors.problem_of(error)
            raise HTTPException(told.status_code, bytes(told.body).decode(), dict(told.headers)) from error
        raise HTTPException(200, ready.model_dump_json(), {"content-type": "application/json"})


Mu2Net.add_asgi_middleware(HeadAsGet)  # type: ignore[attr-defined]
