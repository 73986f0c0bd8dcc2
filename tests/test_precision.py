"""Lower precisions: shared stays shared, neighbours change nothing, what it costs is measured and bounded."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from evolve.loop import evolve_task
from evolve.onnx_route import OnnxRoute
from evolve.subgraphs import SubgraphWriter
from evolve.task import LabelledImages, Task, load_images
from evolve.variants import drop_variants, lower_release
from models.collect import release_objects
from models.errors import DamagedObject, InvalidConfig, InvalidRoute, PrecisionLoss
from models.names import ComponentId, RouteId, TaskName
from models.precision import Precision, lower
from models.push import push
from models.records import encode
from models.store import Store, object_name
from models.verify import verify
from models.weights import deserialize, serialize
from service import engine
from service.golden import Proofs
from service.release import LoadedRelease, StagePool
from service.runtime import CPU, CUDA, Runtime, start_runtime
from tests.support.command_line import Cli
from tests.support.routes import PLANS, assert_rows_do_not_depend_on_neighbours, rows_of_every_task
from tests.support.stores import TaskPlan, lower_all, make_store, route_logits
from tests.support.tiny import TINY_CONFIG


@pytest.fixture(scope="module")
def plain_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("precision") / "store", *PLANS)


@pytest.fixture(scope="module")
def int8_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = make_store(tmp_path_factory.mktemp("int8") / "store", *PLANS)
    lower_all(store, "int8")
    return store


def load(store: Store, precision: Precision | None, number: int | None = None) -> LoadedRelease:
    start_runtime("cpu", 1)
    pool = StagePool(Runtime(CPU, 1, precision))
    return pool.load_release(store, store.current().release if number is None else number, [])


def judged_by_itself(store: Store, task: str, folder: Path, count: int = 60) -> LabelledImages:
    """Return images of all kinds of colour whose labels are the route's own float32 answers: its accuracy is 1."""
    route = store.routes(store.release())[TaskName(task)]
    size = route.image_size
    rng = np.random.default_rng(5)
    colours, noise = rng.uniform(0, 256, (count, 1, 1, 3)), rng.uniform(-128, 128, (count, size, size, 3))
    pixels = np.clip(colours + noise * rng.uniform(0, 1, (count, 1, 1, 1)), 0, 255).astype(np.uint8)
    answers = OnnxRoute(store, route.stages).logits(pixels).argmax(axis=1)
    for index, (image, answer) in enumerate(zip(pixels, answers, strict=True)):
        path = folder / task / route.labels[answer] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return load_images(folder / task, route.labels, cache_folder=folder / "pixels")


def spoil(store: Store, task: str, *, block: int) -> None:
    """Give a task a block of its own that int8 cannot hold: in each row one weight dwarfs all others."""
    route = store.routes(store.release())[TaskName(task)]
    component = route.stages[1 + block].components[-1]
    weights = deserialize(store.read_object(component.id, "safetensors", needed_by="a test"), "a block")
    weights["mlp.fc1.weight"][:, 0] = 1e4
    weights["mlp.fc2.weight"] *= 10
    weights["norm2.weight"][0] = weights["norm2.bias"][0] = 0  # so that in float32 the large ones meet only zeros
    digest = ComponentId(store.put_object(serialize(weights), "safetensors"))
    components = [replace(c, id=digest) if c.id == component.id else c for c in route.components]
    stages = SubgraphWriter(store, route.network, route.preprocessing, route.image_size).write_stages(components)
    spoiled = store.put_route(replace(route, stages=stages))
    store.publish(lambda tasks: {**tasks, TaskName(task): spoiled}, reason="spoiled")


def test_int8_weights_are_right_to_half_a_step_of_their_own_row() -> None:
    rng = np.random.default_rng(0)
    weights = {
        "attn.qkv.weight": (rng.normal(size=(6, 4)) * 10.0 ** rng.integers(-3, 3, (6, 1))).astype(np.float32),
        "attn.qkv.bias": rng.normal(size=6).astype(np.float32),
        "norm1.weight": np.ones(4, np.float32),
    }
    weights["attn.qkv.weight"][2] = 0
    lowered = lower("block", weights, "int8")
    assert lowered is not None
    assert lowered.keys() == {"attn.qkv.weight", "attn.qkv.scale"}
    levels, scale = lowered["attn.qkv.weight"], lowered["attn.qkv.scale"]
    assert levels.dtype == np.int8
    assert (levels.shape, scale.shape) == ((4, 6), (6,))
    distance = np.abs(levels.T * scale[:, None] - weights["attn.qkv.weight"])
    assert (distance <= 0.5001 * scale[:, None]).all()
    assert lower("head", {"weight": np.ones((2, 2), np.float32)}, "int8") is None
    assert lower("adapter", {"up.weight": np.ones((2, 2), np.float32)}, "int8") is None


