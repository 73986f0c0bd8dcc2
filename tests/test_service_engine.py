"""The engine's promises: neighbours change nothing, what is shared runs once, torch agrees."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.errors import DamagedObject, InvalidConfig, InvalidRoute
from models.names import SubgraphId, TaskName
from models.store import Store
from service import engine
from service.device import Device, Place
from service.engine import Batch, Head, LoadedStage, Row
from service.release import LoadedRelease, StagePool
from service.runtime import COPY, FIRST_TOKENS, start_runtime
from tests.support.routes import PLANS, assert_rows_do_not_depend_on_neighbours, rows_of_every_task
from tests.support.stores import TaskPlan, add_task, make_store, torch_logits


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("engine") / "store", *PLANS)


@pytest.fixture(scope="module", params=["arrays", "device"])
def release(store: Store, request: pytest.FixtureRequest) -> LoadedRelease:
    """The release with activations as arrays, and bound to memory by the code that CUDA takes, here the CPU's."""
    runtime = start_runtime("cpu", 1)
    return load(store, Device(runtime, "cpu") if request.param == "device" else None)


def load(store: Store, device: Device | None = None) -> LoadedRelease:
    return StagePool(start_runtime("cpu", 1), device=device).load_release(store, store.current().release, [])


def test_a_row_has_the_same_bits_alone_and_among_any_neighbours(release: LoadedRelease) -> None:
    assert_rows_do_not_depend_on_neighbours(rows_of_every_task(release))


def test_every_order_of_one_image_per_task_gives_the_same_answers(release: LoadedRelease) -> None:
    rows = rows_of_every_task(release, images=1)[:4]
    expected = engine.run(rows)
    for order in itertools.permutations(range(len(rows))):
        found = engine.run([rows[i] for i in order])
        assert all(np.array_equal(found[k], expected[i]) for k, i in enumerate(order))


@pytest.mark.parametrize("task", [plan.name for plan in PLANS])
def test_the_engine_agrees_with_the_offline_evaluation(store: Store, release: LoadedRelease, task: str) -> None:
    route = release.route(task)
    size = route.route.image_size
    pixels = np.random.default_rng(1).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    found = np.stack(engine.run([Row(image, route) for image in pixels]))
    np.testing.assert_allclose(found, torch_logits(store, task, pixels), atol=1e-4)


class Counted:
    """A stage that counts its rows."""

    def __init__(self, stage: LoadedStage, counts: "Counter[tuple[SubgraphId, int]]") -> None:
        self.id = stage.id
        self._stage = stage
        self._counts = counts

    def run(self, places: Sequence[Place]) -> Batch:
        self._counts[self.id, len(places)] += 1
        return self._stage.run(places)


def count_runs(rows: Sequence[Row], monkeypatch: pytest.MonkeyPatch) -> "Counter[tuple[SubgraphId, int]]":
    """Return how often each subgraph runs with how many rows."""
    counts: Counter[tuple[SubgraphId, int]] = Counter()
    for route in {row.route for row in rows}:
        monkeypatch.setattr(route, "stages", tuple(Counted(stage, counts) for stage in route.stages))
    engine.run(rows)
    return counts


