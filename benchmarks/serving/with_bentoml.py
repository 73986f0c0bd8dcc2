"""The compared BentoML service: `classify` of an image for a task, as its documentation shows it."""

import os
from pathlib import Path

import bentoml

from benchmarks.serving.whole import Arguments


@bentoml.service(name="stock", workers=1, traffic={"timeout": 600})
class Stock:
    def __init__(self) -> None:
        self._models = Arguments.read(os.environ["BENCHMARK_ARGUMENTS"].split("\n")).models()

    @bentoml.api
    def classify(self, image: Path, task: str) -> list[float]:
        return self._models.logits(task, image.read_bytes())