def test_in_int8_a_row_has_the_same_bits_alone_and_among_any_neighbours(int8_store: Store) -> None:
    assert_rows_do_not_depend_on_neighbours(rows_of_every_task(load(int8_store, "int8")))


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_a_lowered_route_answers_nearly_as_in_float32(plain_store: Store, precision: Precision) -> None:
    for route in plain_store.routes(plain_store.release()).values():
        writer = SubgraphWriter(plain_store, route.network, route.preprocessing, route.image_size)
        lowered = [writer.write(stage.kind, stage.components, precision) for stage in route.stages]
        for stage in lowered:
            onnx.checker.check_model(plain_store.object_path(stage.subgraph, "onnx", needed_by="a test"))
        shape = (8, route.image_size, route.image_size, 3)
        pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        expected = route_logits(plain_store, route, pixels)
        found = OnnxRoute(plain_store, route.stages, lowered).logits(pixels)
        assert 0 < np.abs(found - expected).max() < {"int8": 0.15, "float16": 0.01}[precision] * np.abs(expected).max()


def test_a_token_of_zeros_is_no_division_by_zero(int8_store: Store) -> None:
    block = load(int8_store, "int8").route("plain").stages[1]
    tokens = np.zeros((2, 5, 16), np.float32)
    found = block.run([(tokens, 0), (tokens, 1)])
    assert isinstance(found, np.ndarray)
    assert np.isfinite(found).all()


def test_what_routes_share_in_float32_they_share_in_int8(int8_store: Store) -> None:
    routes = int8_store.routes(int8_store.release()).values()
    pairs = {
        (stage.subgraph, lowered)
        for route in routes
        for stage, lowered in zip(route.stages, route.variants["int8"].stages, strict=True)
    }
    assert len(pairs) == len({subgraph for subgraph, _ in pairs})
    loaded = load(int8_store, "int8")
    plain, parts = (loaded.route(task).stages for task in ("plain", "parts"))
    assert plain[1] is parts[1]
    assert plain[3] is parts[3]


def test_a_server_runs_what_its_device_is_for_and_float32_else(int8_store: Store) -> None:
    records = int8_store.routes(int8_store.release())
    in_float32 = load(int8_store, None)
    for task, loaded in load(int8_store, "int8").routes.items():
        assert [stage.id for stage in loaded.stages] == [
            stage.subgraph for stage in records[task].variants["int8"].stages
        ]
        Proofs().check(loaded, int8_store, engine.run)
        plain = in_float32.route(task)
        assert [stage.id for stage in plain.stages] == [stage.subgraph for stage in records[task].stages]
        Proofs().check(plain, int8_store, engine.run)
    on_gpu = load(int8_store, "float16")  # which no route here has
    assert on_gpu.route("plain").precision is None
    assert start_runtime("cpu", 1).precision in ("int8", None)
    assert Runtime(CUDA, 1).precision is None


