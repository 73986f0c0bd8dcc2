"""docs/metrics.md tells every metric and limit as it is; logs are JSON with what belongs to a request."""

import json
import logging
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.logs import write_json_logs
from service.metrics import Metrics
from service.settings import PREFIX, Settings
from tests.support.in_process import PATH, send, served
from tests.support.stores import TaskPlan, make_store

DOCUMENT = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()


def test_every_metric_is_in_the_table_as_it_is() -> None:
    metrics = Metrics(CollectorRegistry())
    rows = []
    for metric in vars(metrics).values():
        labels = ", ".join(getattr(metric, "_labelnames", ())) or "none"
        for family in metric.describe() if hasattr(metric, "describe") else ():
            name = family.name + ("_total" if family.type == "counter" else "")
            rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    assert re.findall(r"^\| `mu2net_.*$", DOCUMENT, re.MULTILINE) == rows


def test_every_limit_has_its_default() -> None:
    for name, told in re.findall(r"^\| `MU2NET_(\w+)` \| ([\d.,]+(?: MiB)?) \|", DOCUMENT, re.MULTILINE):
        number, _, unit = told.replace(",", "").partition(" ")
        assert Settings.model_fields[name.lower()].default == float(number) * (2**20 if unit else 1), PREFIX + name


def test_every_setting_has_a_row() -> None:
    rows = set(re.findall(r"^\| `MU2NET_(\w+)`", DOCUMENT, re.MULTILINE))
    assert rows == {name.upper() for name in Settings.model_fields}


def test_logs_are_json_with_the_request_and_its_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first"))
    logger = logging.getLogger("mu2net")
    before = (logger.handlers, logger.propagate, logger.level)
    write_json_logs()
    try:
        with served(store.folder, log_requests=True) as (client, _):
            answer = client.post(f"{PATH}?secret=1", headers={"x-request-id": "mine-7"})
            assert answer.headers["x-request-id"] == "mine-7"
            assert send(client, PATH).headers["x-request-id"] != "mine-7"
            assert client.get("/v1/tasks", headers={"x-request-id": "not one"}).headers["x-request-id"] != "not one"
    finally:
        logger.handlers, logger.propagate, logger.level = before
    printed = capsys.readouterr().out
    lines = [json.loads(line) for line in printed.splitlines()]
    first, second = [line for line in lines if line["message"] == "request"][:2]
    assert (first["request_id"], first["status"], first["path"]) == ("mine-7", 422, PATH)
    assert (second["release"], second["status"], second["method"], second["level"]) == (1, 200, "POST", "INFO")
    assert 0 < second["seconds"] < 60
    assert "secret" not in printed
