"""`mu2net demo`: the whole way in a few minutes, on real data, with the real server as a process of its own.

Three tasks are evolved, two of them while a client keeps asking the server for the first.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from evolve import demo_report
from evolve.config import EvolveConfig
from evolve.demo_client import SteadyClient, accuracy, latency_ms, wait_for_task
from evolve.demo_report import MeasuredTask
from models.commands import JsonOption
from models.errors import PortInUse
from models.family import PARENT_VARIABLE
from models.figures import task_figures
from models.names import TaskName
from models.store import Store

if find_spec("torch") is None:
    raise ModuleNotFoundError("the demo evolves, which needs torch: install mu2net[evolve]", name="torch")

ROOT = "random:embed_dim=64,depth=3,num_heads=4,patch_size=4,image_size=16"
# Sized for two cores that the server and its client share: about a minute a task. On so small a network
# one thread is faster than two, and waits for nobody.
THREADS = 1
CONFIG = EvolveConfig(
    generations=3, children_per_generation=3, epochs=8, batch_size=32, learning_rate=0.05, threads=THREADS
)
LATER_GENERATIONS = 2  # there is something to start from by then
STEADY_IMAGES = 8


@dataclass(frozen=True, slots=True)
class DemoTask:
    name: TaskName
    what: str
    folder: Path  # with train/ and test/

    def test_images(self) -> list[Path]:
        return sorted(self.folder.glob("test/*/*.png"))


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(help="Port of the server with --keep.", min=1, max=65535)] = 3000,
    as_json: JsonOption = False,
) -> None:
    """Evolve three tasks from scratch, serve them, and show that adding tasks disturbs nothing (minutes)."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    unwind_on_sigterm()
    port = _checked_port(port) if keep else _checked_port(0)
    with tempfile.TemporaryDirectory(prefix="mu2net-demo-") as scratch:
        folder = Path(scratch)
        digits, *later = _write_tasks(folder)
        store = _make_store(folder / "store")
        _evolve(digits, store, CONFIG, console)
        log = folder / "server.log"
        with _server(store, port, log) as url, httpx.Client(base_url=url) as client:
            wait_for_task(client, digits.name, log=log)
            console.print(f"Serving at {url}. From now on a client keeps asking for {digits.name!r}.")
            steady = SteadyClient(url, digits.name, _some_images(digits))
            steady.start()
            for task in later:
                _evolve(task, store, replace(CONFIG, generations=LATER_GENERATIONS), console)
                wait_for_task(client, task.name, log=log)
                console.print(f"{task.name} went live without a restart.")
            seen = steady.stop()
            measured = _measure([digits, *later], store, client)
            if as_json:
                typer.echo(json.dumps(demo_report.as_json(measured, seen)))
            else:
                demo_report.show(measured, seen, Console(highlight=False))
            if keep:
                _stay(url, digits, console)


def unwind_on_sigterm() -> None:
    """Have SIGTERM end this process as Ctrl-C does, or its server would stay behind, and its folder."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _write_tasks(folder: Path) -> list[DemoTask]:
    import numpy as np

    from evolve.demo_data import write_digits, write_shapes

    def parity(digit: int) -> str:
        return "odd" if digit % 2 else "even"

    def task(name: str, what: str, write: Callable[[Path, np.random.Generator], Path]) -> DemoTask:
        return DemoTask(TaskName(name), what, write(folder / name, np.random.default_rng(0)))

    return [
        task("digits", "handwritten digits, ten classes", lambda to, rng: write_digits(to, str, rng)),
        task("parity", "the same digits, odd or even", lambda to, rng: write_digits(to, parity, rng)),
        task("shapes", "drawn shapes, five classes", write_shapes),
    ]


def _make_store(folder: Path) -> Store:
    from evolve.publish import create_store
    from models.root import load_root

    return create_store(folder, load_root(ROOT))


def _evolve(task: DemoTask, store: Store, config: EvolveConfig, console: Console) -> None:
    from evolve.loop import evolve_task
    from evolve.progress import ProgressDisplay
    from evolve.task import load_task

    console.print(f"Evolving {task.name}: {task.what}.")
    with ProgressDisplay(console) as display:
        loaded = load_task(task.name, task.folder, seed=config.seed, cache_folder=store.folder / "work" / "pixels")
        evolve_task(loaded, store, config, report=display.candidate(config))


@contextmanager
def _server(store: Store, port: int, log: Path) -> Iterator[str]:
    """Run `mu2net serve` as a process and yield its address; stop it as Ctrl-C would."""
    command = [sys.executable, "-m", "models", "serve", str(store.folder), "--port", str(port)]
    with log.open("wb") as output:
        environment = os.environ | {"MU2NET_ENGINE_THREADS": str(THREADS), PARENT_VARIABLE: str(os.getpid())}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _measure(tasks: Sequence[DemoTask], store: Store, client: httpx.Client) -> list[MeasuredTask]:
    figures = task_figures(store.routes(store.release()), store.root())
    return [
        MeasuredTask(
            task.name,
            accuracy(client, task.name, task.test_images()),
            figures[task.name],
            latency_ms(client, task.name, task.test_images()[0].read_bytes()),
        )
        for task in tasks
    ]


def _some_images(task: DemoTask) -> list[bytes]:
    files = task.test_images()
    return [file.read_bytes() for file in files[:: len(files) // STEADY_IMAGES][:STEADY_IMAGES]]


def _stay(url: str, task: DemoTask, console: Console) -> None:
    console.print(
        f"\nThe server stays at {url} until Ctrl-C. In another terminal:\n"
        f"  curl {url}/v1/tasks\n"
        f"  curl -F image=@{task.test_images()[0]} {url}/v1/tasks/{task.name}/classify\n"
        f"  curl -F image=@{task.test_images()[-1]} '{url}/v1/classify?tasks=all'"
    )
    signal.pause()


def _checked_port(port: int) -> int:
    """Return `port`, or a free one for 0; PortInUse if somebody has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortInUse(
                f"port {port} is in use: stop the program that has it, or choose another with --port"
            ) from error
        return int(probe.getsockname()[1])