def test_lowering_a_release_records_what_it_costs(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", *PLANS[:2])
    before = store.routes(store.release())
    images = {task: judged_by_itself(store, task, tmp_path / "images") for task in before}
    release = lower_release(store, "int8", images, tolerance=20)
    assert (release.precisions, release.reason, release.format_version) == ({"int8": 20}, "int8 within 20 points", 2)
    for task, route in store.routes(release).items():
        variant = route.variants["int8"]
        assert (variant.float32_accuracy, variant.validation_images) == (1.0, 60)
        found = OnnxRoute(store, route.stages, variant.stages).logits(images[task].pixels(16)).argmax(axis=1)
        assert variant.validation_accuracy == np.mean(found == images[task].labels) == 1 - variant.points_lost / 100
        assert replace(route, variants={}) == before[task]
    assert not verify(store, [release.number]).problems
    back = drop_variants(store)
    assert (back.tasks, back.precisions) == (store.release(2).tasks, {})


def test_a_route_that_would_lose_too_much_keeps_float32_for_its_own_parts(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("plain", seed=1), TaskPlan("own", own_blocks=[1], seed=2))
    spoil(store, "own", block=1)
    images = {TaskName(task): judged_by_itself(store, task, tmp_path / "images") for task in ("plain", "own")}
    loose = lower_release(store, "int8", images, tolerance=100)
    lost = store.routes(loose)[TaskName("own")].variants["int8"].points_lost
    release = lower_release(store, "int8", images, tolerance=lost - 0.1)
    routes = store.routes(release)
    plain, own = (routes[TaskName(task)] for task in ("plain", "own"))
    assert own.variants["int8"].points_lost < lost
    assert own.variants["int8"].stages[2].subgraph == own.stages[2].subgraph  # the spoiled block
    assert own.variants["int8"].stages[1] == plain.variants["int8"].stages[1]
    assert own.variants["int8"].stages[1].subgraph != own.stages[1].subgraph
    Proofs().check(load(store, "int8").route("own"), store, engine.run)


def test_a_release_with_a_route_that_loses_too_much_in_any_case_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", TaskPlan("first", own_blocks=[1], seed=2))
    spoil(store, "first", block=1)
    store.publish(lambda tasks: {**tasks, TaskName("second"): _renamed(store, "first", "second")}, reason="shared")
    images = {TaskName(task): judged_by_itself(store, task, tmp_path / "images") for task in ("first", "second")}
    active = store.current()
    with pytest.raises(PrecisionLoss, match=r"nothing was published: task 'first' would have 0\.\d+ instead of 1\."):
        lower_release(store, "int8", images, tolerance=0.5)
    assert store.current() == active
    with pytest.raises(InvalidConfig, match="no validation images for second: give --data TASK=IMAGES"):
        lower_release(store, "int8", {TaskName("first"): images[TaskName("first")]}, tolerance=100)


def _renamed(store: Store, task: str, name: str) -> RouteId:
    route = store.routes(store.release())[TaskName(task)]
    return store.put_route(replace(route, task=TaskName(name)))


def test_what_is_evolved_on_a_lowered_release_is_lowered_alike(opened_store: Store, toy_task: Task) -> None:
    lower_all(opened_store, "int8")
    known = {
        stage.subgraph: lowered
        for route in opened_store.routes(opened_store.release()).values()
        for stage, lowered in zip(route.stages, route.variants["int8"].stages, strict=True)
    }
    outcome = evolve_task(toy_task, opened_store, TINY_CONFIG)
    variant = outcome.route.variants["int8"]
    assert outcome.release.precisions == {"int8": 100.0}
    assert variant.validation_images == len(toy_task.val)
    shared = [
        (lowered, known[stage.subgraph])
        for stage, lowered in zip(outcome.route.stages, variant.stages, strict=True)
        if stage.subgraph in known
    ]
    assert shared
    assert all(lowered == others for lowered, others in shared)
    assert drop_variants(opened_store).precisions == {}


def test_every_keeper_of_a_store_knows_the_new_files(int8_store: Store, tmp_path: Path) -> None:
    release = int8_store.release()
    route = int8_store.routes(release)[TaskName("plain")]
    variant = route.variants["int8"]
    names = {object_name(variant.golden, "safetensors"), object_name(variant.stages[1].subgraph, "onnx")}
    names.add(object_name(variant.stages[1].weights[0], "safetensors"))
    assert names <= release_objects(int8_store, release)
    target = tmp_path / "target"
    assert push(int8_store, target).is_new
    assert not push(int8_store, target).is_new
    copy = Store.open(target)
    assert copy.release().precisions == release.precisions
    for name in sorted(names):
        path = target / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert any(path.name in problem for problem in verify(Store.open(target), [release.number]).problems)
        with pytest.raises(DamagedObject, match=path.name):
            Proofs().check(load(Store.open(target), "int8").route("plain"), Store.open(target), engine.run)
        path.write_bytes(content)


def test_records_without_other_precisions_are_as_they_always_were(int8_store: Store) -> None:
    lowered = int8_store.routes(int8_store.release())[TaskName("plain")]
    plain = replace(lowered, variants={})
    assert (lowered.format_version, plain.format_version) == (2, 1)
    assert b"variants" not in encode(plain)
    assert b"precisions" not in encode(int8_store.release(0))
    with pytest.raises(InvalidRoute, match="its int8 variant has 1 stages, the route 5"):
        replace(plain, variants={"int8": replace(lowered.variants["int8"], stages=lowered.variants["int8"].stages[:1])})


def test_the_command(cli: Cli, tiny_store: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [word for task in ("shapes_a", "shapes_b") for word in ("--data", f"{task}={toy_folder}")]
    found = json.loads(cli.succeed("precision", tiny_store, "int8", *data, "--tolerance", 100, "--json"))
    assert (found["release"], found["precision"], set(found["tasks"])) == (3, "int8", {"shapes_a", "shapes_b"})
    routes = Store.open(tiny_store).routes(Store.open(tiny_store).release())
    recorded = routes[TaskName("shapes_a")].variants["int8"]
    assert found["tasks"]["shapes_a"]["validation_accuracy"] == recorded.validation_accuracy
    monkeypatch.setenv("COLUMNS", "80")
    text = " ".join(cli.succeed("precision", tiny_store, "float16", *data, "--tolerance", 100).split())
    assert "┃ task ┃ images ┃ float32 ┃ float16 ┃ points lost ┃ stages ┃" in text
    assert "published release 4, which is active" in text
    assert "int8" in cli.succeed("releases", "show", tiny_store)
    words = ["evaluate", tiny_store, "shapes_a", "--data", toy_folder, "--json"]
    assert json.loads(cli.succeed(*words, "--precision", "int8"))["precision"] == "int8"
    assert "published release 5" in cli.succeed("precision", tiny_store, "float32")
    assert Store.open(tiny_store).release(5).tasks == Store.open(tiny_store).release(2).tasks
    message = "task 'shapes_a' has no int8, only float32: 'mu2net precision' adds it"
    assert message in cli.fail(*words, "--precision", "int8")
    assert "no validation images for shapes_a, shapes_b" in cli.fail("precision", tiny_store, "int8")
    assert "give TASK=IMAGES" in cli.fail("precision", tiny_store, "int8", "--data", "shapes_a")
    assert "float32 needs no images" in cli.fail("precision", tiny_store, "float32", *data)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)
