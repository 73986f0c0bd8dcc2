"""Prove the serving image on a machine without a Docker engine: build it, run it as compose.yaml says, ask it, stop it.

    uv run python -m deploy.prove_container [STORE] [--bentofile bentofile.gpu.yaml]

Needs root and Debian's buildah and debootstrap. The Bento's own Dockerfile is built by buildah over a base that
debootstrap makes and that bears the name the Dockerfile starts from, with the same installer; Debian's mirror is
the one that apt uses here. Isolation is a chroot: no namespaces, so the network is the machine's own, and cap_drop
is left to a real engine. Without a STORE a tiny one is evolved. About five minutes, and 5 GB of disk while it runs.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import yaml
from PIL import Image

from evolve.demo_data import write_shapes

FOLDER = Path(__file__).parents[1]
CHROOT = ["--isolation", "chroot"]
ROOT = "random:embed_dim=32,depth=2,num_heads=2,patch_size=8,image_size=16"
TINY = ["generations=1", "children_per_generation=1", "epochs=1", "threads=1"]
START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Running:
    """The image in a container, as seen from outside."""

    port: int
    entry: psutil.Process  # what an engine would start as process 1 and send the signal to
    client: httpx.Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path, help="a store to serve; without one, a tiny one is evolved")
    parser.add_argument("--bentofile", default="bentofile.yaml", help="bentofile.yaml or bentofile.gpu.yaml")
    parser.add_argument("--image", help="an image that was built before: build none")
    parser.add_argument("--build-only", action="store_true", help="for an image whose device this machine lacks")
    arguments = parser.parse_args()
    missing = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    if missing or os.getuid() != 0:
        sys.exit(
            f"this needs root and Debian's {' and '.join(missing) or 'tools'}: apt-get install buildah debootstrap"
        )
    with tempfile.TemporaryDirectory(prefix="mu2net-container-") as scratch:
        folder = Path(scratch)
        image = arguments.image or build_image(folder, arguments.bentofile)
        if not arguments.build_only:
            prove(image, arguments.store or make_store(folder), folder)


def build_image(folder: Path, bentofile: str) -> str:
    """Build the Bento and its image; return the image's name."""
    environment = os.environ | {"BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    bentoml = [sys.executable, "-m", "bentoml", "build", "-f", bentofile]
    _run(bentoml, cwd=FOLDER, env=environment, stdout=subprocess.DEVNULL)
    (bento,) = (folder / "bentoml" / "bentos" / "mu2net").glob("*/")
    dockerfile = bento / "env" / "docker" / "Dockerfile"
    (base,) = re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.MULTILINE)
    make_base(folder / "base", base)
    image = f"localhost/mu2net:{bento.name}"
    _run(["buildah", "build", *CHROOT, "--pull=never", "-f", str(dockerfile), "-t", image, str(bento)])
    (found,) = json.loads(_output(["buildah", "images", "--json", image]))
    _tell(f"{image} is built over {base}: {found['size']}")
    return image


def make_base(folder: Path, name: str) -> None:
    """Make a stand-in for the image `name`, which says what it holds: `astral/uv:0.9.17-python3.11-bookworm-slim`."""
    if _output(["buildah", "images", "--quiet", "--filter", f"reference={name}"]):
        return  # of a former run
    found = re.fullmatch(r"\S+:(?P<uv>[\d.]+)-python(?P<python>[\d.]+)-(?P<suite>\w+)-slim", name)
    assert found is not None, f"the base image {name!r} does not tell uv, Python and Debian's suite"
    packages = "--include=python3,python3-pip,python-is-python3,ca-certificates"
    _run(["debootstrap", "--variant=minbase", packages, found["suite"], str(folder), _mirror()])
    for place in folder.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        place.unlink()
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", folder / "etc/ssl/certs")  # whom this machine trusts
    (folder / "etc/uv").mkdir()
    (folder / "etc/uv/uv.toml").write_text("native-tls = true\n")
    container = _output(["buildah", "from", "scratch"])
    _run(["buildah", "add", "--quiet", container, str(folder), "/"])
    _run(["buildah", "run", *CHROOT, container, "--", "pip", "install", "--quiet", f"uv=={found['uv']}"])
    version = _output(["buildah", "run", *CHROOT, container, "--", "python", "--version"])
    assert version.startswith(f"Python {found['python']}."), f"{found['suite']} has {version}, not {found['python']}"
    _run(["buildah", "commit", "--quiet", "--rm", container, name], stdout=subprocess.DEVNULL)


