"""A tiny store of every format ever released: it loads, answers as stored, and can be worked on."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from evolve.journal import Journal, iterations
from models.names import TaskName
from models.records import FORMAT_VERSIONS
from models.store import Current, Store
from models.verify import verify
from models.weights import deserialize
from service import engine
from service.golden import Proofs
from service.release import StagePool
from service.runtime import start_runtime
from tests.support.stores import route_logits

STORES = sorted(Path(__file__).with_name("golden").glob("format-*"))


@pytest.fixture(params=STORES, ids=lambda folder: folder.name)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store.open(shutil.copytree(request.param, tmp_path / "store"))


def test_there_is_a_store_of_every_format() -> None:
    assert [folder.name for folder in STORES] == [f"format-{version}" for version in FORMAT_VERSIONS]


def test_every_release_is_whole_and_answers_as_stored(store: Store) -> None:
    assert not verify(store, store.release_numbers()).problems
    pool = StagePool(start_runtime("cpu", 1))
    for number in store.release_numbers():
        release = pool.load_release(store, number, ())
        for loaded in release.routes.values():
            Proofs().check(loaded, store, engine.run)
            data = store.read_object(str(loaded.route.golden), "safetensors", needed_by="a test")
            golden = deserialize(data, "golden samples")
            in_torch = route_logits(store, loaded.route, golden["pixels"])
            np.testing.assert_allclose(in_torch, golden["logits"], atol=1e-4)


def test_a_store_of_the_first_format_can_be_worked_on(tmp_path: Path) -> None:
    store = Store.open(shutil.copytree(STORES[0], tmp_path / "store"))
    first = TaskName("first")
    last = store.release_numbers()[-1]
    assert store.current() == Current(2, is_held=True, pending=(last,))
    assert set(store.release().tasks) == {"first", "second"}
    assert store.resume() == Current(last)
    assert set(store.release().tasks) == {"first"}
    for number in iterations(store, first):
        journal = Journal(store, first, number)
        start, end = journal.start(), journal.end()
        assert start is not None
        assert end is not None
        assert (start.task, start.iteration) == (first, number)
        assert journal.generation(0)
    renamed = store.rename_task("first", TaskName("new"))
    assert set(renamed.tasks) == {"new"}
