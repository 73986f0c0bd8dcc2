"""The Bento: holds the service and what it imports, names no registry, and serves a mounted store."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import onnxruntime
import pytest
import yaml

from tests.support.images import picture
from tests.support.processes import environment, free_port, wait_until
from tests.support.stores import TaskPlan, make_store

ROOT = Path(__file__).parents[1]
HOME = str(Path.home())  # uv's cache lies there
BENTOML = [sys.executable, "-m", "bentoml"]


def test_the_bento_includes_the_service_and_the_models_alone() -> None:
    options = (ROOT / "bentofile.yaml").read_text()
    assert 'include:\n  - "service/**"\n  - "models/**"\n  - pyproject.toml' in options
    assert "  - name: MU2NET_STORE\n    value: /store\n" in options
    requirements = (ROOT / "service" / "requirements.txt").read_text()
    assert "://" not in requirements
    assert "--hash=sha256:" in requirements
    assert not {line.split("==")[0] for line in requirements.splitlines()} & {"torch", "timm", "onnx"}


def test_the_gpu_image_differs_in_its_packages_and_its_device_alone() -> None:
    cpu, gpu = (yaml.safe_load((ROOT / name).read_text()) for name in ("bentofile.yaml", "bentofile.gpu.yaml"))
    assert gpu["python"].pop("requirements_txt") == "service/requirements-gpu.txt"
    assert cpu["python"].pop("requirements_txt") == "service/requirements.txt"
    more = [env["name"] for env in gpu["envs"] if env not in cpu["envs"]]
    assert more == ["MU2NET_DEVICE", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"]
    gpu["envs"] = [env for env in gpu["envs"] if env in cpu["envs"]]
    assert gpu == cpu

    def packages(name: str) -> set[str]:
        return set(re.findall(r"^\S+==[^ ;]+", (ROOT / "service" / name).read_text(), re.MULTILINE))

    assert packages("requirements.txt") < packages("requirements-gpu.txt")
    assert {line.split("-")[0] for line in packages("requirements-gpu.txt") - packages("requirements.txt")} == {
        "nvidia"
    }


@pytest.mark.parametrize("suffix", ["", "-gpu"])
def test_the_bill_of_materials_lists_what_the_image_installs(suffix: str) -> None:
    text = (ROOT / "service" / f"sbom{suffix}.cdx.json").read_text()
    assert "://" not in text
    bill = json.loads(text)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    listed = {component["purl"] for component in bill["components"] if "purl" in component}
    requirements = (ROOT / "service" / f"requirements{suffix}.txt").read_text()
    pinned = re.findall(r"^([\w.-]+)==([^\s;]+)", requirements, re.MULTILINE)
    assert {f"pkg:pypi/{name}@{version}" for name, version in pinned} == listed


def test_the_gpu_packages_have_what_onnx_runtime_needs_of_cuda() -> None:
    """torch brings most of it and hides what is missing, cuRAND say: a serving install has these packages alone."""
    provider = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not provider.exists():
        pytest.skip("this ONNX Runtime is built without CUDA")
    with provider.open("rb") as file:
        names = re.findall(rb"\0lib(cu\w+?)\.so\.\d+(?=\0)", file.read(5_000_000))  # of the libraries it is linked to
    packages = {"cublas": "cublas", "cublasLt": "cublas", "cudart": "cuda-runtime", "curand": "curand"}
    needed = {packages[name.decode()] for name in names if name != b"cuda"}  # which comes with the driver
    assert needed
    requirements = (ROOT / "service" / "requirements-gpu.txt").read_text()
    assert all(f"\nnvidia-{package}==" in requirements for package in needed)


def copy_tracked_files(folder: Path) -> Path:
    """Return a folder with what a clean clone would have."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.slow
def test_a_bento_built_from_a_clean_clone_serves_a_store(tmp_path: Path) -> None:
    clone, home = copy_tracked_files(tmp_path / "clone"), tmp_path / "bentos"
    store = make_store(tmp_path / "store", TaskPlan("first"))
    env = environment(tmp_path, BENTOML_HOME=str(home), BENTOML_DO_NOT_TRACK="True", PATH=os.environ["PATH"])
    subprocess.run([*BENTOML, "build"], cwd=clone, env=env, check=True, timeout=300)
    (source,) = home.glob("bentos/mu2net/*/src")
    assert {path.name for path in source.iterdir()} == {"service", "models", "pyproject.toml", "bentofile.yaml"}
    dockerfile = (source.parent / "env" / "docker" / "Dockerfile").read_text()
    assert re.search(r"^FROM \S+:\d+\.\d+\.\d+-python3\.11-bookworm-slim AS", dockerfile, re.MULTILINE)
    assert re.search(r"^USER bentoml$", dockerfile, re.MULTILINE)

    own = tmp_path / "own"  # an environment with the Bento's locked packages and nothing else, as in its image
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, own], check=True, timeout=60)
    locked = ["-r", str(source.parent / "env" / "python" / "requirements.txt")]
    subprocess.run(
        ["uv", "pip", "install", "--quiet", "--python", str(own), *locked],
        check=True,
        timeout=600,
        env=env | {"HOME": HOME},
    )
    port = free_port()
    bentoml = [str(own / "bin" / "python"), "-m", "bentoml"]
    command = [*bentoml, "serve", "mu2net:latest", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=env | {"MU2NET_STORE": str(store.folder)}, cwd=tmp_path)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until(server, lambda: client.get("/readyz").status_code == 200)
            listing = [str(own / "bin" / "python"), "-m", "models", "tasks", str(store.folder), "--json"]
            listed = subprocess.run(listing, cwd=source, env=env, capture_output=True, check=True, timeout=60).stdout
            assert json.loads(listed)["tasks"][0]["task"] == "first"
            answer = client.post("/v1/tasks/first/classify", files={"image": picture()})
            assert answer.status_code == 200
            assert answer.json()["release"] == 1
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_wrong_settings_end_bentoml_serve_at_once(tmp_path: Path) -> None:
    env = environment(tmp_path, MU2NET_STORE=str(tmp_path), MU2NET_QUEUES="3")
    done = subprocess.run(
        [*BENTOML, "serve", "service.api:Mu2Net", "--port", str(free_port())],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "unknown setting MU2NET_QUEUES; known settings: " in done.stderr
    assert "Traceback" not in done.stderr
