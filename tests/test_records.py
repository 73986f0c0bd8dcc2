"""Records: reading one costs as much as it is long, and none is decoded twice."""

from dataclasses import replace
from pathlib import Path

import pytest

from models import records
from models.errors import InvalidRoute
from models.figures import task_figures
from models.names import TaskName
from models.records import DecodedRecords, encode
from models.release import Release
from models.route import Route, component_usage
from models.store import Store
from tests.support.stores import TaskPlan, make_store


class Compared(str):
    """A label that counts how often it was compared with another."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    plans = (TaskPlan("first", own_blocks=[1]), TaskPlan("second", seed=2), TaskPlan("third", seed=3))
    return make_store(tmp_path_factory.mktemp("records") / "store", *plans)


def first(store: Store) -> Route:
    return store.routes(store.release())[TaskName("first")]


def test_the_check_for_repeated_labels_grows_with_their_number_not_its_square(store: Store) -> None:
    labels = tuple(Compared(f"class {index}") for index in range(2000))
    Compared.times = 0
    replace(first(store), labels=labels)
    assert Compared.times < 3 * len(labels)
    with pytest.raises(InvalidRoute, match=r"task 'first': labels repeat: \['class 7'\]; each class needs a name"):
        replace(first(store), labels=(*map(str, labels), "class 7"))


def test_a_record_is_decoded_once_for_all_stores_that_share_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    decode = records.decode

    def counted(kind: type[Route], data: bytes, name: str) -> Route:
        decoded.append(name)
        return decode(kind, data, name)

    monkeypatch.setattr(records, "decode", counted)
    shared = DecodedRecords()
    for _ in range(3):
        opened = Store.open(store.folder, decoded=shared)
        opened.routes(opened.release(3))
        opened.routes(opened.release(2))
    assert len(decoded) == len(set(decoded)) == 5  # two releases and three routes


def test_what_is_kept_of_decoded_records_is_bounded(store: Store) -> None:
    route, release = encode(first(store)), encode(store.release())
    kept = DecodedRecords(max_bytes=len(route) + len(release) - 1)
    found = kept.decode(Route, route, "a")
    assert kept.decode(Route, route, "b") is found
    kept.decode(Release, release, "c")  # has no room beside it
    again = kept.decode(Route, route, "d")
    assert again is not found
    assert again == found


def test_figures_are_those_of_one_task_beside_all_others(store: Store) -> None:
    routes = store.routes(store.release())
    figures = task_figures(routes, store.root())
    for task, route in routes.items():
        others = component_usage(other for name, other in routes.items() if name != task)
        expected = sum(c.parameters / (1 + others[c.id]) for c in route.components)
        assert figures[task].accounted_parameters == pytest.approx(expected)


def test_a_damaged_record_is_found_although_it_was_decoded_before(store: Store, tmp_path: Path) -> None:
    opened = Store.open(store.folder)
    release = opened.release()
    name = f"objects/{release.tasks[TaskName('second')]}.json"
    content = opened.files.read(name)
    opened.routes(release)
    opened.local_files.replace(name, content[:-20])
    try:
        with pytest.raises(Exception, match="is damaged: its sha256 is"):
            opened.routes(release)
    finally:
        opened.local_files.replace(name, content)
