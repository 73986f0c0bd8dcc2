"""The commands of README and docs do what these say: blocks marked `<!-- run -->` are executed, in order, offline."""

import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from models.jobs import JobQueue
from tests.support.command_line import Cli
from tests.support.on_a_port import listening
from tests.support.processes import START_TIMEOUT_S, free_port, wait_until
from tests.support.stores import TaskPlan, make_store
from tests.support.tiny import TINY_ROOT, draw_image_folder

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "http-api.md")
WITH_PYTHON = (ROOT / "README.md", ROOT / "docs" / "python-client.md")
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
SMALL = "--set generations=1 --set children_per_generation=2 --set epochs=1"
BLOCK = re.compile(r"<!-- run -->\n```sh\n(.*?)```", re.DOTALL)


def commands(port: int) -> list[str]:
    """Return the commands for a machine without network and without time, with another port."""
    blocks = [block for page in PAGES for block in BLOCK.findall(page.read_text())]
    lines = [line for block in blocks for line in block.splitlines()]
    return [
        line.partition("  #")[0]
        .replace("--root vit_tiny_patch16_224", f"--root {TINY_ROOT}")  # the hub is out of reach
        .replace("evolve my-store flowers", f"evolve my-store flowers {SMALL}")
        .replace(":3000", f":{port}")
        for line in lines
    ]


def is_ready(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success


def test_the_marked_blocks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = draw_image_folder(tmp_path / "flowers")
    for name in ("flowers", "birds"):
        shutil.make_archive(str(tmp_path / name), "zip", images)
    shutil.copy(images / "red" / "0.png", tmp_path / "rose.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    port = free_port()
    server = None
    try:
        for command in commands(port):
            program = command.partition("uv run mu2net ")[2]
            if program.startswith("serve "):
                words = [sys.executable, "-m", "models", *shlex.split(program), "--port", str(port)]
                server = subprocess.Popen(words)
                wait_until(server, lambda: is_ready(port))
            elif program:  # in this process, which has imported torch already
                Cli(capsys, monkeypatch).succeed(*shlex.split(program))
            else:
                curl = command.replace("curl", "curl --fail-with-body --silent", 1)
                subprocess.run(["bash", "-c", curl], timeout=START_TIMEOUT_S, check=True)
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)
    assert server is not None, "no marked block serves"


def end_first_job(queue: JobQueue) -> None:
    """Do what a worker does for a job, but for the evolution."""
    pause = threading.Event()
    for _ in range(1000):
        claim = queue.claim()
        if claim is not None:
            queue.end(claim, "done")
            return
        pause.wait(0.02)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_the_python_examples_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = draw_image_folder(tmp_path / "fish")
    shutil.make_archive(str(tmp_path / "fish"), "zip", images)
    for name in ("rose.jpg", "tulip.jpg"):
        shutil.copy(images / "red" / "0.png", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    examples = PYTHON.findall(page.read_text())
    assert examples
    with listening(make_store(tmp_path / "store", TaskPlan("flowers")).folder) as (url, server):
        worker = threading.Thread(target=end_first_job, args=(server.queue,))
        if any(".submit(" in example for example in examples):
            worker.start()
        for example in examples:
            exec(example.replace("http://127.0.0.1:3000", url), {})
        if worker.ident is not None:
            worker.join()
    assert capsys.readouterr().out.startswith("flowers ")