def test_one_image_for_many_tasks_runs_what_they_share_once(
    release: LoadedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    routes = [release.route(task) for task in ("plain", "parts", "shallow")]
    embed, first, second, third, _ = (stage.id for stage in routes[0].stages)
    own_second = routes[1].stages[2].id
    counts = count_runs([Row(image, route) for route in routes], monkeypatch)
    assert counts[embed, 1] == counts[first, 1] == counts[second, 1] == counts[own_second, 1] == 1
    assert counts[third, 2] == 1  # they met again: two different inputs, one run
    assert routes[1].stages[3].id == third


def test_tasks_run_together_wherever_they_share(release: LoadedRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    tasks = ["plain", "parts", "plain", "shallow"]
    rows = [Row(image, release.route(task)) for image, task in zip(images, tasks, strict=True)]
    stages = release.route("plain").stages
    counts = count_runs(rows, monkeypatch)
    assert counts[stages[0].id, 4] == counts[stages[1].id, 4] == counts[stages[2].id, 2] == counts[stages[3].id, 3] == 1


def test_every_run_of_a_subgraph_is_told(release: LoadedRelease) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    told: Counter[SubgraphId] = Counter()
    engine.run([Row(image, release.route(task)) for task in ("plain", "parts")], lambda i, rows: told.update({i: rows}))
    plain, parts = (release.route(task).stages for task in ("plain", "parts"))
    assert [told[stage.id] for stage in plain] == [1, 1, 1, 2, 1]
    assert [told[stage.id] for stage in parts] == [1, 1, 1, 2, 1]


def test_what_an_images_rows_share_is_reckoned_once(release: LoadedRelease) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    plain, parts = (Row(image, release.route(task)) for task in ("plain", "parts"))
    assert engine.flops([plain]) == engine.flops([plain, plain]) == plain.route.flops
    # embedding and first block are one; the last block is the same but gets something else
    assert engine.flops([plain, parts]) == pytest.approx(plain.route.flops + parts.route.flops * 3 / 5)


def test_a_new_release_loads_only_what_is_new(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", *PLANS[:2])
    pool = StagePool(start_runtime("cpu", 1))
    first = pool.load_release(store, 2, [])
    before = pool.held()
    assert before == {stage.id for route in first.routes.values() for stage in route.stages}
    add_task(store, TaskPlan("third", own_blocks=[2], seed=9))
    for name in [stage.subgraph for route in first.routes.values() for stage in route.route.stages]:
        (store.folder / "objects" / f"{name}.onnx").unlink(missing_ok=True)  # what is held is not even looked at
    second = pool.load_release(store, 3, [first])
    assert len(pool.held() - before) == 2  # its block and head; embedding, 3 + 1 blocks and 2 heads are there
    assert second.route("plain") is first.route("plain")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "json"])
def test_a_damaged_file_is_named_with_the_task_that_needs_it(tmp_path: Path, kind: str) -> None:
    store = make_store(tmp_path / "store", TaskPlan("plain"))
    route_id = store.release().tasks[TaskName("plain")]
    route = store.routes(store.release())[TaskName("plain")]
    name = {"json": route_id, "onnx": route.stages[1].subgraph, "safetensors": route.stages[1].components[0].id}[kind]
    damage(store.folder / "objects" / f"{name}.{kind}")
    with pytest.raises(DamagedObject) as caught:
        load(store)
    assert f"{name}.{kind} is damaged: its sha256 is " in str(caught.value)
    assert "needed by task 'plain'" in str(caught.value)
    assert "restore it from a copy of this store" in str(caught.value)


def test_a_head_that_does_not_fit_is_told() -> None:
    norm = {"weight": np.ones(4, np.float32), "bias": np.ones(4, np.float32)}
    head = {"weight": np.ones((3, 5), np.float32), "bias": np.ones(3, np.float32)}
    with pytest.raises(InvalidRoute, match=r"subgraph x: a head of shape \(3, 5\) fits no norm of \(4,\)"):
        Head(SubgraphId("x"), norm, head)
    with pytest.raises(InvalidRoute, match="its norm or head has no tensor 'bias'"):
        Head(SubgraphId("x"), {"weight": norm["weight"]}, head)


def test_the_graphs_that_move_rows_are_what_they_say() -> None:
    for graph, op, rank in ((COPY, "Identity", 1), (FIRST_TOKENS, "Gather", 3)):
        model = onnx.load_from_string(graph)
        onnx.checker.check_model(model, full_check=True)
        (node,) = model.graph.node
        assert node.op_type == op
        assert len(model.graph.input[0].type.tensor_type.shape.dim) == rank
    assert (node.attribute[0].name, node.attribute[0].i) == ("axis", 1)


@pytest.mark.gpu
def test_the_engine_answers_on_cuda_as_on_the_cpu(store: Store) -> None:
    """Skipped where there is no GPU; where its libraries are missing this fails."""
    try:
        runtime = start_runtime("cuda", 1)
    except InvalidConfig as error:
        if "NVIDIA driver" not in str(error):
            raise
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    on_cuda = StagePool(runtime).load_release(store, store.current().release, [])
    expected, found = (engine.run(rows_of_every_task(release)) for release in (load(store), on_cuda))
    for logits, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(logits, wanted, atol=1e-3)
