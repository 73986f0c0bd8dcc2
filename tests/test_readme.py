"""README's commands do what README says: the blocks marked `<!-- run -->` are executed, in order, offline."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx

from tests.conftest import draw_image_folder
from tests.test_serve_process import START_TIMEOUT_S, free_port, wait_until

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"<!-- run -->\n```sh\n(.*?)```", re.DOTALL)


def commands(port: int) -> list[str]:
    """Return README's commands for a machine without network, with another port and this Python's mu2net."""
    mu2net = f"{shlex.quote(sys.executable)} -m models"
    lines = [line for block in BLOCK.findall(README.read_text()) for line in block.splitlines()]
    return [
        line.replace("uv run mu2net", mu2net)
        .replace("--root vit_tiny_patch16_224", "--root random:image_size=16,depth=2")  # the hub is out of reach
        .replace(":3000", f":{port}")
        for line in lines
    ]


def is_ready(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success


def test_the_marked_blocks_run(tmp_path: Path) -> None:
    images = draw_image_folder(tmp_path / "flowers")
    shutil.make_archive(str(tmp_path / "flowers"), "zip", images)
    shutil.copy(images / "red" / "0.png", tmp_path / "rose.jpg")
    port = free_port()
    server = None
    environment = os.environ | {"HOME": str(tmp_path)}
    try:
        for line in commands(port):
            command, _, _ = line.partition("  #")
            if " serve " in command:
                words = [*shlex.split(command), "--port", str(port)]
                server = subprocess.Popen(words, cwd=tmp_path, env=environment)
                wait_until(server, lambda: is_ready(port))
                continue
            done = subprocess.run(
                ["bash", "-c", command.replace("curl", "curl --fail-with-body --silent", 1)],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=START_TIMEOUT_S,
                check=False,
            )
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)
    assert server is not None, "no marked block serves"
