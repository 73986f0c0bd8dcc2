"""Prepared graphs: the same answers from mapped weights, each on disk once, made again where they are damaged."""

import json
import os
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.names import TaskName
from models.store import Store
from service import engine, prepared
from service.engine import Row
from service.prepared import PreparedGraphs, machine_name
from service.release import LoadedRelease, StagePool
from service.runtime import Runtime, start_runtime
from tests.support.stores import TaskPlan, make_store

# Blocks whose matrices are large enough to be mapped.
ROOT = "random:embed_dim=64,depth=2,num_heads=2,patch_size=8,image_size=16"
PLANS = (TaskPlan("plain", depth=2), TaskPlan("adapted", depth=2, adapters={1: 4}, seed=2))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("prepared") / "store", *PLANS, root=ROOT)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return start_runtime("cpu", 1)


@pytest.fixture(scope="module")
def expected(store: Store, runtime: Runtime) -> list[np.ndarray]:
    return answers(load(store, StagePool(runtime)))


def load(store: Store, pool: StagePool) -> LoadedRelease:
    return pool.load_release(store, store.current().release, [])


def answers(release: LoadedRelease) -> list[np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    return engine.run([Row(image, route) for image in images for route in release.routes.values()])


def prepared_answers(store: Store, runtime: Runtime, folder: Path) -> list[np.ndarray]:
    return answers(load(store, StagePool(runtime, PreparedGraphs(folder, runtime))))


def files(folder: Path, suffix: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(f"*/*.{suffix}")}


def test_answers_have_the_same_bits_when_made_and_when_found(
    store: Store, runtime: Runtime, expected: list[np.ndarray], tmp_path: Path
) -> None:
    for _ in range(2):
        assert all(map(np.array_equal, prepared_answers(store, runtime, tmp_path), expected))
    assert not list(tmp_path.glob("*/.new-*"))


def test_a_block_with_an_adapter_has_the_weights_of_the_block_without(
    store: Store, runtime: Runtime, tmp_path: Path
) -> None:
    prepared_answers(store, runtime, tmp_path)
    routes = [store.routes(store.release())[TaskName(name)].stages for name in ("plain", "adapted")]
    records = [next(tmp_path.glob(f"*/{stages[2].subgraph}.json")) for stages in routes]
    weights = [set(json.loads(record.read_text())[1:]) for record in records]
    assert len(weights[0]) == 4  # the block's matrices
    assert weights[0] <= weights[1]


def test_the_weights_are_mapped_into_the_process_and_not_copied(store: Store, runtime: Runtime, tmp_path: Path) -> None:
    release = load(store, StagePool(runtime, PreparedGraphs(tmp_path, runtime)))
    maps = Path("/proc/self/maps").read_text()
    assert all(name in maps for name in files(tmp_path, "weights"))
    assert f"{tmp_path}/" in maps
    assert "(deleted)" not in maps[maps.index(f"{tmp_path}/") :]  # each file once: what is there is not written again
    assert release.routes


def test_a_graph_says_where_its_weights_lie(store: Store, runtime: Runtime, tmp_path: Path) -> None:
    """ONNX's own reading of what service/external_data.py wrote."""
    prepared_answers(store, runtime, tmp_path)
    packed = 0
    for path in tmp_path.glob("*/*.onnx"):
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert bool(entries) == (tensor.data_location == onnx.TensorProto.EXTERNAL)
            if entries:
                size = (path.parent / entries["location"]).stat().st_size
                assert entries["offset"] == "0"
                assert int(entries["length"]) <= size
                packed += int(entries["length"]) < size
    assert packed == 4 * 3  # the matrices of three blocks


@pytest.mark.parametrize("suffix", ["json", "onnx", "weights"])
@pytest.mark.parametrize("how", ["damaged", "cut", "gone"])
def test_what_is_damaged_or_gone_is_made_again(
    store: Store, runtime: Runtime, expected: list[np.ndarray], tmp_path: Path, suffix: str, how: str
) -> None:
    prepared_answers(store, runtime, tmp_path)
    whole = files(tmp_path, suffix)
    for path in tmp_path.glob(f"*/*.{suffix}"):
        data = path.read_bytes()
        path.unlink()
        if how != "gone":
            path.write_bytes(data[: len(data) // 2] if how == "cut" else bytes([data[0] ^ 1]) + data[1:])
    assert all(map(np.array_equal, prepared_answers(store, runtime, tmp_path), expected))
    assert files(tmp_path, suffix) == whole


def test_a_folder_that_cannot_be_written_is_told_once_and_harms_nobody(
    store: Store, runtime: Runtime, expected: list[np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert all(map(np.array_equal, prepared_answers(store, runtime, tmp_path / "file"), expected))
    told = [record.message for record in caplog.records if record.name == "mu2net.prepared"]
    assert len(told) == 1
    assert told[0].startswith(f"weights are copied instead of mapped: {tmp_path / 'file'}/")


def test_a_folder_in_memory_is_not_used(runtime: Runtime) -> None:
    assert prepared.prepared_graphs(Path("/dev/shm/mu2net"), runtime) is None


def test_another_version_has_a_folder_of_its_own() -> None:
    assert machine_name("1.31.0") != machine_name("1.31.1")


def test_what_nobody_has_used_for_a_month_goes(store: Store, runtime: Runtime, tmp_path: Path) -> None:
    kept = PreparedGraphs(tmp_path, runtime)
    pool = StagePool(runtime, kept)
    release = load(store, pool)
    old = time.time() - prepared.UNUSED_S - 1
    (tmp_path / "older-machine").mkdir()
    (tmp_path / "older-machine" / "a.weights").write_bytes(b"12345")
    for path in tmp_path.glob("*/*"):
        os.utime(path, (old, old))
    before = files(tmp_path, "*")
    pool.trim()
    assert set(before) - set(files(tmp_path, "*")) == {"a.weights"}
    assert kept.trim([]) == 0  # all have just been used
    assert release.routes
