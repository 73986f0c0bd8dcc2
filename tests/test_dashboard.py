"""The Grafana dashboard asks for metrics that the server has, and for no label that it lacks."""

import json
import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from service.metrics import Metrics

BOARD = Path(__file__).parents[1] / "deploy" / "grafana.json"
OF_PROMETHEUS = {"instance", "le"}


def test_every_metric_of_the_dashboard_is_the_servers() -> None:
    metrics = Metrics(CollectorRegistry())
    labels = {found._name: set(found._labelnames) for found in vars(metrics).values() if hasattr(found, "_labelnames")}
    board = json.loads(BOARD.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    used = {name for text in expressions for name in re.findall(r"mu2net_\w+", text)}
    assert len(used) > 10
    for text in expressions:
        names = re.findall(r"mu2net_\w+", text)
        (metric,) = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names}
        assert metric in labels, f"the server has no metric {metric!r}"
        grouped = [name.strip() for names in re.findall(r"by \(([^)]*)\)", text) for name in names.split(",")]
        assert set(grouped) <= labels[metric] | OF_PROMETHEUS, text