def _mirror() -> str:
    """Return where apt gets Debian from on this machine."""
    listed = _output(["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME)", "Created-By: Packages"])
    sites = [line.split()[0] for line in listed.splitlines() if line.endswith(" bookworm")]
    assert sites, "apt has no Debian mirror here; apt-get update, or see /etc/apt"
    return sites[0]


def make_store(folder: Path) -> Path:
    """Evolve a tiny task, with the commands that a person would use."""
    store, data = folder / "store", write_shapes(folder / "shapes", np.random.default_rng(0))
    command = [sys.executable, "-m", "models"]
    settings = [word for setting in TINY for word in ("--set", setting)]
    _run([*command, "init", str(store), "--root", ROOT])
    _run([*command, "evolve", str(store), "shapes", "--data", str(data), *settings], stdout=subprocess.DEVNULL)
    return store


def prove(image: str, store: Path, folder: Path) -> None:
    """Run the image over `store` as compose.yaml says, and hold it to what that file says."""
    (service,) = yaml.safe_load((FOLDER / "deploy" / "compose.yaml").read_text())["services"].values()
    with (
        container_of(image) as (container, root),
        read_only(root),
        running(image, container, store, service, folder) as server,
    ):
        check_identity(server, service, root)
        check_health(server, service)
        check_answers(server)
        check_graceful_stop(server)


@contextmanager
def container_of(image: str) -> Iterator[tuple[str, Path]]:
    """Yield a container of the image and where its root file system is mounted."""
    container = _output(["buildah", "from", "--pull=never", image])
    try:
        root = Path(_output(["buildah", "mount", container]))
        (root / "store").mkdir()  # the places that are mounted to; an engine makes them likewise
        for name in ("run/.containerenv", "etc/hosts", "etc/resolv.conf"):
            (root / name).touch()
        yield container, root
    finally:
        _run(["buildah", "rm", container], stdout=subprocess.DEVNULL)


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    _run(["mount", "--bind", str(root), str(root)])
    try:
        _run(["mount", "-o", "remount,ro,bind", str(root)])
        yield
    finally:
        _run(["umount", str(root)])


@contextmanager
def running(image: str, container: str, store: Path, service: dict[str, Any], folder: Path) -> Iterator[Running]:
    config = json.loads(_output(["buildah", "inspect", "--type", "image", image]))["OCIv1"]["config"]
    port = _free_port()
    folder.chmod(0o755)  # the image's user has to get to the store
    if store.is_relative_to(folder):  # a store is its user's alone; one that was given is its operator's
        _run(["chown", "-R", service["user"], str(store)])
    mounts = ["--volume", f"{store.resolve()}:/store:ro"]
    for place in service["tmpfs"]:
        mounts += ["--mount", f"type=tmpfs,destination={place},tmpfs-mode=1777"]
    command = [
        "buildah", "run", *CHROOT, "--env", f"PORT={port}", "--user", service["user"], *mounts, container, "--",
        *config["Entrypoint"],
    ]  # fmt: skip
    log = folder / "container.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            _wait(lambda: client.get("/readyz").is_success, process, log)
            yield Running(port, _entry(process), client)
        process.wait(30)
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.wait(30)


