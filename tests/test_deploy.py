"""The examples in deploy/ fit together and fit this version, as far as can be told without a cluster."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from models.cli import build_app
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "deploy" / "online.compose.yaml").read_text())
WORKER_REQUIREMENTS = ROOT / "deploy" / "requirements-worker.txt"
OBJECTS: dict[str, dict[str, Any]] = {
    found["kind"]: found for found in yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
}
KNOWN = {PREFIX + name.upper() for name in Settings.model_fields}


def containers() -> list[dict[str, Any]]:
    cluster = OBJECTS["RayJob"]["spec"]["rayClusterSpec"]
    pods = [OBJECTS["Deployment"]["spec"]["template"], cluster["headGroupSpec"]["template"]]
    pods += [group["template"] for group in cluster["workerGroupSpecs"]]
    return [container for pod in pods for container in pod["spec"]["containers"]]


def test_all_objects_are_named_with_their_versions() -> None:
    versions = {kind: found["apiVersion"] for kind, found in OBJECTS.items()}
    assert versions == {
        "Deployment": "apps/v1",
        "Service": "v1",
        "HorizontalPodAutoscaler": "autoscaling/v2",
        "RayJob": "ray.io/v1",
    }
    assert all(found["metadata"]["name"] for found in OBJECTS.values())


def test_labels_ports_and_names_match() -> None:
    deployment, service, scaler = (OBJECTS[kind] for kind in ("Deployment", "Service", "HorizontalPodAutoscaler"))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    assert service["spec"]["ports"][0]["targetPort"] == server["ports"][0]["name"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "requests" in server["resources"], "the autoscaler goes by what is requested"
    mounts = {mount["name"] for mount in server["volumeMounts"]}
    assert mounts == {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}


def test_every_setting_is_known() -> None:
    names = {entry["name"] for container in containers() for entry in container.get("env", [])}
    names |= {name for service in COMPOSE["services"].values() for name in service.get("environment", {})}
    assert {name for name in names if name.startswith(PREFIX)} <= KNOWN


def test_the_workers_command_lines_are_understood() -> None:
    command = typer.main.get_command(build_app()).commands["worker"]  # type: ignore[attr-defined]
    script, name, *arguments = shlex.split(OBJECTS["RayJob"]["spec"]["entrypoint"])
    assert (script, name) == ("mu2net", "worker")
    found = command.make_context("worker", arguments).params
    assert (found["store"], found["executor"], found["ray_address"]) == ("s3://bucket/store", "ray", "auto")
    text = (ROOT / "deploy" / "worker.Dockerfile").read_text()
    assert 'CMD ["worker", "/store"]' in text
    assert f"COPY deploy/{WORKER_REQUIREMENTS.name} " in text


def test_the_workers_image_installs_nothing_without_a_hash() -> None:
    text = (ROOT / "deploy" / "worker.Dockerfile").read_text()
    (installation,) = re.findall(r"uv pip install.*", text)
    assert "--require-hashes --only-binary :all:" in installation
    lines = WORKER_REQUIREMENTS.read_text()
    assert "://" not in lines
    pinned = re.findall(r"^([\w.-]+)==[^\n]*\\\n    --hash=sha256:[0-9a-f]{64}", lines, re.MULTILINE)
    assert len(pinned) == len(re.findall(r"^[^#\s][^\n]*==", lines, re.MULTILINE))
    assert {"torch", "timm", "ray", "psycopg", "s3fs", "bentoml"} <= set(pinned)


def test_ray_is_the_version_that_is_pinned() -> None:
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    assert f"ray=={OBJECTS['RayJob']['spec']['rayClusterSpec']['rayVersion']}" in pins


@pytest.mark.parametrize("name", ["server", "worker"])
def test_compose_gives_both_the_store_and_the_queue(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["volumes"][0].endswith(":/store")
    assert service["environment"]["MU2NET_QUEUE"].endswith("@queue/mu2net")
    assert service["depends_on"] == {"queue": {"condition": "service_healthy"}}


def test_compose_puts_the_worker_behind_the_server() -> None:
    assert COMPOSE["services"]["worker"]["cpu_shares"] == 2, "the kernel's least"
