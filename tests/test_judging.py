"""What routes are worth: their evaluation on images, and the baselines that they are held against."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.quality.bars import quality_bars
from evolve.baselines import LEARNING_RATES, Harness, parse_family, start_augmentation
from evolve.candidate import Candidate
from evolve.evaluation import calibration_error, judge
from evolve.hparams import DataHParams
from evolve.local_executor import LocalExecutor
from evolve.loop import evolve_task
from evolve.onnx_route import OnnxRoute
from evolve.pool import WeightPool
from evolve.task import Task, load_images
from evolve.train import Trained, TrainPlan
from models.cli import build_app
from models.errors import InvalidConfig, InvalidData
from models.names import TaskName
from models.store import Store
from tests.support.tiny import TINY_CONFIG, draw_image_folder


def test_an_evaluation_counts_what_was_answered() -> None:
    logits = np.array([[9, 0, 0], [0, 9, 0], [0, 9, 0], [0, 0, 9]], dtype=np.float32)
    evaluation = judge(logits, np.array([0, 0, 1, 1]), ("a", "b", "c"))
    assert evaluation.accuracy == 0.5
    assert evaluation.confusion == ((1, 1, 0), (0, 1, 1), (0, 0, 0))
    assert [quality.recall for quality in evaluation.classes] == [0.5, 0.5, None]
    assert [quality.precision for quality in evaluation.classes] == [1.0, 0.5, 0.0]
    assert [quality.most_confused_with for quality in evaluation.classes] == ["b", "c", None]
    assert evaluation.top5_accuracy is None
    assert evaluation.calibration_error == pytest.approx(0.5, abs=1e-3)


def test_a_calibrated_answer_has_no_calibration_error() -> None:
    confidence = np.repeat([0.25, 0.75], 8)
    is_right = np.array([1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0], dtype=bool)
    assert calibration_error(confidence, is_right) == pytest.approx(0)


def test_evaluate_says_what_the_route_answers(tiny_store: Path, tmp_path: Path) -> None:
    folder = draw_image_folder(tmp_path / "new", seed=9)
    command = ["evaluate", str(tiny_store), "shapes_a", "--data", str(folder), "--plot", str(tmp_path / "c.svg")]
    done = CliRunner().invoke(build_app(), [*command, "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    store = Store.open(tiny_store)
    route = store.routes(store.release())[TaskName("shapes_a")]
    images = load_images(folder, route.labels, cache_folder=tmp_path)
    assert facts["accuracy"] == OnnxRoute(store, route.stages).accuracy(images, route.image_size)
    assert facts["images"] == 30
    assert facts["route"] == store.release().tasks[TaskName("shapes_a")]
    assert (tmp_path / "c.svg").read_text().startswith("<?xml")
    assert facts["part"] == "all"
    said = CliRunner().invoke(build_app(), command).stdout
    assert "calibration error" in said
    assert "no test part, so all of it was judged" in said


def evaluated(store: Path, data: Path | str) -> dict[str, object]:
    done = CliRunner().invoke(build_app(), ["evaluate", str(store), "shapes_a", "--data", str(data), "--json"])
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(("layout", "part"), [("red", "all"), ("test", "test"), ("test/red", "test"), ("csv", "all")])
def test_evaluate_needs_neither_all_classes_nor_a_training_part(
    tiny_store: Path, tmp_path: Path, layout: str, part: str
) -> None:
    drawn = draw_image_folder(tmp_path / "drawn", images_per_class=3, seed=9)
    data = tmp_path / "new"
    if layout == "csv":
        data = tmp_path / "new.csv"
        data.write_text("path,label\ndrawn/red/0.png,red\ndrawn/red/1.png,red\ndrawn/red/2.png,red\n")
    else:
        shutil.copytree(drawn / "red" if "red" in layout else drawn, data / layout)
    facts = evaluated(tiny_store, data)
    assert (facts["images"], facts["part"]) == (9 if layout == "test" else 3, part)


@pytest.mark.parametrize("as_csv", [False, True])
def test_evaluate_offers_no_option_that_it_does_not_have(tiny_store: Path, tmp_path: Path, as_csv: bool) -> None:
    data = draw_image_folder(tmp_path / "new", images_per_class=2, seed=9)
    (data / "red" / "0.png").write_bytes(b"abc")
    if as_csv:
        rows = [f"{path},{path.parent.name}" for path in sorted(data.rglob("*.png"))]
        data = tmp_path / "new.csv"
        data.write_text("\n".join(["path,label", *rows]))
    done = CliRunner().invoke(build_app(), ["evaluate", str(tiny_store), "shapes_a", "--data", str(data)])
    assert isinstance(done.exception, InvalidData)
    assert f"{str(data)!r}: 1 of 6 images cannot be used; repair or remove them:" in str(done.exception)
    assert "red/0.png" in str(done.exception)


def test_evaluate_judges_the_test_part_where_there_is_one(tiny_store: Path, tmp_path: Path) -> None:
    draw_image_folder(tmp_path / "new" / "train", seed=9)
    draw_image_folder(tmp_path / "new" / "test", images_per_class=2, seed=10)
    command = ["evaluate", str(tiny_store), "shapes_a", "--data", str(tmp_path / "new")]
    facts = json.loads(CliRunner().invoke(build_app(), [*command, "--json"]).stdout)
    assert (facts["part"], facts["images"]) == ("test", 6)
    assert "no test part" not in CliRunner().invoke(build_app(), command).stdout


def test_a_class_that_the_route_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = draw_image_folder(tmp_path / "new")
    with pytest.raises(InvalidData, match="has the class 'blue', which the route does not know; its classes are red, "):
        load_images(folder, ("red", "green"), cache_folder=tmp_path)


@pytest.mark.parametrize("family", ["finetune", "freeze:1", "adapters:4", "probe"])
def test_a_baseline_trains_what_it_says_within_its_images(opened_store: Store, toy_task: Task, family: str) -> None:
    harness = Harness(opened_store, toy_task, image_sizes=(8, 16), images=600, execute=LocalExecutor())
    result = harness.run(parse_family(family, 2))
    root = {component.kind: component.parameters for component in opened_store.root().components}
    head = 3 * 16 + 3
    own = {
        "finetune": root["patch_embed"] + (5 if result.image_size == 16 else 2) * 16 + 2 * root["block"],
        "freeze:1": root["block"],
        "adapters:4": 2 * (4 * 16 * 2 + 4 + 3 * 16),
        "probe": 0,
    }
    assert result.own_parameters == own[family] + root["norm"] + head
    assert result.trained_images == sum(trial.images for trial in result.trials) <= 600
    assert len(result.trials) == 2 * len(LEARNING_RATES) + 1
    assert result.validation_accuracy == max(trial.validation_accuracy for trial in result.trials)
    assert result.test_accuracy is not None


@pytest.mark.parametrize("text", ["freeze", "freeze:3", "adapters:0", "all", "finetune:1"])
def test_an_unknown_family_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig, match=f"there is no family '{text}': use finetune, freeze:K with K up to 2"):
        parse_family(text, 2)


def test_baselines_get_the_images_that_the_route_had(tiny_store: Path, toy_folder: Path) -> None:
    command = ["baselines", str(tiny_store), "shapes_a", "--data", str(toy_folder), "--family", "probe", "--json"]
    done = CliRunner().invoke(build_app(), [*command, "--threads", "1"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    store = Store.open(tiny_store)
    assert facts["images"] == store.routes(store.release())[TaskName("shapes_a")].lineage.trained_images
    assert [result["family"] for result in facts["baselines"]] == ["probe"]


def test_baselines_get_the_augmentation_that_the_evolution_started_with(opened_store: Store, toy_task: Task) -> None:
    config = replace(TINY_CONFIG, crop_area_min=0.8, flip=True)
    route = evolve_task(toy_task, opened_store, config).route
    seen: list[DataHParams] = []

    def execute(candidates: Sequence[Candidate], task: Task, pool: WeightPool, plan: TrainPlan) -> Iterator[Trained]:
        seen.extend(candidate.data for candidate in candidates)
        return LocalExecutor()(candidates, task, pool, plan)

    augmentation = start_augmentation(route)
    harness = Harness(
        opened_store, toy_task, image_sizes=(8, 16), images=600, execute=execute, augmentation=augmentation
    )
    harness.run(parse_family("probe", 2))
    assert {data.image_size for data in seen} == {8, 16}
    assert {(data.crop_area_min, data.crop_aspect_min, data.flip) for data in seen} == {(0.8, 1.0, True)}


def test_the_quality_bars_compare_with_the_best_family() -> None:
    evolved = {"task": "a", "flops": 10, "test_logits": "x", "validation_accuracy": 0.93}
    evolved |= {"test_accuracy": 0.9, "expected_accuracy": 0.91}
    tuned = {"task": "a", "family": "finetune", "test_accuracy": 0.91, "flops": 40, "own_parameters": 100}
    probe = {"task": "a", "family": "probe", "test_accuracy": 0.5, "flops": 40, "own_parameters": 1}
    final = {"accounted_parameters": {"a": 30.0}, "test_logits": {"a": "x"}}
    bars = quality_bars([{"evolved": [evolved], "baselines": [probe, tuned], "final": final}])
    assert [(bar.bar, bar.value, bar.met) for bar in bars] == [
        ("quality-1", -0.01, False),
        ("quality-2", 0.3, True),
        ("quality-3", 0.25, True),
        ("quality-4", -0.01, True),
        ("quality-5", 1, True),
        ("quality-6", 0.03, False),
    ]
