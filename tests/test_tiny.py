"""The whole way on a tiny real model, in seconds: evolve a toy task, publish it, serve it, and ask."""

from pathlib import Path

import numpy as np
import pytest

from evolve.loop import evolve_task
from evolve.onnx_route import OnnxRoute
from evolve.publish import create_store
from evolve.task import Task
from models.root import load_root
from tests.support.in_process import served
from tests.support.tiny import TINY_CONFIG, TINY_ROOT


def test_from_labelled_images_to_an_answer(tmp_path: Path, toy_folder: Path, toy_task: Task) -> None:
    store = create_store(tmp_path / "store", load_root(TINY_ROOT))
    outcome = evolve_task(toy_task, store, TINY_CONFIG)
    assert toy_task.test is not None
    offline = OnnxRoute(store, outcome.route.stages).logits(toy_task.test.pixels(outcome.route.image_size))
    files = [toy_folder / name for name in toy_task.test.names]

    with served(store.folder) as (client, _):
        answers = [
            client.post(f"/v1/tasks/{toy_task.name}/classify?logits=1", files={"image": file.read_bytes()}).json()
            for file in files
        ]
    served_logits = np.array([answer["results"][0]["logits"] for answer in answers])
    assert served_logits == pytest.approx(offline, abs=1e-4)
    assert {(answer["release"], answer["route"]) for answer in answers} == {(1, outcome.route_id)}
    best = [answer["results"][0]["predictions"][0]["label"] for answer in answers]
    right = [label == toy_task.labels[index] for label, index in zip(best, toy_task.test.labels, strict=True)]
    assert outcome.route.quality is not None
    assert outcome.route.quality.test_accuracy == pytest.approx(np.mean(right))