def _entry(process: "subprocess.Popen[bytes]") -> psutil.Process:
    """Return the entry point's process, the first below buildah's own that is no longer buildah."""
    children = psutil.Process(process.pid).children(recursive=True)
    return next(child for child in children if "bentoml" in " ".join(child.cmdline()) and "serve" in child.cmdline())


def check_identity(server: Running, service: dict[str, Any], root: Path) -> None:
    uid = int(service["user"].split(":")[0])
    for process in [server.entry, *server.entry.children(recursive=True)]:
        assert set(process.uids()) == {uid}, f"process {process.cmdline()} runs as {process.uids()}"
        assert Path(f"/proc/{process.pid}/root").samefile(root)
    refused = _in_container(server, ["sh", "-c", "touch $BENTO_PATH/written"])
    assert refused.returncode != 0, "the root file system can be written to"
    assert b"Read-only file system" in refused.stderr, refused.stderr
    _tell(f"all its processes run as user {uid}, over a read-only root file system")


def check_health(server: Running, service: dict[str, Any]) -> None:
    _, *probe = service["healthcheck"]["test"]
    found = _in_container(server, [word.replace(":3000/", f":{server.port}/") for word in probe])
    assert found.returncode == 0, found.stderr
    wrong = _in_container(server, [word.replace(":3000/", f":{_free_port()}/") for word in probe])
    assert wrong.returncode != 0, "the health check finds health where nothing listens"
    _tell("the health check says healthy, and unhealthy where nothing answers")


def check_answers(server: Running) -> None:
    for task in server.client.get("/v1/tasks").raise_for_status().json()["tasks"]:
        detail = server.client.get(f"/v1/tasks/{task['task']}").raise_for_status().json()
        answer = server.client.post(f"/v1/tasks/{task['task']}/classify", files={"image": _picture()})
        (best, *_) = answer.raise_for_status().json()["results"][0]["predictions"]
        assert best["label"] in detail["labels"], best
        _tell(f"task {task['task']!r} answers {best['label']!r} with probability {best['probability']:.3f}")
    listed = _in_container(server, ["sh", "-c", "cd $BENTO_PATH/src && python -m models tasks /store --json"])
    assert json.loads(listed.stdout)["tasks"], listed.stderr


def check_graceful_stop(server: Running) -> None:
    """Stop the server in the middle of a request: that one is answered, and the process ends with 0."""
    task, picture = server.client.get("/v1/tasks").json()["tasks"][0]["task"], _picture()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        head = f"POST /v1/tasks/{task}/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
        connection.sendall(f"{head}Content-Length: {len(picture)}\r\n\r\n".encode() + picture[: len(picture) // 2])
        time.sleep(1)
        server.entry.terminate()
        time.sleep(2)
        assert server.entry.is_running(), "it ended with a request under way"
        connection.sendall(picture[len(picture) // 2 :])
        status = connection.recv(1000).split(b"\r\n")[0]
        assert status == b"HTTP/1.1 200 OK", status
    psutil.wait_procs([server.entry], timeout=30)
    with suppress(httpx.TransportError):
        server.client.get("/livez")
        raise AssertionError("it still answers after its end")
    _tell("told to stop, it answered the request under way and ended")


def _in_container(server: Running, command: Sequence[str]) -> "subprocess.CompletedProcess[bytes]":
    """Run a command as an engine's `exec` would: beside the entry point, as the same user."""
    process = server.entry
    user = ["--setuid", str(process.uids().real), "--setgid", str(process.gids().real)]
    enter = ["nsenter", "--target", str(process.pid), "--mount", "--root", "--wd", *user, "--"]
    return subprocess.run([*enter, *command], capture_output=True, check=False, timeout=60, env=process.environ())


def _picture() -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.2)
    raise AssertionError(f"the container is not ready; its log ends:\n{log.read_text()[-3000:]}")


def _run(command: Sequence[str], **options: Any) -> None:
    _tell("$ " + " ".join(command))
    subprocess.run(command, check=True, **options)


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
